//! The held-out benchmarks.

use super::{CHUNK, find_scene, region};
use crate::benchmark_files::{
    MultipleChoiceRow, OpenQuestion, YesNoLine, vqa_image_name, write_images, write_multiple_choice,
    write_vqa, write_yes_no,
};
use crate::config::SyntheticConfig;
use crate::encode::PictureFormat;
use crate::error::WorldError;
use crate::question::{Question, QuestionType, YesNoQuestion};
use crate::report::WorldReport;
use crate::scene::{Canvas, MAX_OBJECTS, Scene, Split, draw};
use crate::world_dir::WorldDir;
use oqvl_stage::{Progress, RunContext, stream};
use rand::seq::SliceRandom;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};

/// Scene indices of the three benchmarks.
const MULTIPLE_CHOICE: u64 = region(0);
const YES_NO: u64 = region(1);
const OPEN: u64 = region(2);

/// Writes `eval/`.
pub(super) fn write(
    config: &SyntheticConfig,
    run: &RunContext,
    world: &WorldDir,
    progress: &Progress,
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    world.create_dir("eval/images")?;
    let rows = multiple_choice(config.num_multiple_choice, run)?;
    progress.inc(rows.len() as u64);
    write_multiple_choice(world, &rows, report)?;

    let (lines, images): (Vec<_>, Vec<_>) = yes_no(config.num_yes_no, run)?.into_iter().unzip();
    progress.inc(lines.len() as u64);
    write_images(world, "eval/images", &images)?;
    write_yes_no(world, &lines, report)?;

    let (questions, images): (Vec<_>, Vec<_>) = open(config.num_open_questions, run)?.into_iter().unzip();
    progress.inc(questions.len() as u64);
    write_images(world, "eval/images", &images)?;
    write_vqa(world, &questions, report)
}

/// An image file of `eval/images`.
type NamedImage = (String, Vec<u8>);

/// Makes the items of a benchmark in parallel, from the number and the kind of each.
fn make<K: Sync, T: Send>(
    kinds: &[K],
    run: &RunContext,
    make_one: impl Fn(usize, &K) -> T + Sync,
) -> Result<Vec<T>, WorldError> {
    let mut items = Vec::with_capacity(kinds.len());
    for (chunk_idx, chunk) in kinds.chunks(CHUNK).enumerate() {
        run.check_interrupt()?;
        let first = chunk_idx * CHUNK;
        let made: Vec<T> =
            chunk.par_iter().enumerate().map(|(index, kind)| make_one(first + index, kind)).collect();
        items.extend(made);
    }
    Ok(items)
}

/// The kind of a question, and where that matters the number of objects of its scene.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    kind: QuestionType,
    num_objects: Option<usize>,
}

/// Kinds of `count` questions. Those that count go round the numbers of objects: were one more frequent than
/// the others, it could be guessed.
fn wanted(count: usize, seed: u64, region: u64) -> Vec<Wanted> {
    let mut num_counting = 0;
    let kinds = QuestionType::quota(count, &mut stream(seed, "micro-world/quota", 0, 0, region));
    let want = |kind| {
        let counts = kind == QuestionType::Count;
        num_counting += usize::from(counts);
        Wanted { kind, num_objects: counts.then_some(1 + num_counting % MAX_OBJECTS) }
    };
    kinds.into_iter().map(want).collect()
}

/// Question number `k` of a region, with its scene.
fn ask(seed: u64, region: u64, k: usize, wanted: Wanted) -> (Scene, Question) {
    find_scene(region, k, |index| {
        let scene = Scene::generate(seed, Split::Eval, index);
        if wanted.num_objects.is_some_and(|num_objects| num_objects != scene.objects.len()) {
            return None;
        }
        let mut rng = stream(seed, "micro-world/question", 0, 0, index);
        Question::about(&scene, wanted.kind, &mut rng).map(|question| (scene, question))
    })
}

fn png(scene: &Scene) -> Vec<u8> {
    PictureFormat::Png.encode(&draw(scene, Canvas::default()))
}

fn multiple_choice(count: usize, run: &RunContext) -> Result<Vec<MultipleChoiceRow>, WorldError> {
    make(&wanted(count, run.seed, MULTIPLE_CHOICE), run, |k, &wanted| {
        let (scene, question) = ask(run.seed, MULTIPLE_CHOICE, k, wanted);
        let mut rng = stream(run.seed, "micro-world/options", 0, 0, k as u64);
        let question = question.into_multiple_choice(&mut rng);
        MultipleChoiceRow {
            answer: question.letter(),
            question: question.question,
            options: question.options,
            category: wanted.kind.name().to_owned(),
            ability: wanted.kind.ability().to_owned(),
            source: "micro-world".to_owned(),
            image: png(&scene),
        }
    })
}

fn yes_no(count: usize, run: &RunContext) -> Result<Vec<(YesNoLine, NamedImage)>, WorldError> {
    let mut answers: Vec<bool> = (0..count).map(|k| k % 2 == 0).collect();
    answers.shuffle(&mut stream(run.seed, "micro-world/yes-no", 0, 0, 0));
    make(&answers, run, |k, &holds| {
        let scene = Scene::generate(run.seed, Split::Eval, YES_NO + k as u64);
        let mut rng = stream(run.seed, "micro-world/yes-no", 0, 1, k as u64);
        let question = YesNoQuestion::about(&scene, holds, &mut rng);
        let image = format!("yes_no_{k:06}.png");
        let line = YesNoLine {
            question_id: k as u64 + 1,
            image: image.clone(),
            label: question.label(),
            text: question.text,
        };
        (line, (image, png(&scene)))
    })
}

fn open(count: usize, run: &RunContext) -> Result<Vec<(OpenQuestion, NamedImage)>, WorldError> {
    make(&wanted(count, run.seed, OPEN), run, |k, &wanted| {
        let (scene, question) = ask(run.seed, OPEN, k, wanted);
        let open = OpenQuestion {
            image_id: k as u64,
            question: question.text,
            answer: question.answer,
            question_type: wanted.kind.name().to_owned(),
        };
        let image = PictureFormat::Jpeg.encode(&draw(&scene, Canvas::default()));
        (open, (vqa_image_name(k as u64), image))
    })
}
