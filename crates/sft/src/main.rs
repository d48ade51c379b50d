//! Fine-tunes a base checkpoint on conversations about images; see the `oqvl_sft` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_sft::Sft>()
}
