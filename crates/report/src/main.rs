//! Writes one page on a whole run; see the `oqvl_report` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_report::Report>()
}
