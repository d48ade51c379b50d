//! Scores image-text pairs with MLM-Filter; see the `oqvl_mlm_filter` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_mlm_filter::MlmFilter>()
}
