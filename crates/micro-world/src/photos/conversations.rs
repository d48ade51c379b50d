//! Conversations about the images that are not held out.

use super::questions::Asked;
use super::source::{Part, PhotoSet};
use crate::benchmark_files::{Conversation, write_images, write_llava};
use crate::error::WorldError;
use crate::question::DESCRIBE_PROMPT;
use crate::report::WorldReport;
use crate::world_dir::WorldDir;
use oqvl_stage::RunContext;
use std::collections::BTreeMap;

/// Most questions of one conversation.
const MAX_TURNS: usize = 4;

/// Writes `sft/llava.json` and `sft/images`.
pub(super) fn write(
    run: &RunContext,
    world: &WorldDir,
    photos: &PhotoSet,
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    let mut turns_by_file: BTreeMap<&str, Vec<(String, String)>> = BTreeMap::new();
    let mut number = 0;
    for (photo, questions) in photos.questions_of(Part::Train) {
        for question in questions {
            turns_by_file.entry(&photo.file).or_default().push(Asked::new(question, run.seed, number).turn());
            number += 1;
        }
    }
    let mut conversations = Vec::new();
    world.create_dir("sft/images")?;
    for photo in photos.photos.iter().filter(|photo| photo.part == Part::Train) {
        run.check_interrupt()?;
        let mut turns: Vec<(String, String)> = (photo.captions.iter().find(|caption| caption.lang == "en"))
            .map(|caption| (DESCRIBE_PROMPT.to_owned(), caption.text.clone()))
            .into_iter()
            .collect();
        turns.extend(turns_by_file.remove(photo.file.as_str()).unwrap_or_default());
        if turns.is_empty() {
            continue;
        }
        let name = photo.file.replace('/', "_");
        for turns in turns.chunks(MAX_TURNS) {
            conversations.push(Conversation::new(conversations.len(), Some(name.clone()), turns.to_vec()));
        }
        write_images(world, "sft/images", &[(name, photos.read(&photo.file)?)])?;
    }
    write_llava(world, &conversations, report)
}
