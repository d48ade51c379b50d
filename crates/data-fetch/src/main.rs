//! Downloads the images of a URL list into WebDataset shards; see the `oqvl_data_fetch` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_data_fetch::DataFetch>()
}
