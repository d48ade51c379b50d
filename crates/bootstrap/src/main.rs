//! Trains the micro stand-ins of the public checkpoints; see the `oqvl_bootstrap` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_bootstrap::Bootstrap>()
}
