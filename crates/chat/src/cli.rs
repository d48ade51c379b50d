//! The command line.

use crate::ChatError;
use clap::{Parser, ValueEnum};
use oqvl_model::{GenerateConfig, Sampling, VlmNames};
use oqvl_stage::ModelFlags;
use oqvl_text_prep::ChatTemplate;
use std::path::PathBuf;

/// How a conversation is written for the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Template {
    /// What Open-Qwen2VL was fine-tuned with: in the first question, the token after an image is left out.
    Reference,
    /// Qwen2.5's own chat template.
    Qwen,
    /// The text as it is after `<s>`: for base models, and as the reference's example asks. Every question stands alone.
    Raw,
}

impl From<ChatTemplate> for Template {
    fn from(template: ChatTemplate) -> Self {
        match template {
            ChatTemplate::Reference => Self::Reference,
            ChatTemplate::Qwen => Self::Qwen,
        }
    }
}

/// What was typed.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "oqvl-chat",
    version,
    about = "Asks a vision-language model about images; without a question, line by line",
    after_help = "In a session: /image PATH adds an image to the next question, /reset begins anew, /quit or Ctrl-D ends, \
                  Ctrl-C ends an answer."
)]
pub struct Request {
    /// The model and what completes it.
    #[command(flatten)]
    pub model: ModelFlags,
    /// Image for the (first) question; may be given many times
    #[arg(long = "image", value_name = "FILE")]
    pub images: Vec<PathBuf>,
    /// How the conversation is written for the model; if not given, as the model was fine-tuned, as far as its folder says
    #[arg(long, value_enum)]
    pub template: Option<Template>,
    /// Longest answer
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub max_new_tokens: usize,
    /// Draws at this temperature, from 1e-6 to 1e6; without any of the four flags the most probable token is taken
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Draws among the K most probable tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draws among the most probable tokens that reach probability P
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Draws from this seed (0 if not given)
    #[arg(long)]
    pub seed: Option<u64>,
    /// Makes tokens that have occurred less probable (above 1) or more (below), from 1e-3 to 1e3
    #[arg(long, value_name = "PENALTY")]
    pub repetition_penalty: Option<f64>,
    /// Ends an answer before this text, which may be a special token; may be given many times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Tells how probable each of these is as the first token of the answer, among them, instead of an answer
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    pub probabilities: Vec<String>,
    /// The question, with an `<image>` where each image goes; without any, they come before it
    pub question: Option<String>,
}

impl Request {
    /// The model and what completes it.
    #[must_use]
    pub fn names(&self) -> VlmNames<'_> {
        VlmNames {
            model: &self.model.model,
            vision_tower: self.model.vision_tower.as_deref(),
            language_model: self.model.language_model.as_deref(),
        }
    }

    /// How answers are generated; `stop_ids` end them.
    #[must_use]
    pub fn generation(&self, stop_ids: Vec<i64>) -> GenerateConfig {
        let draws =
            self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some() || self.seed.is_some();
        let sampling = match draws {
            false => Sampling::Greedy,
            true => Sampling::Random {
                temperature: self.temperature.unwrap_or(1.0),
                top_k: self.top_k,
                top_p: self.top_p,
                seed: self.seed.unwrap_or(0),
            },
        };
        GenerateConfig {
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: 0,
            stop_ids,
            repetition_penalty: self.repetition_penalty,
            sampling,
        }
    }

    /// Checks what the types cannot.
    fn validate(&self) -> Result<(), ChatError> {
        let wrong = |what: &str| Err(ChatError::Request(what.to_owned()));
        self.generation(Vec::new()).validate().map_err(|error| ChatError::Request(error.to_string()))?;
        if self.max_new_tokens == 0 {
            return wrong("--max-new-tokens must be at least 1");
        }
        if self.stop.iter().any(String::is_empty) {
            return wrong("--stop: the text is empty");
        }
        if !self.probabilities.is_empty() && self.question.is_none() {
            return wrong("--probabilities asks for one question, which is missing");
        }
        if self.question.as_ref().is_some_and(|question| question.trim().is_empty()) {
            return wrong("the question is empty");
        }
        Ok(())
    }
}

/// Parses the command line; `--help` and wrong flags end the process as clap does (0 and 2).
pub(crate) fn parse() -> Result<Request, ChatError> {
    let request = Request::parse();
    request.validate()?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn request(args: &[&str]) -> Result<Request, String> {
        let all = ["oqvl-chat", "--model", "m"].iter().chain(args);
        let request = Request::try_parse_from(all).map_err(|error| error.to_string())?;
        request.validate().map_err(|error| error.to_string())?;
        Ok(request)
    }

    #[test]
    fn the_command_is_well_formed() {
        Request::command().debug_assert();
    }

    #[test]
    fn any_flag_that_speaks_of_drawing_makes_it_draw() {
        let sampling = |args: &[&str]| request(args).unwrap().generation(vec![]).sampling;
        assert_eq!(sampling(&[]), Sampling::Greedy);
        assert_eq!(sampling(&["--repetition-penalty", "1.1"]), Sampling::Greedy);
        let random = |temperature, top_k, top_p, seed| Sampling::Random { temperature, top_k, top_p, seed };
        assert_eq!(sampling(&["--temperature", "0.7"]), random(0.7, None, None, 0));
        assert_eq!(sampling(&["--top-k", "20"]), random(1.0, Some(20), None, 0));
        assert_eq!(sampling(&["--top-p", "0.8", "--seed", "3"]), random(1.0, None, Some(0.8), 3));
        assert_eq!(sampling(&["--seed", "4"]), random(1.0, None, None, 4));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (args, what) in [
            (&["--temprature", "1"][..], "--temperature"),
            (&["--template", "chatml"], "reference, qwen, raw"),
            (&["--temperature", "0"], "temperature must be"),
            (&["--top-p", "1.5"], "top_p"),
            (&["--max-new-tokens", "0"], "--max-new-tokens"),
            (&["--stop", ""], "--stop"),
            (&["--probabilities", "A,B"], "--probabilities"),
            (&[" "], "question is empty"),
        ] {
            let error = request(args).unwrap_err();
            assert!(error.contains(what), "{args:?}: {error}");
        }
        let fine =
            request(&["--probabilities", "A,B", "--image", "a.jpg", "--image", "b.jpg", "Which?"]).unwrap();
        assert_eq!((fine.probabilities.len(), fine.images.len()), (2, 2));
    }
}
