//! Addresses of files in stores.

use super::StoreError;
use std::path::Path;

/// Most addresses a `{..}` may stand for.
const MAX_ALTERNATIVES: usize = 1_000_000;

/// An address of one file or of several: `s3://bucket/key`, `gs://bucket/key`, `https://host/path?query`,
/// `hf://datasets/owner/name[@revision]/path`; with wildcards, or for HTTP with `{00000..00031}` and `{tar,json}`.
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
    Hub { repo: String, revision: String },
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

/// `datasets/owner/name[@revision][/path]`.
fn hub_place(rest: &str) -> Result<(Place, String), &'static str> {
    let form = "expected hf://datasets/owner/name[@revision]/path";
    let rest = rest.strip_prefix("datasets/").ok_or(form)?;
    let (owner, rest) = rest.split_once('/').ok_or(form)?;
    let (name, tail) = match rest.find(['/', '@']) {
        Some(end) => rest.split_at(end),
        None => (rest, ""),
    };
    if owner.is_empty() || name.is_empty() {
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
    if revision.is_empty() {
        return Err(form);
    }
    let place = Place::Hub { repo: format!("{owner}/{name}"), revision: revision.replace("%2F", "/") };
    Ok((place, path.trim_matches('/').to_owned()))
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
        let hub = |revision: &str| Place::Hub { repo: "o/n".to_owned(), revision: revision.to_owned() };
        assert_eq!(parts("hf://datasets/o/n"), (hub("main"), String::new()));
        assert_eq!(parts("hf://datasets/o/n/a/*.parquet"), (hub("main"), "a/*.parquet".to_owned()));
        assert_eq!(parts("hf://datasets/o/n@v1.0/a"), (hub("v1.0"), "a".to_owned()));
        let converted = "hf://datasets/o/n@refs/convert/parquet/default/train/0000.parquet";
        assert_eq!(parts(converted), (hub("refs/convert/parquet"), "default/train/0000.parquet".to_owned()));
        assert_eq!(parts("hf://datasets/o/n@refs%2Fpr%2F1/x"), (hub("refs/pr/1"), "x".to_owned()));
        for wrong in [
            "s3://",
            "s3:///k",
            "ftp://h/x",
            "http:///x",
            "hf://models/o/n",
            "hf://datasets/o",
            "hf://datasets/o/n@/x",
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
