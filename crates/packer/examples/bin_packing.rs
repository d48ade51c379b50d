//! First-fit-decreasing alone, timed: `bin_packing LENGTHS.json [CAPACITY]`.
//!
//! The file is a JSON list of lengths, as for `benches/peers/packing_reference.py bins`; the answer is the same JSON
//! object: `items`, `bins`, `seconds`. Reading the file does not count.

#![expect(clippy::print_stdout, reason = "the answer is for a script")]

use std::time::Instant;

use oqvl_packer::{DEFAULT_SEQ_LEN, first_fit_decreasing};
use oqvl_shard_io::read_json;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: bin_packing LENGTHS.json [CAPACITY]")?;
    let capacity = args.next().map_or(Ok(DEFAULT_SEQ_LEN), |capacity| capacity.parse())?;
    let lengths: Vec<u32> = read_json(path.as_ref())?;
    let start = Instant::now();
    let bins = first_fit_decreasing(&lengths, capacity);
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({ "items": lengths.len(), "bins": bins.len(), "seconds": seconds }));
    Ok(())
}
