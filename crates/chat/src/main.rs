//! Talks to a vision-language model on a terminal; see the `oqvl_chat` library.

fn main() -> std::process::ExitCode {
    oqvl_chat::main()
}
