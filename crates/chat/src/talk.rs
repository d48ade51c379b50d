//! One question, its probabilities, or a session.

use crate::cli::Request;
use crate::conversation::Conversation;
use crate::error::ChatError;
use crate::{picture, voice};
use oqvl_model::{AnswerEnd, Event, Prompt, Session, VlmCheckpoint, single_tokens};
use oqvl_stage::{tell, with_causes};
use std::io::{BufRead, IsTerminal as _, Read as _, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Longest line of a session: far beyond what any model reads, far below what memory holds.
const MAX_LINE_BYTES: u64 = 1 << 20;

const GREETING: &str = "/image PATH adds an image to the next question, /reset begins anew, /quit or Ctrl-D ends, Ctrl-C ends an answer.";

/// What is said where the reference's template takes more than a line feed from a question.
const LOSS: &str = "as in its fine-tuning, the reference template leaves out the token after each <image> of the first question; \
                    with a new line after it nothing else is lost";

/// The names of commands, for what looks like one and is none.
const COMMANDS: &str = "/image PATH, /reset, /help, /quit";

/// Answers one question on standard output.
pub(crate) fn answer_once(
    request: &Request,
    checkpoint: &VlmCheckpoint,
    question: &str,
    mut conversation: Conversation,
) -> Result<(), ChatError> {
    let never = AtomicBool::new(false);
    let mut speaker = Speaker::new(request, checkpoint, &never);
    speaker.answer(&mut conversation, question)
}

/// Tells how probable each text is as the first token: a line each on standard output, text and number.
pub(crate) fn tell_probabilities(
    request: &Request,
    checkpoint: &VlmCheckpoint,
    question: &str,
    conversation: &Conversation,
) -> Result<(), ChatError> {
    let ids = single_tokens(&checkpoint.tokenizer, &request.probabilities)
        .map_err(|error| ChatError::Request(format!("--probabilities: {error}")))?;
    let (prompt, _) = conversation.ask(&checkpoint.tokenizer, question)?;
    room_for_answer(checkpoint, &prompt)?;
    let rows = checkpoint.vlm.next_token_probabilities(&[prompt], &ids)?;
    let mut stdout = std::io::stdout().lock();
    for (text, probability) in request.probabilities.iter().zip(rows.iter().flatten()) {
        writeln!(stdout, "{text}\t{probability:.6}").map_err(unwritten)?;
    }
    Ok(())
}

/// Answers standard input line by line.
pub(crate) fn converse(
    request: &Request,
    checkpoint: &VlmCheckpoint,
    mut conversation: Conversation,
) -> Result<(), ChatError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let mut speaker = Speaker::new(request, checkpoint, &interrupted);
    let prompts = std::io::stdin().is_terminal();
    if prompts {
        // From here on and for a person alone; before, and where lines come from a pipe, Ctrl-C ends the program.
        signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&interrupted))
            .map_err(|source| ChatError::Io { what: "Ctrl-C cannot be watched for", source })?;
        tell(GREETING);
    }
    let mut stdin = std::io::stdin().lock();
    loop {
        if prompts {
            voice::show("> ");
        }
        let line = match read_line(&mut stdin)? {
            Line::End => return Ok(()),
            Line::Unusable(why) => {
                tell(why);
                continue;
            }
            Line::Text(line) => line,
        };
        let outcome = match Input::of(line.trim()) {
            Input::Nothing => Ok(()),
            Input::Quit => return Ok(()),
            Input::Help => {
                tell(GREETING);
                Ok(())
            }
            Input::Reset => {
                conversation.reset();
                Ok(())
            }
            Input::Image(path) => picture::read(Path::new(path)).map(|image| {
                conversation.add_image(picture::pixels(&image, checkpoint.vlm.image_size()));
            }),
            Input::Unknown(command) => {
                tell(&format!("`{command}` is no command: there are {COMMANDS}"));
                Ok(())
            }
            Input::Question(question) => speaker.answer(&mut conversation, question),
        };
        match outcome {
            Err(error @ ChatError::Io { .. }) => return Err(error),
            Err(error @ ChatError::PromptTooLong { .. }) => {
                tell(&format!("{error}; /reset begins anew"));
            }
            Err(error) => tell(&with_causes(&error)),
            Ok(()) => {}
        }
    }
}

/// A line of a session.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Text(String),
    /// Why it cannot be used.
    Unusable(&'static str),
    End,
}

fn read_line(input: &mut impl BufRead) -> Result<Line, ChatError> {
    let unread = |source| ChatError::Io { what: "standard input cannot be read", source };
    let mut line = Vec::new();
    input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(unread)?;
    if line.is_empty() {
        return Ok(Line::End);
    }
    if line.len() as u64 == MAX_LINE_BYTES && line.last() != Some(&b'\n') {
        input.skip_until(b'\n').map_err(unread)?;
        return Ok(Line::Unusable("a line of more than 1 MiB is left out"));
    }
    Ok(String::from_utf8(line).map_or(Line::Unusable("a line that is not UTF-8 is left out"), Line::Text))
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Input<'a> {
    Nothing,
    Question(&'a str),
    Image(&'a str),
    Reset,
    Help,
    Quit,
    Unknown(&'a str),
}

impl<'a> Input<'a> {
    fn of(line: &'a str) -> Self {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, rest.trim()) {
            ("", _) => Self::Nothing,
            ("/image", path) if !path.is_empty() => Self::Image(path),
            ("/reset", "") => Self::Reset,
            ("/help", "") => Self::Help,
            ("/quit", "") => Self::Quit,
            _ if line.starts_with('/') => Self::Unknown(line),
            _ => Self::Question(line),
        }
    }
}

/// Answers questions on standard output, as their text comes.
struct Speaker<'a> {
    request: &'a Request,
    checkpoint: &'a VlmCheckpoint,
    session: Session<'a>,
    interrupted: &'a AtomicBool,
}

impl<'a> Speaker<'a> {
    fn new(request: &'a Request, checkpoint: &'a VlmCheckpoint, interrupted: &'a AtomicBool) -> Self {
        let session = Session::new(&checkpoint.vlm, &checkpoint.tokenizer);
        Self { request, checkpoint, session, interrupted }
    }

    /// Answers, and keeps question and answer, as far as it came.
    fn answer(&mut self, conversation: &mut Conversation, question: &str) -> Result<(), ChatError> {
        let (prompt, question) = conversation.ask(&self.checkpoint.tokenizer, question)?;
        let room = room_for_answer(self.checkpoint, &prompt)?;
        if conversation.loses_text(&question) {
            tell(LOSS);
        }
        let mut generation = self.request.generation(vec![self.checkpoint.tokenizer.eos_id()]);
        generation.max_new_tokens = generation.max_new_tokens.min(room);
        self.interrupted.store(false, Ordering::Relaxed);
        let interrupted = self.interrupted;
        let mut page = Page::new(std::io::stdout().lock());
        let answer = self.session.answer(&prompt, &generation, &self.request.stop, |event| {
            match event {
                Event::Reading { done, of } if done < of => voice::show(&format!("\rreading {done}/{of} ")),
                Event::Reading { .. } => voice::show("\r\x1b[K"),
                Event::Text(text) => page.write(text),
            }
            match interrupted.load(Ordering::Relaxed) || page.broken.is_some() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        page.finish()?;
        match answer.end {
            AnswerEnd::Interrupted => tell("(stopped)"),
            AnswerEnd::MaxNewTokens => {
                tell(&format!("(cut after {} tokens)", generation.max_new_tokens));
            }
            AnswerEnd::StopId | AnswerEnd::StopString => {}
        }
        conversation.keep(question, answer.text.trim());
        Ok(())
    }
}

/// Positions that a prompt leaves for its answer, at least 1.
fn room_for_answer(checkpoint: &VlmCheckpoint, prompt: &Prompt) -> Result<usize, ChatError> {
    let (vlm, images) = (&checkpoint.vlm, prompt.images.len());
    let len = oqvl_text_prep::expanded_len(prompt.input_ids.len(), images, vlm.num_image_tokens());
    let max = vlm.config().text_config.max_position_embeddings;
    // The last token of an answer takes no position.
    match (max + 1).checked_sub(len) {
        Some(room) if room > 0 => Ok(room),
        _ => Err(ChatError::PromptTooLong { len, max }),
    }
}

/// An answer as it is written: without the white space around it (Python's `strip` in the reference), with one newline.
struct Page<W> {
    out: W,
    /// White space that is written if something follows.
    held: String,
    has_begun: bool,
    broken: Option<std::io::Error>,
}

impl<W: Write> Page<W> {
    fn new(out: W) -> Self {
        Self { out, held: String::new(), has_begun: false, broken: None }
    }

    fn write(&mut self, text: &str) {
        let text = if self.has_begun { text } else { text.trim_start() };
        let settled = text.trim_end();
        if !settled.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.has_begun = true;
            let written = write!(self.out, "{held}{settled}").and_then(|()| self.out.flush());
            self.broken = self.broken.take().or(written.err());
        }
        if self.has_begun {
            self.held += &text[settled.len()..];
        }
    }

    fn finish(mut self) -> Result<(), ChatError> {
        let written = match self.broken {
            Some(error) => Err(error),
            None => writeln!(self.out).and_then(|()| self.out.flush()),
        };
        written.map_err(unwritten)
    }
}

fn unwritten(source: std::io::Error) -> ChatError {
    ChatError::Io { what: "the answer cannot be written", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_no_white_space_around_it() {
        for pieces in [&[" \n", "a ", " b", "\n\n", " "][..], &["a  b"], &["", "a", " ", " ", "b"]] {
            let mut out = Vec::new();
            let mut page = Page::new(&mut out);
            pieces.iter().for_each(|piece| page.write(piece));
            page.finish().unwrap();
            assert_eq!(out, b"a  b\n", "{pieces:?}");
        }
        let mut out = Vec::new();
        Page::new(&mut out).finish().unwrap();
        assert_eq!(out, b"\n");
    }

    #[test]
    fn lines_are_commands_questions_or_neither() {
        for (line, expected) in [
            ("", Input::Nothing),
            ("what?", Input::Question("what?")),
            ("/image a b.png", Input::Image("a b.png")),
            ("/image", Input::Unknown("/image")),
            ("/imgae a.png", Input::Unknown("/imgae a.png")),
            ("/reset", Input::Reset),
            ("/reset now", Input::Unknown("/reset now")),
            ("/help", Input::Help),
            ("/quit", Input::Quit),
        ] {
            assert_eq!(Input::of(line), expected);
        }
    }

    #[test]
    fn lines_without_end_and_lines_without_sense_are_left_out() {
        let mut text = vec![b'a'; MAX_LINE_BYTES as usize + 9];
        text.extend(b"\nb\n\xff\nc");
        let mut input = &text[..];
        let mut next = || read_line(&mut input).unwrap();
        assert!(matches!(next(), Line::Unusable(why) if why.contains("1 MiB")));
        assert_eq!(next(), Line::Text("b\n".to_owned()));
        assert!(matches!(next(), Line::Unusable(why) if why.contains("UTF-8")));
        assert_eq!((next(), next()), (Line::Text("c".to_owned()), Line::End));
    }
}
