//! Selects, deduplicates and reshards the fetched samples; see the `oqvl_mixer` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_mixer::Mixer>()
}
