//! Dates in HTTP headers.

use std::time::{Duration, SystemTime};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Parses the one form servers may send: `Sun, 06 Nov 1994 08:49:37 GMT` (IMF-fixdate, RFC 9110 section
/// 5.6.7). The two obsolete forms give `None`, as does a date before 1970.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let (_weekday, rest) = text.split_once(", ")?;
    let mut words = rest.split(' ');
    let mut next = || words.next();
    let day: u64 = next()?.parse().ok()?;
    let month_name = next()?;
    let month = 1 + MONTHS.iter().position(|month| *month == month_name)? as u64;
    let year: u64 = next()?.parse().ok()?;
    let mut clock = next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let is_valid = next()? == "GMT"
        && next().is_none()
        && clock.next().is_none()
        && (1970..=9999).contains(&year)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !is_valid {
        return None;
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Days of the Gregorian calendar, counted with years that begin in March, so that the leap day comes last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    /// Days from 1 March of year 0 to 1 January 1970.
    const BEFORE_1970: u64 = 719_468;
    let march_year = if month <= 2 { year.saturating_sub(1) } else { year };
    let march_month = (month + 9) % 12;
    let days = march_year * 365 + march_year / 4 - march_year / 100 + march_year / 400;
    // Saturates for years the caller refuses anyway.
    (days + (153 * march_month + 2) / 5 + day).saturating_sub(1 + BEFORE_1970)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<u64>) {
        let found = parse(text).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn known_dates() {
        check("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
        // The example of RFC 9110.
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777));
        check("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799));
        check("Wed, 01 Mar 2000 00:00:00 GMT", Some(951_868_800));
        check("Fri, 31 Dec 2100 00:00:00 GMT", Some(4_133_894_400));
        // Nothing is computed from what a hostile server may send.
        check("Sun, 06 Nov 18446744073709551615 08:49:37 GMT", None);
        check("Sun, 06 Nov 1994 18446744073709551615:49:37 GMT", None);
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 0000 08:49:37 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            "Sun, 99999999999999 Nov 1994 08:49:37 GMT",
        ] {
            check(text, None);
        }
    }
}
