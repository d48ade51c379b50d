//! Prints the rows of [`oqvl_parity::measure`], one JSON object a line; `cargo xtask parity` is for people.
#![expect(clippy::print_stdout, reason = "the rows are its output")]

fn main() -> anyhow::Result<()> {
    let rows = oqvl_parity::measure(|why| eprintln!("skipped: {why}"))?;
    for row in rows {
        println!("{}", serde_json::to_string(&row)?);
    }
    Ok(())
}
