//! Pre-trains projector and language model on packed sequences; see the `oqvl_trainer` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_trainer::Trainer>()
}
