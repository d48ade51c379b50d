//! The embedded data source: a world whose truth is known, served over real HTTP.
//!
//! The paper starts from the open web and from public checkpoints. This crate stands in for both where there
//! is neither: the stage [`MicroWorld`] writes a *world directory*, and [`WorldServer`] (binary
//! `oqvl-world-server`) serves it with all its faults. Because the truth about every URL is in `truth.jsonl`,
//! a report can say what no web-scale run can: the precision and recall of each filter, and what became of
//! every broken link.
//!
//! The nouns:
//!
//! * a [`Scene`](scene::Scene) is one to four coloured shapes, and perhaps a word or a number, on a grid of
//!   four cells; a pure function of seed, [`Split`](scene::Split) and index. Splits share no scene, so the
//!   benchmarks are held out by construction;
//! * a [`CaptionStyle`](caption::CaptionStyle) is a way to describe it, a [`Question`](question::Question)
//!   something to ask about it;
//! * a [`Pair`](pair::Pair) is a caption with its [`PairClass`](pair::PairClass) (clean, mismatched, subtle,
//!   vague, boilerplate) and the four [`Scores`](pair::Scores) of the MLM-Filter that it deserves;
//! * a [`Fault`] is what is wrong with a URL, a [`Route`] what the server answers, a [`TruthRecord`] what is
//!   known.
//!
//! ```
//! use oqvl_micro_world::caption::{CaptionStyle, caption};
//! use oqvl_micro_world::question::{Question, QuestionType};
//! use oqvl_micro_world::scene::{Canvas, Scene, Split, draw};
//! use oqvl_micro_world::{MicroWorld, SyntheticConfig, WorldConfig, WorldServer};
//! use oqvl_stage::{RunContext, Stage, stream};
//!
//! // A scene, its picture, a caption and a question.
//! let scene = Scene::generate(7, Split::Web, 0);
//! assert_eq!(draw(&scene, Canvas::default()).dimensions(), (96, 96));
//! let mut rng = stream(7, "example", 0, 0, 0);
//! println!("{}", caption(&scene, CaptionStyle::Full, &mut rng));
//! let question = Question::about(&scene, QuestionType::Count, &mut rng).expect("objects can always be
//! counted"); assert_eq!(question.answer, scene.objects.len().to_string());
//!
//! // A small world of 64 URLs, and its server.
//! let config = SyntheticConfig {
//!     num_urls: 64,
//!     mismatched_share: 0.14,
//!     subtle_share: 0.02,
//!     vague_share: 0.08,
//!     boilerplate_share: 0.10,
//!     near_duplicate_share: 0.02,
//!     duplicate_share: 0.02,
//!     fault_share: 0.004,
//!     num_siglip_pairs: 2,
//!     num_mlm_filter_pairs: 2,
//!     num_text_documents: 2,
//!     num_sft_conversations: 2,
//!     num_multiple_choice: 2,
//!     num_yes_no: 2,
//!     num_open_questions: 2,
//! };
//! let work_dir = tempfile::tempdir()?;
//! let run = RunContext::for_test::<MicroWorld>(work_dir.path(), 7)?;
//! let report = MicroWorld::run(&WorldConfig::Synthetic(config), &run)?;
//! assert_eq!((report.tally.kept, report.faults["hanging"]), (64, 2));
//! let server = WorldServer::start(&run.out_dir, 0)?;
//! assert_eq!(server.hosts()["a.micro-world.test"], server.address());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The world directory
//! | path | content |
//! |---|---|
//! | `urls.jsonl` | what a fetcher sees: [`UrlRecord`] |
//! | `truth.jsonl` | what is really there: [`TruthRecord`], line by line with `urls.jsonl` |
//! | `routes.jsonl`, `images/*.tar` | what the server answers: [`Route`], and the bodies |
//! | `corpora/siglip/*.tar` | clean pairs (`jpg`, `json`, `txt`) |
//! | `corpora/mlm-filter/*.tar` | pairs of every class, with `"scores"` in the `json` |
//! | `corpora/text.jsonl` | one `{"text"}` per document |
//! | `sft/llava.json`, `sft/images/` | conversations in the layout of LLaVA-665k |
//! | `eval/multiple_choice.tsv` | VLMEvalKit's MMBench table |
//! | `eval/yes_no.jsonl`, `eval/images/` | POPE's lines |
//! | `eval/vqa_questions.json`, `eval/vqa_annotations.json` | VQAv2's files; images `COCO_val2014_{id:012}.jpg` |
//!
//! With `source = "photos"` the same files are made from a directory of real images.
//!
//! Left to others: fetching (`data-fetch`), training on the corpora (`bootstrap`), judging (`evaluator`,
//! `report`).

pub mod caption;
pub mod pair;
pub mod question;
pub mod scene;

mod benchmark_files;
mod config;
mod encode;
mod error;
mod photos;
mod phrases;
mod records;
mod report;
mod server;
mod stage;
mod synthetic;
mod world_dir;

pub use benchmark_files::{Conversation, Message, Speaker};
pub use config::{PhotosConfig, SyntheticConfig, WorldConfig};
pub use encode::PictureFormat;
pub use error::WorldError;
pub use records::{Answer, BodyRef, Delivery, Fate, Fault, Route, TruthRecord, UrlRecord};
pub use report::WorldReport;
pub use server::WorldServer;
pub use stage::MicroWorld;
pub use world_dir::WorldDir;

#[cfg(test)]
mod tests;
