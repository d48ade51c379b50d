//! Dates in HTTP headers.

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use std::time::SystemTime;

/// Parses a date as servers write them: the three forms of RFC 9110 section 5.6.7 (IMF-fixdate, RFC 850,
/// asctime), the e-mail dates of RFC 2822, and ISO 8601 with or without a time of day. A date without a zone is
/// taken for UTC. `None` if it is no such date, or before 1970.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    // The weekday says nothing new, and a wrong one is no reason to miss the date.
    let is_weekday = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphabetic());
    let text = match text.trim().split_once(',') {
        Some((name, date)) if is_weekday(name) => date.trim(),
        _ => text.trim(),
    };
    let seconds = DateTime::parse_from_rfc2822(text)
        .or_else(|_| DateTime::parse_from_rfc3339(text))
        .map(|time| time.timestamp())
        .ok()
        .or_else(|| parse_without_zone(text))?;
    let since_1970 = std::time::Duration::from_secs(u64::try_from(seconds).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since_1970)
}

fn parse_without_zone(text: &str) -> Option<i64> {
    let local = text.strip_suffix("GMT").or_else(|| text.strip_suffix("UTC")).unwrap_or(text).trim_end();
    let forms = ["%d-%b-%y %H:%M:%S", "%a %b %e %H:%M:%S %Y", "%d %b %Y %H:%M:%S", "%Y-%m-%dT%H:%M:%S"];
    let time = forms.iter().find_map(|form| NaiveDateTime::parse_from_str(local, form).ok());
    let midnight = || NaiveDate::parse_from_str(local, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
    Some(time.or_else(midnight)?.and_utc().timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn check(text: &str, expected: Option<u64>) {
        let found = parse(text).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn known_dates() {
        check("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
        // The examples of RFC 9110.
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777));
        check("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777));
        check("Sun Nov  6 08:49:37 1994", Some(784_111_777));
        // Without the weekday, with a zone, ISO 8601.
        check("06 Nov 1994 08:49:37 GMT", Some(784_111_777));
        check("06 Nov 1994 00:49:37 PST", Some(784_111_777));
        check("Sun, 06 Nov 1994 09:49:37 +0100", Some(784_111_777));
        check("1994-11-06T09:49:37+01:00", Some(784_111_777));
        check("1994-11-06T08:49:37Z", Some(784_111_777));
        check("1994-11-06T08:49:37", Some(784_111_777));
        check("1994-11-06", Some(784_080_000));
        check("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799));
        check("Fri, 31 Dec 2100 00:00:00 GMT", Some(4_133_894_400));
        check("Mon, 31 Dec 2100 00:00:00 GMT", Some(4_133_894_400));
        assert!(parse("9999-12-31").unwrap() > SystemTime::now() + Duration::from_secs(86_400));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "soon",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Thu, 01 Jan 1969 00:00:00 GMT",
            // Nothing is computed from what a hostile server may send.
            "Sun, 06 Nov 18446744073709551615 08:49:37 GMT",
            "Sun, 06 Nov 1994 18446744073709551615:49:37 GMT",
            "Sun, 99999999999999 Nov 1994 08:49:37 GMT",
        ] {
            check(text, None);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,60}") {
            let _ = parse(&text);
        }
    }
}
