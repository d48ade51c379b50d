//! The single-byte encodings that text is most often wrongly decoded with.

use std::sync::LazyLock;

/// How many encodings are tried.
pub(super) const NUM_CHARMAPS: usize = 10;

/// The byte that stands for U+FFFD in the encodings with holes: what was there is lost.
pub(super) const LOST: u8 = 0x1A;

/// Characters of bytes 0x80 to 0xFF. A byte that has none in the standard has the character with its own number, as
/// in browsers (ftfy's `sloppy-` encodings). Source: the tables of the Python codecs of these names.
const WINDOWS_1252: &str = "\
    €\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸\
    ¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ";
const WINDOWS_1251: &str = "\
    ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\u{98}™љ›њќћџ\u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї°±Ііґµ¶·ё№є»јЅѕїАБВГДЕЖЗИЙКЛМ\
    НОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюя";
const WINDOWS_1250: &str = "\
    €\u{81}‚\u{83}„…†‡\u{88}‰Š‹ŚŤŽŹ\u{90}‘’“”•–—\u{98}™š›śťžź\u{a0}ˇ˘Ł¤Ą¦§¨©Ş«¬\u{ad}®Ż°±˛ł´µ¶·¸\
    ąş»Ľ˝ľżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";
const WINDOWS_1253: &str = "\
    €\u{81}‚ƒ„…†‡\u{88}‰\u{8a}‹\u{8c}\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}\u{9d}\
    \u{9e}\u{9f}\u{a0}΅Ά£¤¥¦§¨©ª«¬\u{ad}®―°±²³΄µ¶·ΈΉΊ»Ό½ΎΏΐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡÒΣΤΥΦΧΨΩΪΫάέήίΰαβγδε\
    ζηθικλμνξοπρςστυφχψωϊϋόύώÿ";
const WINDOWS_1254: &str = "\
    €\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}\u{9e}Ÿ\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®\
    ¯°±²³´µ¶·¸¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏĞÑÒÓÔÕÖ×ØÙÚÛÜİŞßàáâãäåæçèéêëìíîïğñòóôõö÷øùúûüışÿ";
const WINDOWS_1257: &str = "\
    €\u{81}‚\u{83}„…†‡\u{88}‰\u{8a}‹\u{8c}¨ˇ¸\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}¯˛\u{9f}\u{a0}¡¢£¤\
    ¥¦§Ø©Ŗ«¬\u{ad}®Æ°±²³´µ¶·ø¹ŗ»¼½¾æĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽßąįāćäåęēčéźėģķīļšńņóōõö÷ųłśū\
    üżž˙";
const ISO_8859_2: &str = "\
    \u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}\u{8d}\u{8e}\
    \u{8f}\u{90}\u{91}\u{92}\u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}\u{9a}\u{9b}\u{9c}\u{9d}\
    \u{9e}\u{9f}\u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ°ą˛ł´ľśˇ¸šşťź˝žżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺ\
    ćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";
const MAC_ROMAN: &str = "\
    ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒœ–—“”‘’÷\
    ◊ÿŸ⁄€‹›ﬁﬂ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ";
const CODE_PAGE_437: &str = "\
    ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█\
    ▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// What an encoding does with U+FFFD and byte 0x1A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holes {
    /// Byte 0x1A is the control character.
    None,
    /// U+FFFD is byte 0x1A, and the control character has no byte.
    Lost,
}

/// A single-byte encoding in which bytes below 0x80 are ASCII.
#[derive(Debug)]
pub(super) struct Charmap {
    upper_half: Vec<char>,
    /// The same by character, in order.
    bytes: Vec<(char, u8)>,
    holes: Holes,
    no_break_spaces: NoBreakSpaces,
}

/// Whether blanks may be no-break spaces that someone made blanks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoBreakSpaces {
    Restore,
    /// In Mac Roman a dash and a blank would look like that.
    Keep,
}

impl Charmap {
    /// All, in the order they are tried in.
    pub(super) fn all() -> &'static [Charmap; NUM_CHARMAPS] {
        static ALL: LazyLock<[Charmap; NUM_CHARMAPS]> = LazyLock::new(|| {
            let latin_1: String = ('\u{80}'..='\u{ff}').collect();
            [
                Charmap::new(&latin_1, Holes::None, NoBreakSpaces::Restore),
                Charmap::new(WINDOWS_1252, Holes::Lost, NoBreakSpaces::Restore),
                Charmap::new(WINDOWS_1251, Holes::Lost, NoBreakSpaces::Restore),
                Charmap::new(WINDOWS_1250, Holes::Lost, NoBreakSpaces::Restore),
                Charmap::new(WINDOWS_1253, Holes::Lost, NoBreakSpaces::Restore),
                Charmap::new(WINDOWS_1254, Holes::Lost, NoBreakSpaces::Restore),
                Charmap::new(WINDOWS_1257, Holes::Lost, NoBreakSpaces::Restore),
                Charmap::new(ISO_8859_2, Holes::None, NoBreakSpaces::Restore),
                Charmap::new(MAC_ROMAN, Holes::None, NoBreakSpaces::Keep),
                Charmap::new(CODE_PAGE_437, Holes::None, NoBreakSpaces::Restore),
            ]
        });
        &ALL
    }

    /// Windows-1252.
    pub(super) fn windows_1252() -> &'static Charmap {
        &Charmap::all()[1]
    }

    fn new(upper_half: &str, holes: Holes, no_break_spaces: NoBreakSpaces) -> Self {
        let upper_half: Vec<char> = upper_half.chars().collect();
        assert_eq!(upper_half.len(), 128, "a charmap has a character for each byte from 0x80 on");
        let mut bytes: Vec<(char, u8)> = upper_half.iter().copied().zip(0x80..=0xFF).collect();
        if holes == Holes::Lost {
            bytes.push((char::REPLACEMENT_CHARACTER, LOST));
        }
        bytes.sort_unstable();
        Self { upper_half, bytes, holes, no_break_spaces }
    }

    pub(super) fn no_break_spaces(&self) -> NoBreakSpaces {
        self.no_break_spaces
    }

    /// Whether lost bytes show up as [`LOST`].
    pub(super) fn marks_lost_bytes(&self) -> bool {
        self.holes == Holes::Lost
    }

    /// `text` in this encoding, or `None` if it has a character that the encoding lacks.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|character| self.byte(character)).collect()
    }

    fn byte(&self, character: char) -> Option<u8> {
        match u8::try_from(character) {
            Ok(LOST) if self.holes == Holes::Lost => None,
            Ok(byte) if byte.is_ascii() => Some(byte),
            _ => {
                let found = self.bytes.binary_search_by_key(&character, |&(known, _)| known).ok()?;
                Some(self.bytes[found].1)
            }
        }
    }

    /// The character of `byte`.
    pub(super) fn character(&self, byte: u8) -> char {
        match byte.checked_sub(0x80) {
            Some(index) => self.upper_half[usize::from(index)],
            None => char::from(byte),
        }
    }

    /// `bytes` in this encoding, read as text.
    #[cfg(test)]
    pub(super) fn decode(&self, bytes: &[u8]) -> String {
        bytes.iter().map(|&byte| self.character(byte)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_then_encode_is_the_identity() {
        let bytes: Vec<u8> = (0..=u8::MAX).filter(|&byte| byte != LOST).collect();
        for charmap in Charmap::all() {
            assert_eq!(charmap.encode(&charmap.decode(&bytes)), Some(bytes.clone()));
        }
    }

    #[test]
    fn a_lost_byte_has_a_mark_where_there_are_holes() {
        for charmap in Charmap::all() {
            let marks = charmap.marks_lost_bytes();
            assert_eq!(charmap.encode("\u{fffd}"), marks.then_some(vec![LOST]));
            assert_eq!(charmap.encode("\u{1a}").is_none(), marks);
        }
    }
}
