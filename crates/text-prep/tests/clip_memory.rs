//! Memory that a hostile text costs on its way into CLIP, in its own process so that nothing else allocates.

use oqvl_text_prep::clean_clip_text;
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes at most per byte of text: a character takes four as such, and a step holds its input, its output and at most
/// two more forms of the text.
const MAX_BYTES_PER_BYTE: usize = 24;

#[test]
fn cleaning_takes_memory_in_proportion() {
    // The tables are made once.
    clean_clip_text("Ã¢â‚¬â„¢ &amp; \u{1b}[0m");
    let one_million = 1_000_000;
    let pieces = [
        "a",
        "word ",
        "amp;",
        "&nGt;",
        "&#0;",
        "&",
        "Ã¢â‚¬â„¢ ",
        "\u{81}",
        "Ã ",
        "￣",
        "ﬃ",
        "e\u{301}",
        "\u{301}",
        "\u{fffd}",
        "À\u{a0}х",
        "😀",
        "\n",
        "<",
        "\u{1b}[",
    ];
    for piece in pieces {
        let text = format!("&é{}", piece.repeat(one_million / piece.len()));
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let cleaned = clean_clip_text(&text);
        let peak = MEMORY.peak_usage() - before;
        assert!(peak <= MAX_BYTES_PER_BYTE * text.len(), "{piece:?} took {peak} bytes for {}", text.len());
        assert!(cleaned.len() <= 4 * text.len(), "{piece:?}");
    }
}
