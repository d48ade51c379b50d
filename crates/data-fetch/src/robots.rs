//! Opt-outs: the `X-Robots-Tag` response header.
//!
//! Grammar, after Google's "Robots meta tag, data-nosnippet, and X-Robots-Tag specifications":
//! `[agent ":"] directive *("," [agent ":"] directive)`. Some directives carry a value after a colon of their
//! own (`max-snippet: 50`, `unavailable_after: Fri, 25 Jun 2027 15:00:00 GMT`), and the date may hold commas
//! and more colons. img2dataset 1.47 takes whatever precedes the first colon for an agent, so that a single
//! `unavailable_after` hides every other directive of the header; here the two kinds of colon are told apart.
//!
//! After its date, `unavailable_after` means what `noindex` means; a date that cannot be read means nothing.

use crate::http_date;
use std::time::SystemTime;

/// Directives that take a value after a colon, besides [`UNAVAILABLE_AFTER`].
const VALUED_DIRECTIVES: [&str; 3] = ["max-snippet", "max-image-preview", "max-video-preview"];
/// The directive that takes a date.
const UNAVAILABLE_AFTER: &str = "unavailable_after";

/// Which directives, addressed to whom, forbid keeping an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptOutPolicy {
    agents: Vec<String>,
    disallowed: Vec<String>,
}

impl OptOutPolicy {
    /// `agents`: the names that mean us; `disallowed`: the directives that forbid. Case does not matter.
    ///
    /// `none` stands for `noindex, nofollow`, so it forbids whenever `noindex` does.
    #[must_use]
    pub fn new(agents: &[String], disallowed: &[String]) -> Self {
        let lower = |names: &[String]| names.iter().map(|name| name.to_lowercase()).collect::<Vec<_>>();
        let mut disallowed = lower(disallowed);
        if disallowed.iter().any(|directive| directive == "noindex") {
            disallowed.push("none".to_owned());
        }
        Self { agents: lower(agents), disallowed }
    }

    /// Whether any of the header's values forbids the use at the time `now`. Each value is one header line: an
    /// agent named in it is in force up to the next agent or the end of that line.
    #[must_use]
    pub fn forbids<'a>(&self, header_values: impl IntoIterator<Item = &'a str>, now: SystemTime) -> bool {
        !self.disallowed.is_empty() && header_values.into_iter().any(|value| self.line_forbids(value, now))
    }

    fn line_forbids(&self, value: &str, now: SystemTime) -> bool {
        let mut is_for_us = true;
        let mut rest = value;
        while !rest.is_empty() {
            let (piece, after) = rest.split_once(',').unwrap_or((rest, ""));
            rest = after;
            let mut directive = piece.trim();
            while let Some((name, argument)) = directive.split_once(':') {
                let name = name.trim();
                if name.eq_ignore_ascii_case(UNAVAILABLE_AFTER) {
                    if is_for_us && self.forbids_after(argument, after, now) {
                        return true;
                    }
                    directive = name;
                } else if VALUED_DIRECTIVES.iter().any(|valued| name.eq_ignore_ascii_case(valued)) {
                    directive = name;
                } else if is_agent_name(name) {
                    is_for_us = self.is_us(name);
                    directive = argument.trim();
                } else {
                    // The middle of a date, cut at its comma.
                    break;
                }
            }
            let directive = directive.to_lowercase();
            if is_for_us && self.disallowed.contains(&directive) {
                return true;
            }
        }
        false
    }

    /// Whether the date that begins with `argument` is over. It goes on after the comma behind its weekday, if it
    /// has one.
    fn forbids_after(&self, argument: &str, after: &str, now: SystemTime) -> bool {
        let continued = after.split(',').next().unwrap_or_default();
        let date =
            http_date::parse(argument).or_else(|| http_date::parse(&format!("{argument},{continued}")));
        self.disallowed.iter().any(|name| name == "noindex") && date.is_some_and(|date| date <= now)
    }

    fn is_us(&self, agent: &str) -> bool {
        let name = agent.split('/').next().unwrap_or(agent).to_lowercase();
        name == "*" || self.agents.contains(&name)
    }
}

/// Whether the text before a colon can be an agent: `*`, or a [name](is_addressable), perhaps with a version behind a
/// slash. Dates are neither (`25 Jun 2027 15`, `2027-06-25T15`).
fn is_agent_name(text: &str) -> bool {
    let (name, version) = text.split_once('/').unwrap_or((text, ""));
    name == "*" || (is_addressable(name) && version.bytes().all(|byte| is_word(byte) || byte == b'/'))
}

/// Whether an `X-Robots-Tag` can address an agent of this name: one word of ASCII letters, digits, `-`, `_` and `.`, the
/// first a letter, and not the name of a directive with a value.
pub(crate) fn is_addressable(name: &str) -> bool {
    let is_directive = VALUED_DIRECTIVES
        .iter()
        .chain([&UNAVAILABLE_AFTER])
        .any(|directive| name.eq_ignore_ascii_case(directive));
    name.starts_with(|first: char| first.is_ascii_alphabetic()) && name.bytes().all(is_word) && !is_directive
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn check(values: &[&str], expected: bool) {
        let policy = OptOutPolicy::new(
            &["oqvl-data-fetch".to_owned(), "img2dataset".to_owned()],
            &["noai".to_owned(), "noimageai".to_owned(), "noindex".to_owned(), "noimageindex".to_owned()],
        );
        // 1 January 2027.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_798_761_600);
        assert_eq!(policy.forbids(values.iter().copied(), now), expected, "{values:?}");
    }

    #[test]
    fn global_directives() {
        check(&[], false);
        check(&[""], false);
        check(&["noai"], true);
        check(&[" NoImageAI "], true);
        check(&["nofollow, noindex"], true);
        check(&["none"], true);
        check(&["all"], false);
        check(&["nofollow", "noimageindex"], true);
        check(&["noaint, xnoai"], false);
    }

    #[test]
    fn agent_scopes() {
        check(&["googlebot: noindex"], false);
        check(&["googlebot: nofollow, noindex"], false);
        check(&["img2dataset: noai"], true);
        check(&["OQVL-data-fetch/2.0 : noai"], true);
        check(&["*: noai"], true);
        check(&["googlebot: nofollow, img2dataset: noimageai"], true);
        check(&["noai, googlebot: nofollow"], true);
        check(&["googlebot: noindex, otherbot: noai"], false);
        // The scope ends with the line.
        check(&["googlebot: nofollow", "noai"], true);
    }

    proptest::proptest! {
        /// Whatever name the config accepts, a header that addresses it is understood.
        #[test]
        fn an_addressable_name_is_addressed(name in "[A-Za-z][!-~]{0,2}[A-Za-z0-9_.-]{0,6}") {
            if !is_addressable(&name) {
                return Ok(());
            }
            let policy = OptOutPolicy::new(std::slice::from_ref(&name), &["noai".to_owned()]);
            for header in [format!("{name}: noai"), format!("otherbot: nofollow, {name}/2.0: noai")] {
                proptest::prop_assert!(policy.forbids([header.as_str()], SystemTime::now()), "{}", header);
            }
        }
    }

    #[test]
    fn dates_and_values_do_not_hide_directives() {
        check(&["unavailable_after: Fri, 25 Jun 2027 15:00:00 GMT"], false);
        check(&["unavailable_after: Fri, 25 Jun 2027 15:00:00 GMT, noindex"], true);
        check(&["noai, unavailable_after: Fri, 25 Jun 2027 15:00:00 GMT"], true);
        check(&["unavailable_after: 2027-06-25T15:00:00+02:00, noimageindex"], true);
        check(&["googlebot: unavailable_after: 25 Jun 2027 15:00:00 PST, noai"], false);
        check(&["img2dataset: unavailable_after: 25 Jun 2027 15:00:00 PST, noai"], true);
        check(&["max-snippet: 50, max-image-preview: large, noai"], true);
        check(&["max-image-preview: none"], false);
    }

    #[test]
    fn what_was_available_until_a_date_is_not_any_more() {
        check(&["unavailable_after: Thu, 31 Dec 2026 23:59:59 GMT"], true);
        check(&["unavailable_after: Fri, 01 Jan 2027 00:00:01 GMT"], false);
        check(&["unavailable_after: Friday, 25-Jun-10 15:00:00 GMT"], true);
        check(&["UNAVAILABLE_AFTER: 25 Jun 2010 15:00:00 PST"], true);
        check(&["unavailable_after: 2026-12-31"], true);
        check(&["unavailable_after: 2027-01-01T01:00:00+02:00"], true);
        check(&["nofollow, unavailable_after: Thu, 31 Dec 2026 23:59:59 GMT, nosnippet"], true);
        check(&["googlebot: unavailable_after: Thu, 31 Dec 2026 23:59:59 GMT"], false);
        check(&["img2dataset: unavailable_after: Thu, 31 Dec 2026 23:59:59 GMT"], true);
        check(&["unavailable_after: the cows come home"], false);
        check(&["unavailable_after:"], false);
        let only_noai = OptOutPolicy::new(&[], &["noai".to_owned()]);
        assert!(!only_noai.forbids(["unavailable_after: 2010-01-01"], SystemTime::now()));
    }

    proptest::proptest! {
        #[test]
        fn a_directive_is_found_behind_anything_but_an_agent(
            noise in "[^:]*",
            date in "[A-Z0-9][0-9 :A-Z]{0,20}(, [0-9][0-9 :A-Z]{0,20}){0,2}",
        ) {
            check(&[&format!("{noise},noai")], true);
            check(&[&format!("unavailable_after: {date}, noai")], true);
        }

        #[test]
        fn any_header_is_survived(value in ".*") {
            let policy = OptOutPolicy::new(&["us".to_owned()], &["noai".to_owned()]);
            let _ = policy.forbids([value.as_str()], SystemTime::now());
        }
    }

    #[test]
    fn an_empty_list_switches_opt_outs_off() {
        let policy = OptOutPolicy::new(&[], &[]);
        assert!(!policy.forbids(["noai, none"], SystemTime::now()));
    }
}
