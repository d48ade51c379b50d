//! A 3 by 5 pixel font: capitals for the letters of [`WORDS`](super::WORDS), and digits.

/// Columns of a glyph.
pub(super) const GLYPH_WIDTH: usize = 3;
/// Rows of a glyph.
pub(super) const GLYPH_HEIGHT: usize = 5;

/// Five rows from top to bottom, three characters each; `#` is ink.
type Glyph = [&'static str; GLYPH_HEIGHT];

/// Whether the glyph of `character` has ink at (`column`, `row`). A character without glyph is blank.
pub(super) fn has_ink(character: char, column: usize, row: usize) -> bool {
    glyph(character).is_some_and(|glyph| glyph[row].as_bytes()[column] == b'#')
}

#[rustfmt::skip]
fn glyph(character: char) -> Option<Glyph> {
    Some(match character.to_ascii_lowercase() {
        'a' => [".#.", "#.#", "###", "#.#", "#.#"],
        'b' => ["##.", "#.#", "##.", "#.#", "##."],
        'c' => [".##", "#..", "#..", "#..", ".##"],
        'd' => ["##.", "#.#", "#.#", "#.#", "##."],
        'e' => ["###", "#..", "##.", "#..", "###"],
        'f' => ["###", "#..", "##.", "#..", "#.."],
        'g' => [".##", "#..", "#.#", "#.#", ".##"],
        'h' => ["#.#", "#.#", "###", "#.#", "#.#"],
        'i' => ["###", ".#.", ".#.", ".#.", "###"],
        'j' => ["..#", "..#", "..#", "#.#", ".#."],
        'k' => ["#.#", "#.#", "##.", "#.#", "#.#"],
        'l' => ["#..", "#..", "#..", "#..", "###"],
        'm' => ["#.#", "###", "###", "#.#", "#.#"],
        'n' => ["##.", "#.#", "#.#", "#.#", "#.#"],
        'o' => [".#.", "#.#", "#.#", "#.#", ".#."],
        'p' => ["##.", "#.#", "##.", "#..", "#.."],
        'r' => ["##.", "#.#", "##.", "##.", "#.#"],
        's' => [".##", "#..", ".#.", "..#", "##."],
        't' => ["###", ".#.", ".#.", ".#.", ".#."],
        'u' => ["#.#", "#.#", "#.#", "#.#", "###"],
        'x' => ["#.#", "#.#", ".#.", "#.#", "#.#"],
        'y' => ["#.#", "#.#", ".#.", ".#.", ".#."],
        '0' => ["###", "#.#", "#.#", "#.#", "###"],
        '1' => [".#.", "##.", ".#.", ".#.", "###"],
        '2' => ["###", "..#", "###", "#..", "###"],
        '3' => ["###", "..#", ".##", "..#", "###"],
        '4' => ["#.#", "#.#", "###", "..#", "..#"],
        '5' => ["###", "#..", "###", "..#", "###"],
        '6' => ["###", "#..", "###", "#.#", "###"],
        '7' => ["###", "..#", ".#.", ".#.", ".#."],
        '8' => ["###", "#.#", "###", "#.#", "###"],
        '9' => ["###", "#.#", "###", "..#", "###"],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::WORDS;

    #[test]
    fn every_character_that_is_written_has_its_own_glyph() {
        let characters: std::collections::BTreeSet<char> =
            WORDS.iter().flat_map(|word| word.chars()).chain('0'..='9').collect();
        let mut seen = std::collections::BTreeMap::new();
        for character in characters {
            let glyph = glyph(character).unwrap_or_else(|| panic!("no glyph for {character}"));
            assert!(glyph.iter().all(|row| row.len() == GLYPH_WIDTH));
            assert_eq!(seen.insert(glyph, character), None, "two characters look alike");
        }
    }
}
