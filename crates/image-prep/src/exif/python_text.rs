//! How Python prints numbers, strings and bytes.

use std::fmt::Write as _;

/// `repr` of a `float`.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value < 0.0 { "-inf".into() } else { "inf".into() };
    }
    // The shortest digits that read back as the same number, with an exponent.
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the exponent was asked for");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The `str` of a fraction in lowest terms, or as it is where the denominator is 0.
pub(super) fn fraction(numerator: i64, denominator: i64) -> String {
    match lowest_terms(numerator, denominator) {
        (numerator, 1) => numerator.to_string(),
        (numerator, denominator) => format!("{numerator}/{denominator}"),
    }
}

/// With a positive denominator; unchanged if it is 0.
pub(super) fn lowest_terms(numerator: i64, denominator: i64) -> (i64, i64) {
    if denominator == 0 {
        return (numerator, 0);
    }
    let (mut larger, mut divisor) = (numerator.abs(), denominator.abs());
    while divisor != 0 {
        (larger, divisor) = (divisor, larger % divisor);
    }
    let sign = denominator.signum();
    (sign * numerator / larger, sign * denominator / larger)
}

/// `repr` of a one-character `str`.
pub(super) fn char_repr(character: char) -> String {
    match character {
        '\'' => "\"'\"".into(),
        '\\' => r"'\\'".into(),
        '\t' => r"'\t'".into(),
        '\n' => r"'\n'".into(),
        '\r' => r"'\r'".into(),
        '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' => format!(r"'\x{:02x}'", u32::from(character)),
        character => format!("'{character}'"),
    }
}

/// `repr` of `bytes`.
pub(super) fn bytes_repr(bytes: &[u8]) -> String {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
    let mut text = format!("b{quote}");
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str(r"\\"),
            b'\t' => text.push_str(r"\t"),
            b'\n' => text.push_str(r"\n"),
            b'\r' => text.push_str(r"\r"),
            b'\'' if quote == '\'' => text.push_str(r"\'"),
            b' '..=b'~' => text.push(byte.into()),
            _ => write!(text, r"\x{byte:02x}").expect("writing to a string cannot fail"),
        }
    }
    text.push(quote);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-1.5, "-1.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e-5, "1.25e-05"),
            (0.0001, "0.0001"),
            (1e300, "1e+300"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(value), expected);
        }
    }

    #[test]
    fn fractions() {
        assert_eq!(fraction(10, 4), "5/2");
        assert_eq!(fraction(10, -5), "-2");
        assert_eq!(fraction(0, 7), "0");
        assert_eq!(fraction(7, 0), "7/0");
        assert_eq!(fraction(0, 0), "0/0");
    }

    #[test]
    fn strings() {
        assert_eq!(char_repr('a'), "'a'");
        assert_eq!(char_repr('\''), "\"'\"");
        assert_eq!(char_repr('\u{1}'), r"'\x01'");
        assert_eq!(bytes_repr(b"a'\xff\n"), r#"b"a'\xff\n""#);
        assert_eq!(bytes_repr(b"'\""), r#"b'\'"'"#);
    }
}
