//! Conversations for visual instruction tuning.

use super::{CHUNK, region};
use crate::benchmark_files::{Conversation, write_images, write_llava};
use crate::caption::full;
use crate::config::{SyntheticConfig, share_of};
use crate::encode::PictureFormat;
use crate::error::WorldError;
use crate::phrases::small_talk;
use crate::question::{DESCRIBE_PROMPT, Question, QuestionType, YesNoQuestion};
use crate::report::WorldReport;
use crate::scene::{Canvas, Scene, Split, draw, weighted_index};
use crate::world_dir::WorldDir;
use oqvl_stage::{Progress, Rng, RunContext, stream};
use rand::Rng as _;
use rand::seq::SliceRandom;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

/// Share of the conversations without image.
const TEXT_ONLY_SHARE: f64 = 0.05;
/// Weights of multiple choice, yes or no, and open questions.
const QUESTION_WEIGHTS: [u32; 3] = [45, 35, 20];
/// Share of the conversations about an image that end with a description of it.
const DESCRIBE_SHARE: f64 = 0.5;

/// Whether a conversation is about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Modality {
    Image,
    Text,
}

/// Writes `sft/llava.json` and `sft/images`.
pub(super) fn write(
    config: &SyntheticConfig,
    run: &RunContext,
    world: &WorldDir,
    progress: &Progress,
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    world.create_dir("sft/images")?;
    let modalities = modalities(config.num_sft_conversations, run.seed);
    let numbered: Vec<(usize, Modality)> = modalities.into_iter().enumerate().collect();
    let mut conversations = Vec::with_capacity(numbered.len());
    for chunk in numbered.chunks(CHUNK) {
        run.check_interrupt()?;
        let made: Vec<(Conversation, Option<Vec<u8>>)> =
            chunk.par_iter().map(|&(k, modality)| conversation(run.seed, k, modality)).collect();
        progress.inc(chunk.len() as u64);
        let mut images = Vec::new();
        for (conversation, image) in made {
            images.extend(conversation.image.clone().zip(image));
            conversations.push(conversation);
        }
        write_images(world, "sft/images", &images)?;
    }
    write_llava(world, &conversations, report)
}

fn modalities(count: usize, seed: u64) -> Vec<Modality> {
    let mut modalities = vec![Modality::Text; share_of(count, TEXT_ONLY_SHARE)];
    modalities.resize(count, Modality::Image);
    modalities.shuffle(&mut stream(seed, "micro-world/sft-modalities", 0, 0, 0));
    modalities
}

/// Conversation number `k`, and its image as a PNG file.
fn conversation(seed: u64, k: usize, modality: Modality) -> (Conversation, Option<Vec<u8>>) {
    let mut rng = stream(seed, "micro-world/sft", 0, 0, k as u64);
    let scene = Scene::generate(seed, Split::Sft, region(0) + k as u64);
    match modality {
        Modality::Image => {
            let image = PictureFormat::Png.encode(&draw(&scene, Canvas::default()));
            (Conversation::new(k, Some(format!("{k:06}.png")), image_turns(&scene, &mut rng)), Some(image))
        }
        Modality::Text => (Conversation::new(k, None, text_turns(&scene, &mut rng)), None),
    }
}

/// Four or five questions about a picture, all different, and in half of the conversations a description at the end:
/// before the questions it would teach to answer from the description.
fn image_turns(scene: &Scene, rng: &mut Rng) -> Vec<(String, String)> {
    let num_questions = rng.random_range(4..=5);
    let mut turns: Vec<(String, String)> = Vec::with_capacity(num_questions + 1);
    while turns.len() < num_questions {
        let turn = question_turn(scene, rng);
        // The same question twice, with or without options, would teach to copy the earlier answer.
        let question = |prompt: &str| prompt.lines().next().map(str::to_owned);
        if turns.iter().all(|(prompt, _)| question(prompt) != question(&turn.0)) {
            turns.push(turn);
        }
    }
    if rng.random_bool(DESCRIBE_SHARE) {
        turns.push((DESCRIBE_PROMPT.to_owned(), full(scene)));
    }
    turns
}

/// Small talk, or a question about a description.
fn text_turns(scene: &Scene, rng: &mut Rng) -> Vec<(String, String)> {
    if rng.random_bool(0.5) {
        return vec![small_talk(rng), small_talk(rng)];
    }
    let (prompt, answer) = question_turn(scene, rng);
    vec![(format!("{}\n{prompt}", full(scene)), answer)]
}

/// What the user asks about the scene, as a benchmark would, and the answer.
pub(super) fn question_turn(scene: &Scene, rng: &mut Rng) -> (String, String) {
    match weighted_index(&QUESTION_WEIGHTS, rng) {
        0 => {
            let question = random_question(scene, rng).into_multiple_choice(rng);
            (question.prompt(), question.answer().to_owned())
        }
        1 => {
            let holds = rng.random_bool(0.5);
            let question = YesNoQuestion::about(scene, holds, rng);
            (question.prompt(), question.answer())
        }
        _ => {
            let question = random_question(scene, rng);
            (question.prompt(), question.answer)
        }
    }
}

fn random_question(scene: &Scene, rng: &mut Rng) -> Question {
    loop {
        let kind = QuestionType::ALL[weighted_index(&QuestionType::PERCENT, rng)];
        // Counts and places can be asked of every scene, so the search ends.
        if let Some(question) = Question::about(scene, kind, rng) {
            return question;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::benchmark_files::Speaker;

    #[test]
    fn conversations_have_the_layout_of_llava() {
        for k in 0..300 {
            let (conversation, image) = conversation(7, k, Modality::Image);
            assert!(image.is_some() && conversation.image.is_some());
            let turns = &conversation.conversations;
            assert!([8, 10, 12].contains(&turns.len()));
            for (index, message) in turns.iter().enumerate() {
                let expected = if index % 2 == 0 { Speaker::Human } else { Speaker::Gpt };
                assert_eq!(message.from, expected);
                assert_eq!(message.value.starts_with("<image>\n"), index == 0);
                assert_eq!(message.value.matches("<image>").count(), usize::from(index == 0));
            }
            let (text_only, image) = super::conversation(7, k, Modality::Text);
            assert!(image.is_none() && text_only.image.is_none());
            assert!(text_only.conversations.iter().all(|message| !message.value.contains("<image>")));
        }
    }

    #[test]
    fn one_in_twenty_has_no_image() {
        for (count, expected) in [(0, 0), (1, 0), (20, 1), (3000, 150)] {
            let text_only =
                modalities(count, 7).iter().filter(|&&modality| modality == Modality::Text).count();
            assert_eq!(text_only, expected);
        }
    }
}
