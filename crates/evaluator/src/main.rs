//! Scores a checkpoint on held-out benchmark files; see the `oqvl_evaluator` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_evaluator::Evaluator>()
}
