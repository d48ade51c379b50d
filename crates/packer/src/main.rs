//! Packs captioned images into training sequences; see the `oqvl_packer` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_packer::Packer>()
}
