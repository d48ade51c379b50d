//! HTML character references, decoded as Python's `html.unescape` does.
//!
//! Source of the rules: the Python documentation of `html.unescape` and the HTML standard, section "character
//! reference state". The names are those of `html.entities.html5` (2,231, of which 106 also stand without a
//! semicolon), which is the standard's table; it is frozen there, hence a file here and not a dependency.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::ftfy::windows_1252_of_c1;

/// Longest name Python looks at, without the semicolon.
const MAX_NAME_CHARS: usize = 32;

/// Name (with its semicolon, where it has one) to text.
static NAMES: LazyLock<HashMap<&'static str, String>> = LazyLock::new(|| {
    include_str!("html5_entities.txt")
        .lines()
        .map(|line| {
            let (name, code_points) = line.split_once(' ').expect("every line is a name and code points");
            let text = code_points.split(' ').map(|hex| {
                u32::from_str_radix(hex, 16)
                    .ok()
                    .and_then(char::from_u32)
                    .expect("every value is a code point")
            });
            (name, text.collect())
        })
        .collect()
});

/// Text of the reference called `name`, which is what stands between `&` and the end, semicolon included.
pub(crate) fn named_reference(name: &str) -> Option<&'static str> {
    NAMES.get(name).map(String::as_str)
}

/// `text` with its HTML character references decoded, as Python's `html.unescape`: `&gt;`, `&gt` without its
/// semicolon, the longest known name at the start of an unknown one (`&notit;` is `¬it;`), `&#62;`, `&#x3e;`.
/// Numbers 0x80 to 0x9F mean Windows-1252, 0 and what is no character become U+FFFD, and control characters and
/// noncharacters nothing.
///
/// One difference: Python refuses (`ValueError`) a decimal number of more than 4,300 digits, which is U+FFFD here.
pub fn unescape_html(text: &str) -> String {
    let mut unescaped = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('&') {
        unescaped.push_str(&rest[..position]);
        rest = &rest[position..];
        let num_bytes = decode_reference(&rest[1..], &mut unescaped);
        if num_bytes == 0 {
            unescaped.push('&');
        }
        rest = &rest[1 + num_bytes..];
    }
    unescaped.push_str(rest);
    unescaped
}

/// Decodes the reference whose `&` stands before `text` and says how many bytes of `text` it took: 0 if there is
/// none.
fn decode_reference(text: &str, unescaped: &mut String) -> usize {
    match text.strip_prefix('#') {
        Some(number) => match decode_number(number, unescaped) {
            0 => 0,
            num_bytes => num_bytes + 1,
        },
        None => decode_name(text, unescaped),
    }
}

fn decode_number(text: &str, unescaped: &mut String) -> usize {
    let (prefix_len, radix) = if text.starts_with(['x', 'X']) { (1, 16) } else { (0, 10) };
    let digits = &text[prefix_len..];
    let num_digits = digits.bytes().take_while(|byte| char::from(*byte).is_digit(radix)).count();
    if num_digits == 0 {
        return 0;
    }
    // Too large for 32 bits is too large for a character as well.
    let number = u32::from_str_radix(&digits[..num_digits], radix).unwrap_or(u32::MAX);
    unescaped.extend(numbered_char(number));
    prefix_len + num_digits + usize::from(digits[num_digits..].starts_with(';'))
}

fn numbered_char(number: u32) -> Option<char> {
    match number {
        0 => Some(char::REPLACEMENT_CHARACTER),
        0x80..=0x9F => char::from_u32(number).map(windows_1252_of_c1),
        0x01..=0x08 | 0x0B | 0x0E..=0x1F | 0x7F | 0xFDD0..=0xFDEF => None,
        _ => match char::from_u32(number) {
            Some(_) if number & 0xFFFE == 0xFFFE => None,
            Some(character) => Some(character),
            None => Some(char::REPLACEMENT_CHARACTER),
        },
    }
}

fn decode_name(text: &str, unescaped: &mut String) -> usize {
    let ends_name =
        |character: char| matches!(character, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let name_len = text
        .char_indices()
        .take(MAX_NAME_CHARS)
        .take_while(|&(_, character)| !ends_name(character))
        .last()
        .map_or(0, |(start, character)| start + character.len_utf8());
    if name_len == 0 {
        return 0;
    }
    let total_len = name_len + usize::from(text[name_len..].starts_with(';'));
    // No name has fewer than two letters.
    let known = (2..=total_len).rev().find_map(|len| Some((len, named_reference(text.get(..len)?)?)));
    let Some((len, value)) = known else { return 0 };
    unescaped.push_str(value);
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Expected values: Python 3.11, `html.unescape`.
    #[test]
    fn references_python_knows() {
        let cases = [
            ("a &lt;b&gt; &amp;amp; c", "a <b> &amp; c"),
            ("&ltx &notit; &notin; &notin", "<x ¬it; ∉ ¬in"),
            ("&CounterClockwiseContourIntegral;", "∳"),
            ("&NotEqualTilde;", "≂̸"),
            ("&#62;&#x3E&#X3eg", ">>>g"),
            ("&#128;&#x99;&#x81;", "€™\u{81}"),
            ("&#0;&#xD800;&#x110000;&#99999999999999999999;", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("a&#1;b&#xFFFE;c&#13;&#xB;", "abc\r"),
            ("& &; &# &#; &#x; &x; &unknown; &é;", "& &; &# &#; &#x; &x; &unknown; &é;"),
            ("&am&amp", "&am&"),
            ("&", "&"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape_html(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_and_grows_little(text in r"(&|#|x|;|[0-9a-zA-Z]|amp|lt;|nsub|\PC){0,60}") {
            // `&nGt;` is five bytes and its value six; no other grows more.
            prop_assert!(unescape_html(&text).len() <= text.len() + text.len() / 2);
            if !text.contains('&') {
                prop_assert_eq!(unescape_html(&text), text);
            }
        }
    }
}
