//! Numbers as people read them.

use std::time::Duration;

/// `1234567` as `1 234 567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Bytes with a binary unit: `61 MiB`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// A duration: `0.4 s`, `37 s`, `4 min 05 s`, `2 h 03 min`.
pub(crate) fn seconds(seconds: f64) -> String {
    // Rounding first keeps 59.96 from reading "60.0 s".
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// [`seconds`] of a [`Duration`].
pub(crate) fn duration(duration: Duration) -> String {
    seconds(duration.as_secs_f64())
}

/// A rate per second with three significant digits: `812/s`, `12.3 k/s`.
pub(crate) fn rate(number: u64, seconds: f64) -> Option<String> {
    if number == 0 || seconds <= 0.0 {
        return None;
    }
    let rate = number as f64 / seconds;
    Some(match rate {
        ..10.0 => format!("{rate:.2}/s"),
        10.0..100.0 => format!("{rate:.1}/s"),
        100.0..10_000.0 => format!("{rate:.0}/s"),
        _ => format!("{:.1} k/s", rate / 1000.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_from_the_right() {
        let cases = [(0, "0"), (999, "999"), (1000, "1 000"), (12_345, "12 345"), (1_234_567, "1 234 567")];
        for (number, text) in cases {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn byte_units_change_at_1024() {
        assert_eq!(bytes(0), "0.0 KiB");
        assert_eq!(bytes(1023 * 1024), "1023 KiB");
        assert_eq!(bytes(1024 * 1024), "1.0 MiB");
        assert_eq!(bytes(3 * 1024 * 1024 * 1024), "3.0 GiB");
    }

    #[test]
    fn durations_never_show_sixty() {
        assert_eq!(seconds(0.04), "0.0 s");
        assert_eq!(seconds(9.4), "9.4 s");
        assert_eq!(seconds(59.96), "1 min 00 s");
        assert_eq!(seconds(245.0), "4 min 05 s");
        assert_eq!(seconds(7380.0), "2 h 03 min");
    }

    #[test]
    fn rates_need_a_count_and_a_time() {
        assert_eq!(rate(0, 1.0), None);
        assert_eq!(rate(5, 0.0), None);
        assert_eq!(rate(5, 2.0).as_deref(), Some("2.50/s"));
        assert_eq!(rate(24_600, 2.0).as_deref(), Some("12.3 k/s"));
    }
}
