//! Questions about scenes: multiple choice, yes or no, and open with a one- or two-word answer.
//!
//! A model that cannot see scores at chance: options other than the right one are drawn uniformly, the right
//! one's letter is uniform, and yes and no are equally frequent.

use crate::scene::{Cell, Color, MAX_OBJECTS, NUMBER_LIMIT, Object, Scene, Shape, WORDS, Writing};
use oqvl_stage::Rng;
use rand::Rng as _;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};

/// What a question asks for; the `category` of a multiple-choice benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuestionType {
    /// `what color is the object at the top left?`, or `what color is the ring?` where only one object is one.
    Color,
    /// `what shape is the object at the top left?`, or `what shape is the red object?` where only one is red.
    Shape,
    /// `where is the red ring?`
    Position,
    /// `how many objects are there?`
    Count,
    /// `what word is written?` or `what number is written?`
    Reading,
}

impl QuestionType {
    /// Every type.
    pub const ALL: [QuestionType; 5] = [
        QuestionType::Color,
        QuestionType::Shape,
        QuestionType::Position,
        QuestionType::Count,
        QuestionType::Reading,
    ];

    /// Share of each type of [`ALL`](Self::ALL) among questions, in percent.
    pub const PERCENT: [u32; 5] = [35, 30, 10, 20, 5];

    /// The name in benchmark files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            QuestionType::Color => "color",
            QuestionType::Shape => "shape",
            QuestionType::Position => "position",
            QuestionType::Count => "count",
            QuestionType::Reading => "reading",
        }
    }

    /// The coarser group, MMBench's second level: what one must be able to do.
    #[must_use]
    pub fn ability(self) -> &'static str {
        match self {
            QuestionType::Color | QuestionType::Shape => "attribute",
            QuestionType::Position => "localization",
            QuestionType::Count => "counting",
            QuestionType::Reading => "reading",
        }
    }

    /// Types for `count` questions with the shares of [`PERCENT`](Self::PERCENT), in random order.
    pub(crate) fn quota(count: usize, rng: &mut Rng) -> Vec<QuestionType> {
        // Every hundredth is given to a type; question k gets the type of its place in the hundred.
        let hundred: Vec<QuestionType> = (Self::ALL.into_iter().zip(Self::PERCENT))
            .flat_map(|(kind, percent)| std::iter::repeat_n(kind, percent as usize))
            .collect();
        let mut kinds: Vec<QuestionType> = (0..count).map(|k| hundred[k * hundred.len() / count]).collect();
        kinds.shuffle(rng);
        kinds
    }
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What it asks for.
    pub kind: QuestionType,
    /// The question.
    pub text: String,
    /// The answer, one or two words.
    pub answer: String,
    /// Every answer that the question could have, the right one included.
    possible_answers: Vec<String>,
}

impl Question {
    /// A question of the wanted type, if the scene has one with a single right answer.
    #[must_use]
    pub fn about(scene: &Scene, kind: QuestionType, rng: &mut Rng) -> Option<Question> {
        let (text, answer, possible_answers) = match kind {
            QuestionType::Color => {
                let (object, which) = match rng.random_bool(BY_PLACE_SHARE) {
                    true => by_place(scene, rng)?,
                    false => {
                        let object = *scene.uniquely_shaped().collect::<Vec<_>>().choose(rng)?;
                        (object, object.shape.name().to_owned())
                    }
                };
                let colors = Color::ALL.map(|color| color.name().to_owned()).to_vec();
                (format!("what color is the {which}?"), object.color.name().to_owned(), colors)
            }
            QuestionType::Shape => {
                let (object, which) = match rng.random_bool(BY_PLACE_SHARE) {
                    true => by_place(scene, rng)?,
                    false => {
                        let object = *scene.uniquely_colored().collect::<Vec<_>>().choose(rng)?;
                        (object, format!("{} object", object.color.name()))
                    }
                };
                let shapes = Shape::ALL.map(|shape| shape.name().to_owned()).to_vec();
                (format!("what shape is the {which}?"), object.shape.name().to_owned(), shapes)
            }
            QuestionType::Position => {
                let object = scene.objects.choose(rng)?;
                let cells = Cell::all().map(|cell| cell.name().to_owned()).collect();
                (
                    format!("where is the {}?", crate::caption::look(object)),
                    object.cell.name().to_owned(),
                    cells,
                )
            }
            QuestionType::Count => {
                let counts = (1..=MAX_OBJECTS).map(|count| count.to_string()).collect();
                ("how many objects are there?".to_owned(), scene.objects.len().to_string(), counts)
            }
            QuestionType::Reading => {
                let writing = scene.written?.writing;
                let answers = match writing {
                    Writing::Word(_) => WORDS.map(str::to_owned).to_vec(),
                    Writing::Number(_) => (0..NUMBER_LIMIT).map(|number| number.to_string()).collect(),
                };
                (format!("what {} is written?", writing.kind()), writing.text(), answers)
            }
        };
        Some(Question { kind, text, answer, possible_answers })
    }

    /// The question with four options.
    #[must_use]
    pub fn into_multiple_choice(self, rng: &mut Rng) -> MultipleChoice {
        let mut options: Vec<String> =
            self.possible_answers.into_iter().filter(|answer| *answer != self.answer).collect();
        options.shuffle(rng);
        options.truncate(LETTERS.len() - 1);
        let answer_idx = rng.random_range(0..=options.len());
        options.insert(answer_idx, self.answer);
        let options = options.try_into().expect("every question has at least four possible answers");
        MultipleChoice { kind: self.kind, question: self.text, options, answer_idx }
    }

    /// What the user says to get a short answer: the prompt of POPE and VQAv2 style benchmarks.
    #[must_use]
    pub fn prompt(&self) -> String {
        short_answer_prompt(&self.text)
    }
}

/// Share of the colour and shape questions that name the object by its place.
const BY_PLACE_SHARE: f64 = 0.7;

/// A random object, and the words that name it by its place.
fn by_place<'a>(scene: &'a Scene, rng: &mut Rng) -> Option<(&'a Object, String)> {
    let object = scene.objects.choose(rng)?;
    Some((object, format!("object at the {}", object.cell.name())))
}

/// The question, and the request to answer it in a word or two.
#[must_use]
pub fn short_answer_prompt(question: &str) -> String {
    format!("{question}\nAnswer the question using a single word or phrase.")
}

/// A question with four options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultipleChoice {
    /// What it asks for.
    pub kind: QuestionType,
    /// The question.
    pub question: String,
    /// Four different options.
    pub options: [String; 4],
    /// Which of them is right.
    pub answer_idx: usize,
}

/// What the user says to have an image described.
pub const DESCRIBE_PROMPT: &str = "Describe the image.";

/// The letters of options.
pub const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// The question, its options, and the request to answer with one of them. There are four options at most.
#[must_use]
pub fn multiple_choice_prompt(question: &str, options: &[String]) -> String {
    let mut prompt = format!("{question}\n");
    for (letter, option) in LETTERS.iter().zip(options) {
        prompt += &format!("{letter}. {option}\n");
    }
    prompt + "Answer with one of the given choices directly."
}

impl MultipleChoice {
    /// The letter of the right option.
    #[must_use]
    pub fn letter(&self) -> &'static str {
        LETTERS[self.answer_idx]
    }

    /// The text of the right option.
    #[must_use]
    pub fn answer(&self) -> &str {
        &self.options[self.answer_idx]
    }

    /// What the user says: the prompt of MMBench style benchmarks for a model that answers with the option's text.
    #[must_use]
    pub fn prompt(&self) -> String {
        multiple_choice_prompt(&self.question, &self.options)
    }
}

/// Whether the object at a place is of a colour or a shape: `is the object at the top left red?`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YesNoQuestion {
    /// The question.
    pub text: String,
    /// The colour or shape that is asked about.
    claimed: &'static str,
    /// The colour or shape that the object has.
    seen: &'static str,
}

impl YesNoQuestion {
    /// Share of the questions that are about colours; the rest is about shapes.
    const COLOR_SHARE: f64 = 0.5;

    /// A question to which the answer is yes (`holds`) or no. Half of the wrong claims, as far as the scene allows, are
    /// true of another object: POPE's adversarial case.
    #[must_use]
    pub fn about(scene: &Scene, holds: bool, rng: &mut Rng) -> YesNoQuestion {
        let object = scene.objects.choose(rng).expect("a scene has an object");
        let place = object.cell.name();
        let claim = |seen, all: Vec<&'static str>, there: Vec<&'static str>, rng: &mut Rng| match holds {
            true => seen,
            false => wrong_value(seen, all, there, rng),
        };
        if rng.random_bool(Self::COLOR_SHARE) {
            let seen = object.color.name();
            let there = scene.objects.iter().map(|other| other.color.name()).collect();
            let claimed = claim(seen, Color::ALL.map(Color::name).to_vec(), there, rng);
            YesNoQuestion { text: format!("is the object at the {place} {claimed}?"), claimed, seen }
        } else {
            let seen = object.shape.name();
            let there = scene.objects.iter().map(|other| other.shape.name()).collect();
            let claimed = claim(seen, Shape::ALL.map(Shape::name).to_vec(), there, rng);
            YesNoQuestion { text: format!("is the object at the {place} a {claimed}?"), claimed, seen }
        }
    }

    /// `yes` or `no`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        if self.claimed == self.seen { "yes" } else { "no" }
    }

    /// What fine-tuning teaches to answer: the reason first, `claimed red, seen blue: no`. A model this small learns to
    /// compare two words that it has just written; to compare a word of the question with something seen stayed at chance
    /// in every wording.
    #[must_use]
    pub fn answer(&self) -> String {
        format!("claimed {}, seen {}: {}", self.claimed, self.seen, self.label())
    }

    /// What the user says: the prompt of POPE style benchmarks.
    #[must_use]
    pub fn prompt(&self) -> String {
        short_answer_prompt(&self.text)
    }
}

/// A value that the object does not have: half of the time that of another object.
fn wrong_value(
    own: &'static str,
    mut all: Vec<&'static str>,
    mut there: Vec<&'static str>,
    rng: &mut Rng,
) -> &'static str {
    all.retain(|&value| value != own);
    there.retain(|&value| value != own);
    let values = if !there.is_empty() && rng.random_bool(0.5) { there } else { all };
    values.choose(rng).expect("there are several colours and shapes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::Split;
    use oqvl_stage::stream;
    use std::collections::BTreeSet;

    fn scenes() -> impl Iterator<Item = (Scene, Rng)> {
        (0..1500).map(|index| (Scene::generate(5, Split::Sft, index), stream(5, "test", 0, 0, index)))
    }

    fn multiple_choice() -> Vec<(Scene, MultipleChoice)> {
        let mut all = Vec::new();
        for (scene, mut rng) in scenes() {
            for kind in QuestionType::ALL {
                if let Some(question) = Question::about(&scene, kind, &mut rng) {
                    all.push((scene.clone(), question.into_multiple_choice(&mut rng)));
                }
            }
        }
        all
    }

    #[test]
    fn prompts_are_the_evaluators() {
        let question = MultipleChoice {
            kind: QuestionType::Color,
            question: "what color is the ring?".into(),
            options: ["red", "blue", "green", "orange"].map(str::to_owned),
            answer_idx: 2,
        };
        assert_eq!(question.letter(), "C");
        assert_eq!(
            question.prompt(),
            "what color is the ring?\nA. red\nB. blue\nC. green\nD. orange\n\
             Answer with one of the given choices directly."
        );
        assert_eq!(
            short_answer_prompt("is there a red ring?"),
            "is there a red ring?\nAnswer the question using a single word or phrase."
        );
    }

    #[test]
    fn letters_are_uniform_and_options_differ() {
        let questions = multiple_choice();
        for kind in QuestionType::ALL {
            let mut counts = [0; 4];
            for (_, question) in questions.iter().filter(|(_, question)| question.kind == kind) {
                counts[question.answer_idx] += 1;
                assert_eq!(question.options.iter().collect::<BTreeSet<_>>().len(), 4, "{question:?}");
            }
            // Four standard deviations of a binomial with p = 1/4.
            let total = f64::from(counts.iter().sum::<i32>());
            let tolerance = 4.0 * (total * 0.25 * 0.75).sqrt();
            assert!(
                counts.iter().all(|&count| (f64::from(count) - total / 4.0).abs() < tolerance),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn answers_are_right() {
        for (scene, question) in multiple_choice() {
            let answer = question.options[question.answer_idx].as_str();
            let right = match question.kind {
                QuestionType::Color => scene.objects.iter().any(|object| {
                    let named = [object.shape.name(), object.cell.name()];
                    named.iter().any(|name| question.question.ends_with(&format!("the {name}?")))
                        && object.color.name() == answer
                }),
                QuestionType::Shape => scene.objects.iter().any(|object| {
                    let by_color = format!("the {} object?", object.color.name());
                    let by_place = format!("at the {}?", object.cell.name());
                    (question.question.ends_with(&by_color) || question.question.ends_with(&by_place))
                        && object.shape.name() == answer
                }),
                QuestionType::Position => scene.objects.iter().any(|object| {
                    question.question.contains(&crate::caption::look(object)) && object.cell.name() == answer
                }),
                QuestionType::Count => answer == scene.objects.len().to_string(),
                QuestionType::Reading => {
                    scene.written.is_some_and(|written| written.writing.text() == answer)
                }
            };
            assert!(right, "{question:?} of {scene:?}");
        }
    }

    #[test]
    fn quotas_are_exact_for_hundreds() {
        let kinds = QuestionType::quota(400, &mut stream(0, "test", 0, 0, 0));
        for (kind, percent) in QuestionType::ALL.into_iter().zip(QuestionType::PERCENT) {
            assert_eq!(kinds.iter().filter(|&&other| other == kind).count(), 4 * percent as usize);
        }
        for count in [0, 1, 3] {
            assert_eq!(QuestionType::quota(count, &mut stream(0, "test", 0, 0, 0)).len(), count);
        }
    }

    #[test]
    fn claims_hold_or_do_not_as_wanted() {
        let (mut num_adversarial, mut num_wrong) = (0, 0);
        for (scene, mut rng) in scenes() {
            for holds in [true, false] {
                let question = YesNoQuestion::about(&scene, holds, &mut rng);
                let at_place = |object: &&Object| {
                    question.text.starts_with(&format!("is the object at the {} ", object.cell.name()))
                };
                let is_claimed = |object: &&Object| {
                    question.text.ends_with(&format!(" {}?", object.color.name()))
                        || question.text.ends_with(&format!(" a {}?", object.shape.name()))
                };
                let object = scene.objects.iter().find(at_place).expect("the place has an object");
                assert_eq!(is_claimed(&object), holds, "{question:?} of {scene:?}");
                assert!([object.color.name(), object.shape.name()].contains(&question.seen));
                assert!(question.answer().ends_with(if holds { ": yes" } else { ": no" }));
                if !holds && scene.objects.len() > 1 {
                    num_wrong += 1;
                    num_adversarial += usize::from(scene.objects.iter().any(|object| is_claimed(&object)));
                }
            }
        }
        // Half by intention where other objects differ, and a few more by chance.
        let share = f64::from(num_adversarial as u32) / f64::from(num_wrong);
        assert!((0.45..0.75).contains(&share), "{share}");
    }
}
