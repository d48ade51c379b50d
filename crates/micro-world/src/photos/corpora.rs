//! Training pairs and text from the images that are not held out.

use super::questions::Asked;
use super::source::{Part, Photo, PhotoSet};
use super::web::{extension, nearest_style};
use crate::error::WorldError;
use crate::pair::{PairClass, grade};
use crate::phrases::{boilerplate, vague};
use crate::report::{WorldReport, count};
use crate::scene::weighted_index;
use crate::world_dir::{ShardSet, WorldDir, write_jsonl};
use oqvl_shard_io::Sample;
use oqvl_stage::{Rng, RunContext, stream};
use rand::Rng as _;
use serde_json::{Value, json};

/// Samples per shard.
const SAMPLES_PER_SHARD: usize = 200;
/// Classes of the MLM-Filter's pairs and their weights. One wrong attribute cannot be made without knowing
/// what the image shows, so there is no subtle class here.
const CLASSES: [PairClass; 4] =
    [PairClass::Clean, PairClass::Mismatched, PairClass::Vague, PairClass::Boilerplate];
const CLASS_WEIGHTS: [u32; 4] = [50, 30, 8, 12];

/// Writes `corpora/siglip`, `corpora/mlm-filter` and `corpora/text.jsonl`.
pub(super) fn write(
    run: &RunContext,
    world: &WorldDir,
    photos: &PhotoSet,
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    let mut siglip = ShardSet::new(world.create_dir("corpora/siglip")?, SAMPLES_PER_SHARD);
    let mut mlm_filter = ShardSet::new(world.create_dir("corpora/mlm-filter")?, SAMPLES_PER_SHARD);
    let pairs = english_pairs(photos);
    for (index, (photo, caption)) in pairs.iter().enumerate() {
        run.check_interrupt()?;
        let image = photos.read(&photo.file)?;
        siglip.push(&sample(&siglip, photo, image.clone(), caption, json!({})))?;
        report.siglip_pairs += 1;

        let mut rng = stream(run.seed, "micro-world/photo-mlm-filter", 0, 0, index as u64);
        let class = CLASSES[weighted_index(&CLASS_WEIGHTS, &mut rng)];
        let (class, text) = match class {
            PairClass::Mismatched => mismatched(&pairs, index, &mut rng),
            PairClass::Vague => (class, vague(&mut rng)),
            PairClass::Boilerplate => (class, boilerplate(&mut rng)),
            PairClass::Clean | PairClass::Subtle => (class, (*caption).to_owned()),
        };
        let style = matches!(class, PairClass::Clean | PairClass::Mismatched).then(|| nearest_style(&text));
        let scores = grade(class, style, &mut rng);
        let metadata = json!({"pair": class, "scores": scores});
        mlm_filter.push(&sample(&mlm_filter, photo, image, &text, metadata))?;
        count(&mut report.mlm_filter_pairs, class.name());
    }
    siglip.finish()?;
    mlm_filter.finish()?;

    let documents = text_documents(run, photos);
    report.text_documents = documents.len() as u64;
    write_jsonl(&world.path("corpora/text.jsonl"), documents.iter().map(|text| json!({"text": text})))
}

/// The caption of a random other image; a clean pair where all captions are of one image.
fn mismatched(pairs: &[(&Photo, &str)], index: usize, rng: &mut Rng) -> (PairClass, String) {
    let (photo, caption) = pairs[index];
    let first = rng.random_range(0..pairs.len());
    let mut others = (0..pairs.len()).map(|step| pairs[(first + step) % pairs.len()]);
    match others.find(|(other, text)| other.file != photo.file && *text != caption) {
        Some((_, other)) => (PairClass::Mismatched, other.to_owned()),
        None => (PairClass::Clean, caption.to_owned()),
    }
}

/// The images that are not held out with each of their English captions.
fn english_pairs(photos: &PhotoSet) -> Vec<(&Photo, &str)> {
    let train = photos.photos.iter().filter(|photo| photo.part == Part::Train);
    train
        .flat_map(|photo| {
            let english = photo.captions.iter().filter(|caption| caption.lang == "en");
            english.map(move |caption| (photo, caption.text.as_str()))
        })
        .collect()
}

fn sample(shards: &ShardSet, photo: &Photo, image: Vec<u8>, caption: &str, extra: Value) -> Sample {
    let key = shards.next_key();
    let mut metadata = json!({"caption": caption, "key": key.as_str(), "file": photo.file});
    if let (Some(metadata), Some(extra)) = (metadata.as_object_mut(), extra.as_object()) {
        metadata.extend(extra.clone());
    }
    let mut sample = Sample::new(key);
    sample.push(extension(&photo.file), image);
    sample.push("json", metadata.to_string().into_bytes());
    sample.push("txt", caption.as_bytes().to_vec());
    sample
}

/// Captions in every language, and questions with their answers.
fn text_documents(run: &RunContext, photos: &PhotoSet) -> Vec<String> {
    let train = photos.photos.iter().filter(|photo| photo.part == Part::Train);
    let mut documents: Vec<String> =
        train.flat_map(|photo| photo.captions.iter().map(|caption| caption.text.clone())).collect();
    let mut number = 0;
    for (photo, questions) in photos.questions_of(Part::Train) {
        let description = photo.captions.iter().find(|caption| caption.lang == "en");
        for question in questions {
            let asked = Asked::new(question, run.seed, number);
            number += 1;
            let mut lines: Vec<&str> = description.iter().map(|caption| caption.text.as_str()).collect();
            let (prompt, answer) = asked.turn();
            lines.extend([prompt.as_str(), answer.as_str()]);
            documents.push(lines.join("\n"));
        }
    }
    documents
}
