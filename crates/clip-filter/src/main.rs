//! Scores image-text pairs by the similarity of their embeddings; see the `oqvl_clip_filter` library.

fn main() -> std::process::ExitCode {
    oqvl_stage::main::<oqvl_clip_filter::ClipFilter>()
}
