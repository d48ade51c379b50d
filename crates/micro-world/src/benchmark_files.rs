//! Benchmarks and conversations in the public layouts.
//!
//! `eval/multiple_choice.tsv` has the columns of VLMEvalKit's MMBench table, `eval/yes_no.jsonl` the keys of
//! POPE, `eval/vqa_*.json` those of VQAv2, `sft/llava.json` those of LLaVA-665k.

use crate::error::WorldError;
use crate::report::{WorldReport, count};
use crate::world_dir::{WorldDir, write_jsonl};
use base64::Engine as _;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A row of the multiple-choice table.
#[derive(Debug, Clone)]
pub(crate) struct MultipleChoiceRow {
    pub(crate) question: String,
    pub(crate) options: [String; 4],
    /// `A` to `D`.
    pub(crate) answer: &'static str,
    pub(crate) category: String,
    /// MMBench's second level of categories.
    pub(crate) ability: String,
    pub(crate) source: String,
    /// The image file's bytes.
    pub(crate) image: Vec<u8>,
}

const MULTIPLE_CHOICE_HEADER: [&str; 14] = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
];

/// Writes `eval/multiple_choice.tsv`.
pub(crate) fn write_multiple_choice(
    world: &WorldDir,
    rows: &[MultipleChoiceRow],
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    world.create_dir("eval")?;
    let path = world.path("eval/multiple_choice.tsv");
    let wrong = |source| WorldError::Table { path: path.clone(), source };
    let mut table = csv::WriterBuilder::new().delimiter(b'\t').from_writer(Vec::new());
    table.write_record(MULTIPLE_CHOICE_HEADER).map_err(wrong)?;
    for (index, row) in rows.iter().enumerate() {
        let image = base64::engine::general_purpose::STANDARD.encode(&row.image);
        let [a, b, c, d] = &row.options;
        let index = index.to_string();
        let fields: [&str; 14] = [
            &index,
            &row.question,
            "",
            a,
            b,
            c,
            d,
            row.answer,
            &row.category,
            &image,
            &row.source,
            &row.ability,
            "",
            "dev",
        ];
        table.write_record(fields).map_err(wrong)?;
        count(&mut report.multiple_choice, &row.category);
    }
    let bytes = table.into_inner().map_err(|error| WorldError::io("write", &path)(error.into_error()))?;
    world.write("eval/multiple_choice.tsv", &bytes)
}

/// A line of the yes-or-no file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct YesNoLine {
    pub(crate) question_id: u64,
    /// File name in `eval/images`.
    pub(crate) image: String,
    pub(crate) text: String,
    /// `yes` or `no`.
    pub(crate) label: &'static str,
}

/// Writes `eval/yes_no.jsonl`; the images are written with [`write_images`].
pub(crate) fn write_yes_no(
    world: &WorldDir,
    lines: &[YesNoLine],
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    lines.iter().for_each(|line| count(&mut report.yes_no, line.label));
    write_jsonl(&world.path("eval/yes_no.jsonl"), lines)
}

/// An open question.
#[derive(Debug, Clone)]
pub(crate) struct OpenQuestion {
    pub(crate) image_id: u64,
    pub(crate) question: String,
    pub(crate) answer: String,
    pub(crate) question_type: String,
}

impl OpenQuestion {
    /// VQAv2's three kinds of answers.
    fn answer_type(&self) -> &'static str {
        match self.answer.as_str() {
            "yes" | "no" => "yes/no",
            number if number.parse::<f64>().is_ok() => "number",
            _ => "other",
        }
    }
}

/// File name in `eval/images` of the image of open questions: the rule of VQAv2, whose tools know no other.
pub(crate) fn vqa_image_name(image_id: u64) -> String {
    format!("COCO_val2014_{image_id:012}.jpg")
}

/// Writes `eval/vqa_questions.json` and `eval/vqa_annotations.json`: ten annotators who agree.
pub(crate) fn write_vqa(
    world: &WorldDir,
    questions: &[OpenQuestion],
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    const NUM_ANNOTATORS: usize = 10;
    let info = json!({"description": "Open questions of the micro world", "version": "1.0"});
    let license = json!({"name": "MIT OR Apache-2.0", "url": ""});
    let asked: Vec<_> = (questions.iter().enumerate())
        .map(|(id, open)| json!({"image_id": open.image_id, "question": open.question, "question_id": id}))
        .collect();
    let answered: Vec<_> = (questions.iter().enumerate())
        .map(|(id, open)| {
            let answers: Vec<_> = (1..=NUM_ANNOTATORS)
                .map(|answer_id| json!({"answer": open.answer, "answer_confidence": "yes", "answer_id": answer_id}))
                .collect();
            json!({
                "question_type": open.question_type, "multiple_choice_answer": open.answer, "answers": answers,
                "image_id": open.image_id, "answer_type": open.answer_type(), "question_id": id,
            })
        })
        .collect();
    questions.iter().for_each(|open| count(&mut report.open_questions, &open.question_type));
    let files = [
        (
            "eval/vqa_questions.json",
            json!({"info": info, "task_type": "Open-Ended", "data_type": "micro-world", "license": license,
                   "data_subtype": "eval", "questions": asked}),
        ),
        (
            "eval/vqa_annotations.json",
            json!({"info": info, "data_type": "micro-world", "data_subtype": "eval", "license": license,
                   "annotations": answered}),
        ),
    ];
    files.iter().try_for_each(|(name, content)| world.write(name, content.to_string().as_bytes()))
}

/// A conversation of `sft/llava.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// Unique in the file.
    pub id: String,
    /// File name in `sft/images`; none for a conversation without image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Turns of the user and the model, by turns.
    pub conversations: Vec<Message>,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub from: Speaker,
    /// What is said; `<image>` and a line break come first where the image goes.
    pub value: String,
}

/// LLaVA's names of the two speakers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaker {
    /// The user.
    Human,
    /// The model.
    Gpt,
}

impl Conversation {
    /// Questions and answers, about an image if there is one.
    pub(crate) fn new(id: usize, image: Option<String>, turns: Vec<(String, String)>) -> Conversation {
        let mut conversations = Vec::with_capacity(2 * turns.len());
        for (turn, (question, answer)) in turns.into_iter().enumerate() {
            let value = if turn == 0 && image.is_some() { format!("<image>\n{question}") } else { question };
            conversations.push(Message { from: Speaker::Human, value });
            conversations.push(Message { from: Speaker::Gpt, value: answer });
        }
        Conversation { id: format!("{id:09}"), image, conversations }
    }
}

/// Writes `sft/llava.json`; the images are written with [`write_images`].
pub(crate) fn write_llava(
    world: &WorldDir,
    conversations: &[Conversation],
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    report.sft_conversations = conversations.len() as u64;
    report.sft_text_only =
        conversations.iter().filter(|conversation| conversation.image.is_none()).count() as u64;
    let json = serde_json::to_vec_pretty(conversations).expect("strings can be written as JSON");
    world.write("sft/llava.json", &json)
}

/// Writes image files into a directory, several at a time.
pub(crate) fn write_images<'a>(
    world: &WorldDir,
    dir: &str,
    images: &[(String, impl AsRef<[u8]> + Sync + 'a)],
) -> Result<(), WorldError> {
    world.create_dir(dir)?;
    images.par_iter().try_for_each(|(name, bytes)| world.write(&format!("{dir}/{name}"), bytes.as_ref()))
}
