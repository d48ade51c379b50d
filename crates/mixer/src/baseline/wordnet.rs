//! Whether a word names an object: its first sense in WordNet is a synset of ImageNet-21k.
//!
//! Words are looked up as NLTK's `wordnet.synsets` does, which the original calls: nouns, then verbs, adjectives and
//! adverbs; of each the word itself and, from the list of exceptions or by cutting endings, its base forms.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use oqvl_stage::RunContext;

use super::asset::{problem, read_text, required};
use crate::MixerError;
use crate::baseline_config::BaselineAssets;

/// A part of speech: the ending of its files, and which endings become which.
struct PartOfSpeech {
    ending: &'static str,
    substitutions: &'static [(&'static str, &'static str)],
}

/// Source: `MORPHOLOGICAL_SUBSTITUTIONS` in NLTK's `corpus/reader/wordnet.py`, which follows WordNet's `morphy`.
const PARTS_OF_SPEECH: [PartOfSpeech; 4] = [
    PartOfSpeech {
        ending: "noun",
        substitutions: &[
            ("s", ""),
            ("ses", "s"),
            ("ves", "f"),
            ("xes", "x"),
            ("zes", "z"),
            ("ches", "ch"),
            ("shes", "sh"),
            ("men", "man"),
            ("ies", "y"),
        ],
    },
    PartOfSpeech {
        ending: "verb",
        substitutions: &[
            ("s", ""),
            ("ies", "y"),
            ("es", "e"),
            ("es", ""),
            ("ed", "e"),
            ("ed", ""),
            ("ing", "e"),
            ("ing", ""),
        ],
    },
    PartOfSpeech { ending: "adj", substitutions: &[("er", ""), ("est", ""), ("er", "e"), ("est", "e")] },
    PartOfSpeech { ending: "adv", substitutions: &[] },
];

/// The senses of words, and which of them are objects.
#[derive(Debug)]
pub(super) struct WordNet {
    /// By part of speech: the first sense of every lemma.
    first_senses: Vec<HashMap<String, u64>>,
    /// By part of speech: base forms of irregular words.
    exceptions: Vec<HashMap<String, Vec<String>>>,
    objects: HashSet<u64>,
}

impl WordNet {
    pub(super) fn open(assets: &BaselineAssets, run: &RunContext) -> Result<WordNet, MixerError> {
        let dir = required(assets.wordnet.as_ref(), run);
        let mut wordnet = WordNet {
            first_senses: Vec::new(),
            exceptions: Vec::new(),
            objects: read_ids(&required(assets.wordnet_ids.as_ref(), run))?,
        };
        for part in &PARTS_OF_SPEECH {
            wordnet.first_senses.push(read_index(&dir.join(format!("index.{}", part.ending)))?);
            wordnet.exceptions.push(read_exceptions(&dir.join(format!("{}.exc", part.ending)))?);
        }
        Ok(wordnet)
    }

    /// Whether the first sense of `word` is an object. As in the original, senses are compared by offset alone.
    pub(super) fn is_object(&self, word: &str) -> bool {
        self.first_sense(&word.to_lowercase()).is_some_and(|sense| self.objects.contains(&sense))
    }

    fn first_sense(&self, word: &str) -> Option<u64> {
        (0..PARTS_OF_SPEECH.len()).find_map(|part| self.first_form(word, part))
    }

    /// The first sense of the first form of `word` that is a lemma.
    fn first_form(&self, word: &str, part: usize) -> Option<u64> {
        let senses = &self.first_senses[part];
        let known = |forms: &[String]| forms.iter().find_map(|form| senses.get(form)).copied();
        if let Some(sense) = senses.get(word) {
            return Some(*sense);
        }
        if let Some(forms) = self.exceptions[part].get(word) {
            return known(forms);
        }
        let mut forms = shortened(&[word.to_owned()], part);
        while !forms.is_empty() {
            if let Some(sense) = known(&forms) {
                return Some(sense);
            }
            forms = shortened(&forms, part);
        }
        None
    }
}

/// The forms with their endings replaced.
fn shortened(forms: &[String], part: usize) -> Vec<String> {
    let replaced = |form: &String| {
        let form = form.clone();
        let substitutions = PARTS_OF_SPEECH[part].substitutions.iter();
        substitutions.filter_map(move |(old, new)| Some(form.strip_suffix(old)?.to_owned() + new))
    };
    forms.iter().flat_map(replaced).collect()
}

/// The first sense of every lemma of an `index.*` file: `lemma pos synset_cnt p_cnt [symbol...] sense_cnt tagsense_cnt
/// offset [offset...]` (WordNet 3.0, wndb(5WN)); lines of the licence begin with a blank.
fn read_index(path: &Path) -> Result<HashMap<String, u64>, MixerError> {
    let mut senses = HashMap::new();
    for (number, line) in read_text(path)?.lines().enumerate().filter(|(_, line)| !line.starts_with(' ')) {
        let mut fields = line.split_whitespace();
        let mut parse = || {
            let lemma = fields.next()?;
            let num_pointers: usize = fields.nth(2)?.parse().ok()?;
            let offset = fields.nth(num_pointers + 2)?.parse().ok()?;
            Some((lemma.to_owned(), offset))
        };
        let (lemma, offset) = parse()
            .ok_or_else(|| problem(path, &format!("line {} is no entry of a WordNet index", number + 1)))?;
        senses.insert(lemma, offset);
    }
    Ok(senses)
}

/// Irregular words with their base forms: `word form [form...]`.
fn read_exceptions(path: &Path) -> Result<HashMap<String, Vec<String>>, MixerError> {
    let mut exceptions = HashMap::new();
    for line in read_text(path)?.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        if let Some(word) = words.next() {
            exceptions.insert(word, words.collect());
        }
    }
    Ok(exceptions)
}

/// Offsets, a line each, with or without the letter of the part of speech before them.
fn read_ids(path: &Path) -> Result<HashSet<u64>, MixerError> {
    let text = read_text(path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let parse = |line: &str| {
        let digits = line.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        digits.parse().map_err(|_| problem(path, &format!("`{line}` is no synset")))
    };
    lines.map(parse).collect()
}
