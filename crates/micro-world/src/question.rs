//! Questions about scenes: multiple choice, yes or no, and open with a one- or two-word answer.
//!
//! A model that cannot see scores at chance: options other than the right one are drawn uniformly, the right
//! one's letter is uniform, and yes and no are equally frequent.

use crate::scene::{
    Cell, Color, MAX_OBJECTS, NUMBER_LIMIT, Object, Scene, Shape, WORDS, Writing, random_color, random_shape,
};
use oqvl_stage::Rng;
use rand::Rng as _;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};

/// What a question asks for; the `category` of a multiple-choice benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuestionType {
    /// `what color is the object at the top left?`, or `what color is the circle?` where only one object is one.
    Color,
    /// `what shape is the object at the top left?`, or `what shape is the red object?` where only one is red.
    Shape,
    /// `where is the red circle?`
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
    pub const PERCENT: [u32; 5] = [40, 25, 10, 20, 5];

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

/// How a yes-or-no question is made, and so its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum YesNoKind {
    /// About an object that is there.
    Yes,
    /// About a place where something is, with a random shape and colour that the scene does not have.
    RandomNo,
    /// About the colour that is at the place, in a shape that does not have it.
    AdversarialNo,
}

impl YesNoKind {
    /// Half yes, a quarter each of the two kinds of no, in random order; `count` is even.
    pub(crate) fn balanced(count: usize, rng: &mut Rng) -> Vec<YesNoKind> {
        let mut kinds: Vec<YesNoKind> = (0..count)
            .map(|k| match k % 4 {
                0 | 2 => YesNoKind::Yes,
                1 => YesNoKind::RandomNo,
                _ => YesNoKind::AdversarialNo,
            })
            .collect();
        kinds.shuffle(rng);
        kinds
    }

    pub(crate) fn random(rng: &mut Rng) -> YesNoKind {
        *[YesNoKind::Yes, YesNoKind::Yes, YesNoKind::RandomNo, YesNoKind::AdversarialNo]
            .choose(rng)
            .expect("there are kinds")
    }

    /// `yes` or `no`.
    #[must_use]
    pub fn answer(self) -> &'static str {
        if self == YesNoKind::Yes { "yes" } else { "no" }
    }

    /// A question of this kind: `is there a red circle at the top left?`
    #[must_use]
    pub fn question(self, scene: &Scene, rng: &mut Rng) -> String {
        let object = scene.objects.choose(rng).expect("a scene has an object");
        let (mut shape, mut color) = (object.shape, object.color);
        match self {
            YesNoKind::Yes => {}
            YesNoKind::RandomNo => {
                while scene.contains(shape, color) {
                    (shape, color) = (random_shape(rng), random_color(rng));
                }
            }
            YesNoKind::AdversarialNo => {
                let free: Vec<Shape> =
                    Shape::ALL.into_iter().filter(|shape| !scene.contains(*shape, color)).collect();
                match free.choose(rng) {
                    Some(other) => shape = *other,
                    // Four objects of one colour may have all four shapes: then another colour is as wrong.
                    None => return Self::RandomNo.question(scene, rng),
                }
            }
        }
        format!("is there {} {} at the {}?", color.with_article(), shape.name(), object.cell.name())
    }
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
            question: "what color is the circle?".into(),
            options: ["red", "blue", "green", "orange"].map(str::to_owned),
            answer_idx: 2,
        };
        assert_eq!(question.letter(), "C");
        assert_eq!(
            question.prompt(),
            "what color is the circle?\nA. red\nB. blue\nC. green\nD. orange\n\
             Answer with one of the given choices directly."
        );
        assert_eq!(
            short_answer_prompt("is there a red circle?"),
            "is there a red circle?\nAnswer the question using a single word or phrase."
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
    fn yes_and_no_are_balanced_and_right() {
        for count in [0, 2, 4, 6, 400] {
            let kinds = YesNoKind::balanced(count, &mut stream(0, "test", 0, 0, 1));
            assert_eq!(kinds.iter().filter(|kind| kind.answer() == "yes").count(), count / 2);
        }
        for (scene, mut rng) in scenes() {
            for kind in [YesNoKind::Yes, YesNoKind::RandomNo, YesNoKind::AdversarialNo] {
                let question = kind.question(&scene, &mut rng);
                let there = scene.objects.iter().any(|object| {
                    let (look, place) = (crate::caption::look(object), object.cell.name());
                    question.ends_with(&format!(" {look} at the {place}?"))
                });
                assert_eq!(there, kind.answer() == "yes", "{question} of {scene:?}");
                let color_is_there =
                    scene.objects.iter().any(|object| question.contains(object.color.name()));
                let one_color_has_every_shape = Color::ALL
                    .iter()
                    .any(|&color| Shape::ALL.iter().all(|&shape| scene.contains(shape, color)));
                assert!(kind == YesNoKind::RandomNo || color_is_there || one_color_has_every_shape);
            }
        }
    }
}
