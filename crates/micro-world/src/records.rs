//! The lines of the world's files: URLs, the truth about them, and what the server answers.

use crate::pair::{PairClass, Scores};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A line of `urls.jsonl`: what a fetcher gets to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UrlRecord {
    /// Where the image is; the host is virtual and has no port.
    pub url: String,
    /// The text that came with it.
    pub caption: String,
    /// 32 hexadecimal digits.
    pub uid: String,
}

/// A line of `truth.jsonl`: what is really the matter with a line of `urls.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TruthRecord {
    /// The uid of the URL.
    pub uid: String,
    /// The URL.
    pub url: String,
    /// Quality of the pair, whether or not its image can be had.
    pub pair: PairClass,
    /// What the server does about it, if it does not simply serve the image.
    pub fault: Option<Fault>,
    /// The uid whose URL serves the same bytes.
    pub duplicate_of: Option<String>,
    /// The uid whose URL serves the same scene, moved a little and encoded again.
    pub near_duplicate_of: Option<String>,
    /// Index of the scene in its split, or of the photo.
    pub scene: u64,
    /// What the pair deserves.
    pub scores: Scores,
}

/// What is wrong with a URL, or odd about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Fault {
    /// Status 404.
    NotFound,
    /// Status 410.
    Gone,
    /// Status 500 once or twice, then the image.
    ServerErrorThenFine,
    /// The image, in pieces over about a second.
    Slow,
    /// No answer, or one that stalls in the body; the connection stays open.
    Hanging,
    /// A body shorter than its `Content-Length`.
    Truncated,
    /// The real image under `Content-Type: text/html`. Whoever looks at the bytes keeps it.
    WrongContentType,
    /// An HTML page under `Content-Type: image/jpeg`.
    NotAnImage,
    /// An image of one or four pixels.
    Tiny,
    /// A small file whose header claims thousands of millions of pixels.
    HugeDimensions,
    /// Two addresses that redirect to each other.
    RedirectLoop,
    /// The image, with `X-Robots-Tag: noai`.
    OptOut,
    /// The same bytes as another URL.
    DuplicateContent,
    /// A real file with an oddity, served as it is; the text says which.
    Awkward(String),
}

/// What a careful fetcher does with a faulty URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The image arrives in the end.
    Kept,
    /// There is no image to be had, or it must not be used.
    Rejected,
    /// It depends on the decoder.
    Open,
}

/// Start of the text of [`Fault::Awkward`].
const AWKWARD: &str = "awkward:";

impl Fault {
    /// Every fault of the synthetic world; [`Fault::Awkward`] is of the photos.
    pub const SYNTHETIC: [Fault; 13] = [
        Fault::NotFound,
        Fault::Gone,
        Fault::ServerErrorThenFine,
        Fault::Slow,
        Fault::Hanging,
        Fault::Truncated,
        Fault::WrongContentType,
        Fault::NotAnImage,
        Fault::Tiny,
        Fault::HugeDimensions,
        Fault::RedirectLoop,
        Fault::OptOut,
        Fault::DuplicateContent,
    ];

    /// The name in `truth.jsonl`; of an awkward file without its trait.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Fault::NotFound => "not-found",
            Fault::Gone => "gone",
            Fault::ServerErrorThenFine => "server-error-then-fine",
            Fault::Slow => "slow",
            Fault::Hanging => "hanging",
            Fault::Truncated => "truncated",
            Fault::WrongContentType => "wrong-content-type",
            Fault::NotAnImage => "not-an-image",
            Fault::Tiny => "tiny",
            Fault::HugeDimensions => "huge-dimensions",
            Fault::RedirectLoop => "redirect-loop",
            Fault::OptOut => "opt-out",
            Fault::DuplicateContent => "duplicate-content",
            Fault::Awkward(_) => "awkward",
        }
    }

    /// What a careful fetcher does about it.
    #[must_use]
    pub fn fate(&self) -> Fate {
        match self {
            Fault::ServerErrorThenFine | Fault::Slow | Fault::WrongContentType | Fault::DuplicateContent => {
                Fate::Kept
            }
            Fault::NotFound
            | Fault::Gone
            | Fault::Hanging
            | Fault::Truncated
            | Fault::NotAnImage
            | Fault::Tiny
            | Fault::HugeDimensions
            | Fault::RedirectLoop
            | Fault::OptOut => Fate::Rejected,
            Fault::Awkward(_) => Fate::Open,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Awkward(oddity) => write!(f, "{AWKWARD}{oddity}"),
            other => f.write_str(other.name()),
        }
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> String {
        fault.to_string()
    }
}

impl TryFrom<String> for Fault {
    type Error = String;

    fn try_from(text: String) -> Result<Fault, String> {
        if let Some(oddity) = text.strip_prefix(AWKWARD) {
            return Ok(Fault::Awkward(oddity.to_owned()));
        }
        let known = Fault::SYNTHETIC.into_iter().find(|fault| fault.name() == text);
        known.ok_or_else(|| format!("`{text}` is no known fault"))
    }
}

/// A line of `routes.jsonl`: what the server answers under one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Virtual host, lower case, no port.
    pub host: String,
    /// Path and query as they stand in the URL.
    pub target: String,
    /// The answer.
    pub answer: Answer,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// The body, with whatever is odd about the way it comes.
    Body {
        /// What is served.
        body: BodyRef,
        /// `Content-Type`.
        content_type: String,
        /// How it is served.
        #[serde(default, skip_serializing_if = "Delivery::is_plain")]
        delivery: Delivery,
        /// `X-Robots-Tag`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        robots_tag: Option<String>,
    },
    /// A status without image.
    Status {
        /// 404, 410, …
        status: u16,
    },
    /// Status 302.
    Redirect {
        /// `Location`: an absolute URL or a path on the same host.
        location: String,
    },
}

/// How a body is served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Delivery {
    /// At once.
    #[default]
    Plain,
    /// After so many answers with status 500.
    AfterErrors {
        /// Number of requests that fail first.
        num_failures: u32,
    },
    /// In pieces over this time.
    Slow {
        /// From the first byte of the body to the last.
        milliseconds: u64,
    },
    /// Never; not even a status line.
    Silent,
    /// The head and half of the body, and then nothing more.
    Stalled,
    /// The head and half of the body, and then the end of the connection.
    Truncated,
}

impl Delivery {
    fn is_plain(&self) -> bool {
        *self == Delivery::Plain
    }
}

/// Where the bytes of a body lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BodyRef {
    /// File name of a tar in `images/`.
    pub shard: String,
    /// Where the bytes start in it.
    pub offset: u64,
    /// How many they are.
    pub num_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_read_as_they_are_written() {
        for fault in Fault::SYNTHETIC.into_iter().chain([Fault::Awkward("CMYK: odd".into())]) {
            let json = serde_json::to_string(&fault).unwrap();
            assert_eq!(serde_json::from_str::<Fault>(&json).unwrap(), fault, "{json}");
        }
        assert_eq!(serde_json::to_string(&Fault::ServerErrorThenFine).unwrap(), "\"server-error-then-fine\"");
        assert!(serde_json::from_str::<Fault>("\"fine\"").is_err());
    }

    #[test]
    fn routes_read_as_they_are_written() {
        let body = BodyRef { shard: "00000.tar".into(), offset: 512, num_bytes: 9 };
        let answer = |delivery, robots_tag| Answer::Body {
            body: body.clone(),
            content_type: "image/png".into(),
            delivery,
            robots_tag,
        };
        for answer in [
            answer(Delivery::Plain, None),
            answer(Delivery::Slow { milliseconds: 900 }, Some("noai".into())),
            answer(Delivery::AfterErrors { num_failures: 2 }, None),
            Answer::Status { status: 410 },
            Answer::Redirect { location: "/x".into() },
        ] {
            let route = Route { host: "a.test".into(), target: "/i/1.png?w=96".into(), answer };
            let json = serde_json::to_string(&route).unwrap();
            assert_eq!(serde_json::from_str::<Route>(&json).unwrap(), route, "{json}");
        }
    }
}
