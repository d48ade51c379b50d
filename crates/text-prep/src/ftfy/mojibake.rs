//! Text that was UTF-8 and was read as a single-byte encoding: found, and read again.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::bytes::Regex;

use super::badness::{CharSet, looks_bad};
use super::characters::windows_1252_of_c1;
use super::charmap::{Charmap, NoBreakSpaces};

/// Segments within segments that are read again on their own.
pub(super) const MAX_DEPTH: usize = 16;

/// Bytes that would be UTF-8 if a blank were the no-break space that it replaced.
static ALTERED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"[\xc2\xc3\xc5\xce\xd0\xd9]\x20
        | [\xe2\xe3]\x20[\x80-\x84\x86-\x9f\xa1-\xbf]
        | [\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf]\x20
        | \xf0\x20[\x80-\xbf]{2} | \xf0[\x80-\xbf]\x20[\x80-\xbf] | \xf0[\x80-\xbf]{2}\x20",
    )
});

/// Bytes that would be UTF-8 if some of them had not been lost: 0x1A stands for them, or a question mark.
static LOSSY: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"[\xc2-\xdf]\x1a | [\xc2-\xc3]\?
        | \xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]
        | \xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]
        | [\xe0-\xef][\x1a?][\x1a\x80-\xbf] | [\xe0-\xef][\x1a\x80-\xbf][\x1a?]
        | [\xf0-\xf4][\x1a?][\x1a\x80-\xbf]{2}
        | [\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]
        | [\xf0-\xf4][\x1a\x80-\xbf]{2}[\x1a?]
        | \x1a",
    )
});

fn pattern(verbose: &str) -> Regex {
    Regex::new(&format!("(?x-u){verbose}")).expect("the patterns are constants")
}

/// `text` with its mojibake read again until none is found.
pub(super) fn fix_encoding(text: String) -> String {
    fix_at_depth(text, 0)
}

fn fix_at_depth(mut text: String, depth: usize) -> String {
    // Each step but the last makes the text shorter, or takes its C1 control characters away.
    loop {
        match fix_one_layer(&text, depth) {
            Some(fixed) if fixed != text => text = fixed,
            _ => return text,
        }
    }
}

/// The first reading that makes sense, or `None` if the text is to stay.
fn fix_one_layer(text: &str, depth: usize) -> Option<String> {
    if text.is_ascii() || !looks_bad(text) {
        return None;
    }
    let read_again =
        Charmap::all().iter().find_map(|charmap| decode_damaged_utf8(charmap.encode(text)?, charmap));
    read_again
        .or_else(|| fix_embedded(text, depth))
        // What is left is Latin-1 that is rather Windows-1252.
        .or_else(|| Some(text.chars().map(windows_1252_of_c1).collect()))
}

/// `bytes` as UTF-8 or CESU-8, once blanks and lost bytes are put right. `None` if it is neither.
fn decode_damaged_utf8(mut bytes: Vec<u8>, charmap: &Charmap) -> Option<String> {
    if charmap.no_break_spaces() == NoBreakSpaces::Restore && ALTERED.is_match(&bytes) {
        bytes = restore_no_break_spaces(&bytes);
    }
    if charmap.marks_lost_bytes() {
        bytes = LOSSY.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
    }
    if bytes.contains(&0xED) || bytes.contains(&0xC0) {
        return decode_utf8_variants(&bytes);
    }
    String::from_utf8(bytes).ok()
}

/// Blanks that were no-break spaces within UTF-8 sequences, as byte 0xA0 again.
fn restore_no_break_spaces(bytes: &[u8]) -> Vec<u8> {
    let with_a_grave = separate_a_grave(bytes);
    ALTERED
        .replace_all(&with_a_grave, |found: &regex::bytes::Captures<'_>| {
            found[0].iter().map(|&byte| if byte == b' ' { 0xA0 } else { byte }).collect::<Vec<u8>>()
        })
        .into_owned()
}

/// The word "à" with the blank after it: 0xC3 and a blank become "à" and a blank, except where another word likely
/// goes on (Portuguese "àquele", "àquela", "àquilo", "às") or another blank follows.
fn separate_a_grave(bytes: &[u8]) -> Cow<'_, [u8]> {
    const CONTINUATIONS: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    if !bytes.windows(2).any(|pair| pair == [0xC3, b' ']) {
        return Cow::Borrowed(bytes);
    }
    let mut separated = Vec::with_capacity(bytes.len() + 16);
    let mut rest = bytes;
    while let [first, remainder @ ..] = rest {
        separated.push(*first);
        rest = remainder;
        if *first == 0xC3
            && let [b' ', next @ ..] = remainder
            && !CONTINUATIONS.iter().any(|word| next.starts_with(word))
        {
            separated.extend([0xA0, b' ']);
            rest = next;
        }
    }
    Cow::Owned(separated)
}

/// UTF-8 that may hold CESU-8 (a surrogate pair, three bytes each) and Java's two-byte NUL. `None` if it is not, as
/// when a surrogate stands alone.
fn decode_utf8_variants(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let num_plain = (0..rest.len()).find(|&at| variant(&rest[at..]).is_some()).unwrap_or(rest.len());
        text.push_str(std::str::from_utf8(&rest[..num_plain]).ok()?);
        rest = &rest[num_plain..];
        if let Some((character, num_bytes)) = variant(rest) {
            text.push(character);
            rest = &rest[num_bytes..];
        }
    }
    Some(text)
}

/// The character that `bytes` begin with in a way that UTF-8 does not have, and how many of them it takes.
fn variant(bytes: &[u8]) -> Option<(char, usize)> {
    match *bytes {
        [0xC0, 0x80, ..] => Some(('\0', 2)),
        [0xED, a @ 0xA0..=0xAF, b @ 0x80..=0xBF, 0xED, c @ 0xB0..=0xBF, d @ 0x80..=0xBF, ..] => {
            let bits = |byte: u8, mask: u8| u32::from(byte & mask);
            let high = bits(a, 0x0F) << 6 | bits(b, 0x3F);
            let low = bits(c, 0x0F) << 6 | bits(d, 0x3F);
            char::from_u32(0x10000 + (high << 10 | low)).map(|character| (character, 6))
        }
        _ => None,
    }
}

/// Characters that the first byte of a UTF-8 sequence becomes in a charmap, by the sequence's length, and those of
/// the bytes after it. Some that mojibake has are left out, for they are common in text that is right.
struct Sequences {
    first_of_2: CharSet,
    first_of_3: CharSet,
    first_of_4: CharSet,
    continuation: CharSet,
    /// Without the blank and punctuation that also stand before mojibake.
    strict_continuation: CharSet,
}

static SEQUENCES: LazyLock<Sequences> = LazyLock::new(|| {
    const FIRST_OF_2: &str = "ĂÂÄĀÅÃÆĆČÇĎĐÉĚÊËĖÈĒĘÐĞĢÍÎÏİÌĪĶĹĻŁŃŇŅÑÓÔÖŐÒŌØÕŘŚŠŞŢÞÚÛÜŰÙŪŲŮÝŹŽŻß×\
        Β-ΡΣ-Ϋά-ίВ-Я";
    const FIRST_OF_3: &str = "áăâäàāąåãæćčçďéěêëėèēęģíîïìīįķĺļŕźΰ-οа-п";
    const FIRST_OF_4: &str = "đðğóšπσру";
    const STRICT: &str =
        "\u{80}-¿ĄÆĽŁØŖŚŠŞŤŸŹŽŻŒąæƒľłøŗśšşťźžżœˆˇ˘˛˜˝΄΅ΆΈΉΊΌΎΏЁЂЃЄЅІЇЈЉЊЋЌЎЏёђѓєѕіїјљњћќўџҐґ†‡‰‹›€№™";
    Sequences {
        first_of_2: CharSet::parse(FIRST_OF_2),
        first_of_3: CharSet::parse(FIRST_OF_3),
        first_of_4: CharSet::parse(FIRST_OF_4),
        continuation: CharSet::parse(&format!("{STRICT} –—―‘’‚“”„•…")),
        strict_continuation: CharSet::parse(STRICT),
    }
});

/// `text` with the parts read again that distinctly are UTF-8 sequences read wrongly, though the whole is not.
/// `None` if there is none or nothing changes.
fn fix_embedded(text: &str, depth: usize) -> Option<String> {
    if depth == MAX_DEPTH {
        return None;
    }
    let characters: Vec<char> = text.chars().collect();
    let mut fixed = String::with_capacity(text.len());
    let mut position = 0;
    while position < characters.len() {
        let num_chars = embedded_len(&characters, position);
        let part: String = characters[position..position + num_chars.max(1)].iter().collect();
        // The whole text was tried already, and would never end.
        if num_chars > 0 && num_chars < characters.len() && looks_bad(&part) {
            fixed.push_str(&fix_at_depth(part, depth + 1));
        } else {
            fixed.push_str(&part);
        }
        position += num_chars.max(1);
    }
    (fixed != text).then_some(fixed)
}

/// How many characters from `start` on are wrongly read UTF-8 sequences, one after the other.
fn embedded_len(characters: &[char], start: usize) -> usize {
    let sequences = &*SEQUENCES;
    if start > 0 && sequences.strict_continuation.has(characters[start - 1]) {
        return 0;
    }
    let mut end = start;
    while let Some(&first) = characters.get(end) {
        let num_more = if sequences.first_of_2.has(first) {
            1
        } else if sequences.first_of_3.has(first) {
            2
        } else if sequences.first_of_4.has(first) {
            3
        } else {
            break;
        };
        let is_whole = characters
            .get(end + 1..end + 1 + num_more)
            .is_some_and(|more| more.iter().all(|&character| sequences.continuation.has(character)));
        if !is_whole {
            break;
        }
        end += 1 + num_more;
    }
    end - start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_characters_and_surrogates_alone_are_nothing() {
        assert_eq!(decode_utf8_variants(b"a\xed\xa0\xbd\xed\xb8\x8db\xc0\x80").unwrap(), "a😍b\0");
        let alone = [
            &b"\xed\xa0\xbd"[..],
            b"\xed\xb8\x8d\xed\xa0\xbd",
            b"\xed\xa0",
            b"\xc0",
            b"\xe2\x82\xc0\x80",
            b"\xed",
        ];
        for broken in alone {
            assert_eq!(decode_utf8_variants(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_grave_is_a_word() {
        let separate = |text: &[u8]| separate_a_grave(text).into_owned();
        assert_eq!(separate(b"voil\xc3 le"), b"voil\xc3\xa0 le");
        assert_eq!(separate(b"\xc3 s noites"), b"\xc3 s noites");
        assert_eq!(separate(b"\xc3 "), b"\xc3\xa0 ");
    }
}
