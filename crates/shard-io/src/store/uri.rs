//! Addresses of files in stores.

use super::StoreError;
use std::path::Path;

/// Most addresses a `{..}` may stand for.
const MAX_ALTERNATIVES: usize = 1_000_000;

/// An address of one file or of several: `s3://bucket/key`, `gs://bucket/key`, `https://host/path?query`,
/// `hf://owner/name[@revision][/path]` for a model, `hf://datasets/owner/name[@revision]/path`; with wildcards, or for
/// HTTP with `{00000..00031}` and `{tar,json}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUri {
    text: String,
    place: Place,
    key: String,
}

/// Where the key counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    S3 { bucket: String },
    Gs { bucket: String },
    Http,
    Hub { kind: HubKind, repo: String, revision: String },
}

/// What a repository of the hub holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HubKind {
    Model,
    Dataset,
}

impl HubKind {
    /// What users call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            HubKind::Model => "model",
            HubKind::Dataset => "data set",
        }
    }
}

impl StoreUri {
    /// Whether a path of the config is an address: it begins with a scheme and `://`.
    #[must_use]
    pub fn is_uri(path: &Path) -> bool {
        path.to_str().and_then(|text| text.split_once("://")).is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
    }

    /// Takes an address apart.
    ///
    /// # Errors
    /// If the scheme is none of `s3`, `gs`, `http`, `https`, `hf`, or what must follow is not there.
    pub fn parse(text: &str) -> Result<StoreUri, StoreError> {
        let wrong = |problem: &str| StoreError::Uri { uri: text.to_owned(), problem: problem.to_owned() };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("not an address"))?;
        let bucket = || {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(wrong("names no bucket"));
            }
            Ok((bucket.to_owned(), key.to_owned()))
        };
        let (place, key) = match scheme {
            "s3" | "s3a" => bucket().map(|(bucket, key)| (Place::S3 { bucket }, key))?,
            "gs" | "gcs" => bucket().map(|(bucket, key)| (Place::Gs { bucket }, key))?,
            "http" | "https" => {
                if rest.split(['/', '?', '#']).next().unwrap_or_default().is_empty() {
                    return Err(wrong("names no host"));
                }
                (Place::Http, text.split('#').next().unwrap_or_default().to_owned())
            }
            "hf" => hub_place(rest).map_err(wrong)?,
            _ => return Err(wrong("unknown scheme; there are s3, gs, http, https and hf")),
        };
        Ok(StoreUri { text: text.to_owned(), place, key })
    }

    /// The address as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it names a model of the Hugging Face hub, or something in one.
    #[must_use]
    pub fn is_hub_model(&self) -> bool {
        matches!(self.place, Place::Hub { kind: HubKind::Model, .. })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The key in a bucket, the path in a repository, the whole URL.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// The address of something below this one.
    #[must_use]
    pub fn join(&self, name: &str) -> StoreUri {
        let below = |text: &str| match text {
            "" => name.to_owned(),
            text => format!("{}/{name}", text.trim_end_matches('/')),
        };
        StoreUri { text: below(&self.text), place: self.place.clone(), key: below(&self.key) }
    }
}

impl std::fmt::Display for StoreUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// `[datasets/]owner/name[@revision][/path]`.
fn hub_place(rest: &str) -> Result<(Place, String), &'static str> {
    let form =
        "expected hf://owner/name[@revision][/path] for a model, or hf://datasets/owner/name[@revision]/path";
    let (kind, rest) = match rest.strip_prefix("datasets/") {
        Some(rest) => (HubKind::Dataset, rest),
        None => (HubKind::Model, rest),
    };
    let (owner, rest) = rest.split_once('/').ok_or(form)?;
    let (name, tail) = match rest.find(['/', '@']) {
        Some(end) => rest.split_at(end),
        None => (rest, ""),
    };
    if !is_hub_name(owner) || !is_hub_name(name) || ["datasets", "models", "spaces"].contains(&owner) {
        return Err(form);
    }
    let (revision, path) = match tail.strip_prefix('@') {
        None => ("main", tail),
        Some(tail) => {
            // `refs/convert/parquet` and `refs/pr/7` are the only revisions with slashes.
            let num_parts = if tail.starts_with("refs/") { 3 } else { 1 };
            let end = tail.match_indices('/').nth(num_parts - 1).map_or(tail.len(), |(at, _)| at);
            tail.split_at(end)
        }
    };
    let revision = revision.replace("%2F", "/");
    // It becomes a path in the hub's cache.
    if !revision.split('/').all(|part| !["", ".", ".."].contains(&part)) || revision.contains(['\\', '\0']) {
        return Err(form);
    }
    if path.split('/').any(|part| part == "..") {
        return Err(form);
    }
    let place = Place::Hub { kind, repo: format!("{owner}/{name}"), revision };
    Ok((place, path.trim_matches('/').to_owned()))
}

/// Whether a text can be the name of a repository or of its owner, by the hub's own rules.
fn is_hub_name(text: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !text.is_empty()
        && text.bytes().all(is_known)
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
        && !text.contains("--")
        && !text.contains("..")
}

/// All texts that a text with `{a,b}` and `{007..012}` stands for, in order, and the part before the last `/`
/// that stands before the first brace; `None` if there is no brace.
///
/// As the shell and the Python `webdataset` library have it: numbers keep the width of their first end.
pub(super) fn expand_braces(text: &str) -> Result<Option<(String, Vec<String>)>, StoreError> {
    let Some(open) = text.find('{') else { return Ok(None) };
    let wrong = |problem: &str| StoreError::Uri { uri: text.to_owned(), problem: problem.to_owned() };
    let base = text[..open].rfind('/').map_or(0, |slash| slash + 1);
    let mut texts = vec![String::new()];
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let close = rest[open..].find('}').map(|at| open + at).ok_or_else(|| wrong("`{` without `}`"))?;
        let choices = choices(&rest[open + 1..close])
            .ok_or_else(|| wrong("expected `{first..last}` or `{one,other}`, not nested"))?;
        if texts.len().saturating_mul(choices.len()) > MAX_ALTERNATIVES {
            return Err(wrong("stands for more than a million files"));
        }
        let extended = |start: &String| -> Vec<String> {
            choices.iter().map(|choice| format!("{start}{}{choice}", &rest[..open])).collect()
        };
        texts = texts.iter().flat_map(extended).collect();
        rest = &rest[close + 1..];
    }
    texts.iter_mut().for_each(|start| start.push_str(rest));
    Ok(Some((text[..base].to_owned(), texts)))
}

fn choices(inside: &str) -> Option<Vec<String>> {
    if inside.is_empty() || inside.contains('{') {
        return None;
    }
    if let Some((first, last)) = inside.split_once("..") {
        let width = first.len();
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(first) || !is_number(last) {
            return None;
        }
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last - first >= MAX_ALTERNATIVES as u64 {
            return None;
        }
        return Some((first..=last).map(|number| format!("{number:0width$}")).collect());
    }
    let choices: Vec<_> = inside.split(',').map(str::to_owned).collect();
    (choices.len() > 1).then_some(choices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let parts = |text: &str| {
            let uri = StoreUri::parse(text).unwrap();
            assert_eq!(uri.as_str(), text);
            (uri.place().clone(), uri.key().to_owned())
        };
        let bucket = || "b".to_owned();
        assert_eq!(parts("s3://b/k/l.csv"), (Place::S3 { bucket: bucket() }, "k/l.csv".to_owned()));
        assert_eq!(parts("s3://b"), (Place::S3 { bucket: bucket() }, String::new()));
        assert_eq!(parts("gs://b/k/"), (Place::Gs { bucket: bucket() }, "k/".to_owned()));
        let url = "https://h/a?x=1&y={2}";
        assert_eq!(parts(url), (Place::Http, url.to_owned()));
        let repo =
            |kind, revision: &str| Place::Hub { kind, repo: "o/n".to_owned(), revision: revision.to_owned() };
        let hub = |revision: &str| repo(HubKind::Dataset, revision);
        assert_eq!(parts("hf://datasets/o/n"), (hub("main"), String::new()));
        assert_eq!(parts("hf://datasets/o/n/a/*.parquet"), (hub("main"), "a/*.parquet".to_owned()));
        assert_eq!(parts("hf://datasets/o/n@v1.0/a"), (hub("v1.0"), "a".to_owned()));
        let converted = "hf://datasets/o/n@refs/convert/parquet/default/train/0000.parquet";
        assert_eq!(parts(converted), (hub("refs/convert/parquet"), "default/train/0000.parquet".to_owned()));
        assert_eq!(parts("hf://datasets/o/n@refs%2Fpr%2F1/x"), (hub("refs/pr/1"), "x".to_owned()));
        let model = |revision: &str| repo(HubKind::Model, revision);
        assert_eq!(parts("hf://o/n"), (model("main"), String::new()));
        assert_eq!(parts("hf://o/n/sub/w.pt"), (model("main"), "sub/w.pt".to_owned()));
        assert_eq!(parts("hf://o/n@v1.0/"), (model("v1.0"), String::new()));
        assert_eq!(parts("hf://o/n@refs/pr/1/x"), (model("refs/pr/1"), "x".to_owned()));
        assert!(StoreUri::parse("hf://o/n/x").unwrap().is_hub_model());
        assert!(!StoreUri::parse("hf://datasets/o/n/x").unwrap().is_hub_model());
        for wrong in [
            "s3://",
            "s3:///k",
            "ftp://h/x",
            "http:///x",
            "hf://models/o/n",
            "hf://datasets/o",
            "hf://datasets/o/n@/x",
            "hf://datasets/o/n@..%2F..%2Fx",
            "hf://o",
            "hf://o/n@../x",
            "hf://o/n@refs/../x/y",
            "hf://o/../n",
            "hf://-o/n",
            "hf://o/n--m",
            "hf://o/n?x",
            "hf://o/n/../../x",
        ] {
            assert!(StoreUri::parse(wrong).unwrap_err().to_string().contains(wrong), "{wrong}");
        }
        assert!(StoreUri::is_uri(Path::new("s3://b/k")) && !StoreUri::is_uri(Path::new("a/b")));
        assert_eq!(StoreUri::parse("s3://b").unwrap().join("x").as_str(), "s3://b/x");
        assert_eq!(StoreUri::parse("s3://b/p/").unwrap().join("x").key(), "p/x");
    }

    #[test]
    fn braces_stand_for_several() {
        let expand = |text: &str| expand_braces(text).unwrap();
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(expand("http://h/a.tar"), None);
        let found = expand("http://h/d/{08..11}.{tar,json}?s=1").unwrap();
        assert_eq!(found.0, "http://h/d/");
        let expected = ["08.tar", "08.json", "09.tar", "09.json", "10.tar", "10.json", "11.tar", "11.json"];
        assert_eq!(found.1, expected.map(|name| format!("http://h/d/{name}?s=1")));
        assert_eq!(
            expand("http://h/{a,b}/x").unwrap(),
            ("http://h/".to_owned(), owned(&["http://h/a/x", "http://h/b/x"]))
        );
        for wrong in
            ["{", "{}", "{a}", "{3..1}", "{a..b}", "{0..99999999}", "{{a,b},c}", "{0..9999}{0..9999}"]
        {
            assert!(expand_braces(wrong).is_err(), "{wrong}");
        }
    }
}
