//! Text for the language model stand-in: captions, descriptions with questions to be answered from them,
//! small talk.
//!
//! The second kind has the very wording of the conversations of [`sft`](super::sft), so that all that is left
//! to learn there is to read the picture instead of its description.

use super::region;
use super::sft::question_turn;
use crate::caption::{CaptionStyle, caption, full};
use crate::config::SyntheticConfig;
use crate::error::WorldError;
use crate::phrases::{boilerplate, small_talk, vague};
use crate::question::YesNoQuestion;
use crate::report::WorldReport;
use crate::scene::{Scene, Split, weighted_index};
use crate::world_dir::{WorldDir, write_jsonl};
use oqvl_stage::{RunContext, stream};
use rand::Rng as _;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde_json::json;

/// Percent of the documents that are captions, descriptions with questions, yes-or-no questions without a description,
/// small talk, and what pages are full of.
const WEIGHTS: [u32; 5] = [20, 50, 15, 8, 7];

/// Writes `corpora/text.jsonl`.
pub(super) fn write(
    config: &SyntheticConfig,
    run: &RunContext,
    world: &WorldDir,
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    run.check_interrupt()?;
    world.create_dir("corpora")?;
    let documents: Vec<String> =
        (0..config.num_text_documents).into_par_iter().map(|k| document(run.seed, k as u64)).collect();
    report.text_documents = documents.len() as u64;
    write_jsonl(&world.path("corpora/text.jsonl"), documents.iter().map(|text| json!({"text": text})))
}

/// Document number `k`.
fn document(seed: u64, k: u64) -> String {
    let mut rng = stream(seed, "micro-world/text", 0, 0, k);
    let scene = Scene::generate(seed, Split::Bootstrap, region(1) + k);
    let lines: Vec<String> = match weighted_index(&WEIGHTS, &mut rng) {
        0 => {
            let num_captions = rng.random_range(1..=3);
            (0..num_captions).map(|_| caption(&scene, CaptionStyle::random(&mut rng), &mut rng)).collect()
        }
        1 => {
            let num_questions = rng.random_range(1..=3);
            let mut lines = vec![full(&scene)];
            for _ in 0..num_questions {
                let (prompt, answer) = question_turn(&scene, &mut rng);
                lines.extend([prompt, answer]);
            }
            lines
        }
        // What the object is cannot be known, but once that is said the verdict can.
        2 => (0..4)
            .flat_map(|_| {
                let holds = rng.random_bool(0.5);
                let question = YesNoQuestion::about(&scene, holds, &mut rng);
                [question.prompt(), question.answer()]
            })
            .collect(),
        3 => {
            let num_exchanges = rng.random_range(1..=2);
            (0..num_exchanges).flat_map(|_| <[String; 2]>::from(small_talk(&mut rng))).collect()
        }
        _ => (0..3)
            .map(|_| if rng.random_bool(0.7) { boilerplate(&mut rng) } else { vague(&mut rng) })
            .collect(),
    };
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_mixed_and_most_have_questions() {
        let documents: Vec<String> = (0..1000).map(|k| document(7, k)).collect();
        let count = |part: &str| documents.iter().filter(|text| text.contains(part)).count();
        assert!((540..660).contains(&count("\nAnswer ")), "{}", count("\nAnswer "));
        assert!(count("\nA. ") > 250 && count("single word") > 150);
        assert!(documents.iter().all(|text| !text.is_empty() && !text.contains("<image>")));
        assert_eq!(documents[12], document(7, 12));
    }
}
