//! Makes a world of known truth: a synthetic one, or one of real photos; see the `oqvl_micro_world` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_micro_world::MicroWorld>()
}
