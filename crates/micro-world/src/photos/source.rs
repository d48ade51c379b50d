//! Reading the directory of real images.

use crate::config::share_of;
use crate::error::WorldError;
use oqvl_stage::{Tally, stream};
use rand::seq::SliceRandom;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Larger files are left out.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Whether the questions about an image teach or test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Train,
    Eval,
}

/// An image with its captions.
#[derive(Debug, Clone)]
pub(super) struct Photo {
    /// Path in the directory.
    pub(super) file: String,
    pub(super) captions: Vec<Caption>,
    pub(super) part: Part,
}

/// A caption as `captions.jsonl` has it; what is not needed is not read.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Caption {
    pub(super) text: String,
    /// Language, e.g. `en`.
    pub(super) lang: String,
}

/// A question about an image.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct PhotoQuestion {
    /// Where it comes from, e.g. `a-okvqa`.
    pub(super) benchmark: String,
    /// Path of its image.
    pub(super) file: String,
    pub(super) question: String,
    /// The statement that a true-or-false question is about.
    pub(super) statement: Option<String>,
    #[serde(default)]
    pub(super) choices: Vec<String>,
    pub(super) correct_choice_idx: Option<usize>,
    pub(super) answer: String,
}

/// An odd or broken file.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct AwkwardFile {
    /// Path in the directory.
    pub(super) file: String,
    /// What is odd about it.
    #[serde(rename = "trait")]
    pub(super) oddity: String,
}

#[derive(Deserialize)]
struct CaptionRecord {
    file: String,
    captions: Vec<Caption>,
}

/// Everything in the directory that can be used.
#[derive(Debug)]
pub(super) struct PhotoSet {
    dir: PathBuf,
    pub(super) photos: Vec<Photo>,
    pub(super) questions: Vec<PhotoQuestion>,
    pub(super) awkward: Vec<AwkwardFile>,
}

impl PhotoSet {
    /// Reads the three tables. Records that cannot be used are rejected in `tally`; the others are counted by
    /// whoever uses them.
    pub(super) fn load(
        dir: &Path,
        eval_share: f64,
        seed: u64,
        tally: &mut Tally,
    ) -> Result<PhotoSet, WorldError> {
        let tables = ["captions.jsonl", "qa.jsonl", "awkward.tsv"].map(|name| dir.join(name));
        for path in [dir].into_iter().chain(tables.iter().map(PathBuf::as_path)) {
            if !path.exists() {
                return Err(WorldError::NoPhotos { path: path.to_path_buf() });
            }
        }
        let [captions, questions, awkward] = &tables;
        let mut records: Vec<CaptionRecord> = read_records(captions, tally)?;
        let mut seen = BTreeSet::new();
        records.retain(|record| match usable(dir, &record.file) {
            Ok(()) if !seen.insert(record.file.clone()) => reject(tally, &record.file, "image-listed-twice"),
            Ok(()) => true,
            Err(reason) => reject(tally, &record.file, reason),
        });
        let held_out = hold_out(&records, eval_share, seed);
        let photos: Vec<Photo> = (records.into_iter())
            .map(|CaptionRecord { file, captions }| {
                let part = if held_out.contains(&file) { Part::Eval } else { Part::Train };
                let captions =
                    captions.into_iter().filter(|caption| !caption.text.trim().is_empty()).collect();
                Photo { file, captions, part }
            })
            .collect();
        let mut questions: Vec<PhotoQuestion> = read_records(questions, tally)?;
        questions.retain(|question| {
            let fits =
                |&index: &usize| question.choices.get(index).is_some_and(|choice| *choice == question.answer);
            if !seen.contains(&question.file) {
                return reject(tally, &question.file, "question-without-image");
            }
            question.correct_choice_idx.is_none_or(|index| fits(&index))
                || reject(tally, &question.file, "answer-is-not-the-choice")
        });
        let mut awkward = read_table(awkward)?;
        awkward.retain(|file: &AwkwardFile| {
            usable(dir, &file.file).is_ok() || reject(tally, &file.file, "missing-file")
        });
        Ok(PhotoSet { dir: dir.to_path_buf(), photos, questions, awkward })
    }

    /// The bytes of a file that was listed.
    pub(super) fn read(&self, file: &str) -> Result<Vec<u8>, WorldError> {
        let path = self.dir.join(file);
        std::fs::read(&path).map_err(WorldError::io("read", &path))
    }

    /// The questions about images of one part, in the order of the file, by image in the order of the images.
    pub(super) fn questions_of(&self, part: Part) -> Vec<(&Photo, Vec<&PhotoQuestion>)> {
        let mut by_file: BTreeMap<&str, Vec<&PhotoQuestion>> = BTreeMap::new();
        for question in &self.questions {
            by_file.entry(&question.file).or_default().push(question);
        }
        (self.photos.iter().filter(|photo| photo.part == part))
            .filter_map(|photo| Some((photo, by_file.remove(photo.file.as_str())?)))
            .collect()
    }
}

/// The collection an image belongs to: the directory below `images`, or the first one.
pub(super) fn collection(file: &str) -> &str {
    let mut parts = file.split('/').rev().skip(1);
    parts.next().unwrap_or("root")
}

/// Counts a record that cannot be used; always false, for `retain`.
fn reject(tally: &mut Tally, key: &str, reason: &str) -> bool {
    tally.reject(key, reason);
    false
}

/// Whether a listed file is there, inside the directory, and not too large.
fn usable(dir: &Path, file: &str) -> Result<(), &'static str> {
    if file.is_empty() || !Path::new(file).components().all(|part| matches!(part, Component::Normal(_))) {
        return Err("path-outside-directory");
    }
    match std::fs::metadata(dir.join(file)) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= MAX_FILE_BYTES => Ok(()),
        Ok(_) => Err("file-too-large"),
        Err(_) => Err("missing-file"),
    }
}

/// The same share of every collection.
fn hold_out(records: &[CaptionRecord], eval_share: f64, seed: u64) -> BTreeSet<String> {
    let mut by_collection: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for record in records {
        by_collection.entry(collection(&record.file)).or_default().push(&record.file);
    }
    let mut held_out = BTreeSet::new();
    for (number, files) in by_collection.values_mut().enumerate() {
        files.shuffle(&mut stream(seed, "micro-world/held-out", 0, 0, number as u64));
        held_out.extend(files[..share_of(files.len(), eval_share)].iter().map(|file| (*file).to_owned()));
    }
    held_out
}

/// One record per line; lines that are none are rejected.
fn read_records<T: serde::de::DeserializeOwned>(
    path: &Path,
    tally: &mut Tally,
) -> Result<Vec<T>, WorldError> {
    let text = std::fs::read_to_string(path).map_err(WorldError::io("read", path))?;
    let mut records = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str(line) {
            Ok(record) => records.push(record),
            Err(_) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                tally.reject(format!("{name}:{}", index + 1), "malformed-record");
            }
        }
    }
    Ok(records)
}

fn read_table(path: &Path) -> Result<Vec<AwkwardFile>, WorldError> {
    let wrong = |source| WorldError::Table { path: path.to_path_buf(), source };
    let mut table = csv::ReaderBuilder::new()
        .delimiter(b'\t')
        .quoting(false)
        .flexible(true)
        .from_path(path)
        .map_err(wrong)?;
    table.deserialize().map(|row| row.map_err(wrong)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collections_are_directories() {
        assert_eq!(collection("images/coco/1.jpg"), "coco");
        assert_eq!(collection("awkward/x.png"), "awkward");
        assert_eq!(collection("x.png"), "root");
    }

    #[test]
    fn paths_stay_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        oqvl_shard_io::write_atomic(&dir.path().join("a.png"), b"x").unwrap();
        assert_eq!(usable(dir.path(), "a.png"), Ok(()));
        assert_eq!(usable(dir.path(), "b.png"), Err("missing-file"));
        for outside in ["", "..", "../a.png", "/etc/passwd", "x/../../y"] {
            assert_eq!(usable(dir.path(), outside), Err("path-outside-directory"), "{outside}");
        }
    }
}
