//! Captions in a small, regular language of lower-case words.
//!
//! Whatever a caption mentions, it mentions in reading order (top left to bottom right): a small model then
//! has one order to learn.

use crate::scene::{Cell, Object, Scene, WrittenText, weighted_index};
use oqvl_stage::Rng;
use rand::Rng as _;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

/// How a caption says what it says. The examples are of one scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptionStyle {
    /// Everything, place by place: `at the top left a large red ring, at the top right a small blue bar and
    /// at the bottom left the word cat`.
    Full,
    /// A list: `red ring, blue bar, word cat`.
    Terse,
    /// Where things are relative to each other: `the red ring is above the blue bar`.
    Relational,
    /// With a count in front: `two objects and the word cat: a red ring and a blue bar`.
    Counting,
    /// Like a page's alt text, about two objects at most: `photo of a red ring above a blue bar`.
    AltText,
    /// Shapes and nothing else: `a ring and a bar`.
    Outline,
}

impl CaptionStyle {
    /// Every style.
    pub const ALL: [CaptionStyle; 6] = [
        CaptionStyle::Full,
        CaptionStyle::Terse,
        CaptionStyle::Relational,
        CaptionStyle::Counting,
        CaptionStyle::AltText,
        CaptionStyle::Outline,
    ];

    /// Weights of [`ALL`](Self::ALL) on the web.
    const WEIGHTS: [u32; 6] = [55, 10, 10, 10, 5, 10];

    /// Weights of [`ALL`](Self::ALL) for contrastive training. Places and colours tell most pairs of a batch
    /// apart; a tower that shall know shapes needs captions that mention nothing else.
    pub(crate) const CONTRASTIVE_WEIGHTS: [u32; 6] = [30, 10, 5, 5, 5, 45];

    pub(crate) fn random(rng: &mut Rng) -> CaptionStyle {
        Self::weighted(&Self::WEIGHTS, rng)
    }

    /// A random style with the given weights of [`ALL`](Self::ALL).
    pub(crate) fn weighted(weights: &[u32; 6], rng: &mut Rng) -> CaptionStyle {
        Self::ALL[weighted_index(weights, rng)]
    }

    /// A random style that is not `self`.
    pub(crate) fn random_other(self, rng: &mut Rng) -> CaptionStyle {
        loop {
            let style = Self::random(rng);
            if style != self {
                return style;
            }
        }
    }
}

/// A true caption of the scene. `rng` chooses among equally good wordings.
#[must_use]
pub fn caption(scene: &Scene, style: CaptionStyle, rng: &mut Rng) -> String {
    match style {
        CaptionStyle::Full => full(scene),
        CaptionStyle::Terse => terse(scene),
        CaptionStyle::Relational => relational(scene, rng),
        CaptionStyle::Counting => counting(scene),
        CaptionStyle::AltText => alt_text(scene, rng),
        CaptionStyle::Outline => outline(scene),
    }
}

/// The full caption; there is one way to word it.
#[must_use]
pub fn full(scene: &Scene) -> String {
    let mentions = in_reading_order(scene, object_at_place, |written| {
        format!("at the {} {}", written.cell.name(), the_writing(written))
    });
    join_with_and(&mentions)
}

/// `at the top left a large red ring`.
fn object_at_place(object: &Object) -> String {
    format!("at the {} a {} {}", object.cell.name(), object.size.name(), look(object))
}

fn terse(scene: &Scene) -> String {
    let writing = |written: &WrittenText| format!("{} {}", written.writing.kind(), written.writing.text());
    in_reading_order(scene, look, writing).join(", ")
}

fn relational(scene: &Scene, rng: &mut Rng) -> String {
    if let [object] = scene.objects.as_slice() {
        return format!("the {} is at the {}", look(object), object.cell.name());
    }
    let relations: Vec<String> = (scene.objects.windows(2))
        .map(|pair| {
            format!(
                "the {} is {} the {}",
                look(&pair[0]),
                relation(pair[0].cell, pair[1].cell, rng),
                look(&pair[1])
            )
        })
        .collect();
    join_with_and(&relations)
}

fn counting(scene: &Scene) -> String {
    const COUNTS: [&str; crate::scene::MAX_OBJECTS] =
        ["one object", "two objects", "three objects", "four objects"];
    let mut caption = COUNTS[scene.objects.len() - 1].to_owned();
    if let Some(written) = &scene.written {
        caption += &format!(" and {}", the_writing(written));
    }
    let objects: Vec<String> = scene.objects.iter().map(a_look).collect();
    format!("{caption}: {}", join_with_and(&objects))
}

fn outline(scene: &Scene) -> String {
    let shapes: Vec<String> =
        scene.objects.iter().map(|object| format!("a {}", object.shape.name())).collect();
    join_with_and(&shapes)
}

fn alt_text(scene: &Scene, rng: &mut Rng) -> String {
    let opening = ["photo of", "picture of", "image of"].choose(rng).expect("there are openings");
    match (scene.objects.as_slice(), &scene.written) {
        ([first, second, ..], _) => {
            format!(
                "{opening} {} {} {}",
                a_look(first),
                relation(first.cell, second.cell, rng),
                a_look(second)
            )
        }
        ([object], Some(written)) => format!("{opening} {} and {}", a_look(object), the_writing(written)),
        (objects, _) => {
            format!("{opening} {}", join_with_and(&objects.iter().map(a_look).collect::<Vec<_>>()))
        }
    }
}

/// How `a` lies to `b`, where `a` comes first in reading order; in two directions at once, either may be
/// named.
fn relation(a: Cell, b: Cell, rng: &mut Rng) -> &'static str {
    let across = match a.column().cmp(&b.column()) {
        std::cmp::Ordering::Less => Some("left of"),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some("right of"),
    };
    match (across, a.row() < b.row()) {
        (Some(across), false) => across,
        (None, _) => "above",
        (Some(across), true) => {
            if rng.random_bool(0.5) {
                across
            } else {
                "above"
            }
        }
    }
}

/// `red ring`.
pub(crate) fn look(object: &Object) -> String {
    format!("{} {}", object.color.name(), object.shape.name())
}

fn a_look(object: &Object) -> String {
    format!("{} {}", object.color.with_article(), object.shape.name())
}

fn the_writing(written: &WrittenText) -> String {
    format!("the {} {}", written.writing.kind(), written.writing.text())
}

fn in_reading_order(
    scene: &Scene,
    of_object: impl Fn(&Object) -> String,
    of_writing: impl Fn(&WrittenText) -> String,
) -> Vec<String> {
    let mut mentions: Vec<(Cell, String)> =
        scene.objects.iter().map(|object| (object.cell, of_object(object))).collect();
    mentions.extend(scene.written.iter().map(|written| (written.cell, of_writing(written))));
    mentions.sort_by_key(|(cell, _)| *cell);
    mentions.into_iter().map(|(_, text)| text).collect()
}

/// `a`, `a and b`, `a, b and c`.
fn join_with_and(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Color, ObjectSize, Shape, Split, Writing};
    use oqvl_stage::stream;

    fn object(size: ObjectSize, color: Color, shape: Shape, cell: u8) -> Object {
        Object { shape, color, size, cell: Cell::new(cell), jitter: [0.0, 0.0] }
    }

    fn example() -> Scene {
        let objects = vec![
            object(ObjectSize::Large, Color::Red, Shape::Ring, 0),
            object(ObjectSize::Small, Color::Orange, Shape::Bar, 2),
        ];
        let written = Some(WrittenText { writing: Writing::Word("cat"), cell: Cell::new(3), rgb: [255; 3] });
        Scene { objects, written, background: [0; 3], texture_seed: 0 }
    }

    #[test]
    fn styles_read_as_documented() {
        let caption = |style| caption(&example(), style, &mut stream(0, "test", 0, 0, 0));
        assert_eq!(
            caption(CaptionStyle::Full),
            "at the top left a large red ring, at the bottom left a small orange bar and at the bottom right the word cat"
        );
        assert_eq!(caption(CaptionStyle::Terse), "red ring, orange bar, word cat");
        assert_eq!(caption(CaptionStyle::Relational), "the red ring is above the orange bar");
        assert_eq!(
            caption(CaptionStyle::Counting),
            "two objects and the word cat: a red ring and an orange bar"
        );
        let alt = caption(CaptionStyle::AltText);
        assert!(alt.ends_with(" of a red ring above an orange bar"), "{alt}");
        assert_eq!(caption(CaptionStyle::Outline), "a ring and a bar");
    }

    /// An outline names every shape in order and nothing else.
    fn assert_outline(caption: &str, scene: &Scene) {
        let named: Vec<&str> =
            caption.split([' ', ',']).filter(|word| !["", "a", "and"].contains(word)).collect();
        let shapes: Vec<&str> = scene.objects.iter().map(|object| object.shape.name()).collect();
        assert_eq!(named, shapes, "{caption}");
    }

    /// Reads a caption back, phrase by phrase, and checks every claim against the scene.
    fn assert_true(caption: &str, scene: &Scene) {
        let claims = caption.split_once(": ").map_or(caption, |(count, rest)| {
            let number = count.split(' ').next().unwrap();
            let expected = ["one", "two", "three", "four"][scene.objects.len() - 1];
            assert_eq!(number, expected, "{caption}");
            rest
        });
        let claims = claims.replace(", ", " and ");
        let mut num_objects = 0;
        for claim in claims.split(" and ") {
            let words: Vec<&str> = claim.split(' ').collect();
            let objects: Vec<&Object> = (words.windows(2))
                .filter(|pair| Shape::ALL.iter().any(|shape| shape.name() == pair[1]))
                .map(|pair| {
                    let found = scene.objects.iter().find(|object| look(object) == pair.join(" "));
                    found.unwrap_or_else(|| panic!("`{claim}` of `{caption}` is not there"))
                })
                .collect();
            num_objects += objects.len();
            let place = claim.split_once("at the ").map(|(_, rest)| {
                // The place comes first and ends at an article, or comes last.
                let end = [" a ", " the "].iter().filter_map(|article| rest.find(article)).min();
                &rest[..end.unwrap_or(rest.len())]
            });
            match objects.as_slice() {
                [] => {
                    let written = scene.written.unwrap();
                    assert!(claim.contains(&format!(
                        "{} {}",
                        written.writing.kind(),
                        written.writing.text()
                    )));
                    assert!(place.is_none_or(|place| place == written.cell.name()), "{caption}");
                }
                [one] => {
                    assert!(place.is_none_or(|place| place == one.cell.name()), "{caption}");
                    let size = ObjectSize::ALL.iter().find(|size| words.contains(&size.name()));
                    assert!(size.is_none_or(|&size| size == one.size), "{caption}");
                }
                [a, b] => {
                    let (a, b) = (a.cell, b.cell);
                    let holds = (claim.contains("left of") && a.column() < b.column())
                        || (claim.contains("right of") && a.column() > b.column())
                        || (claim.contains("above") && a.row() < b.row());
                    assert!(holds, "{caption}");
                }
                _ => panic!("`{claim}`"),
            }
        }
        assert!(num_objects > 0, "`{caption}` mentions nothing");
    }

    #[test]
    fn captions_are_true() {
        for index in 0..400 {
            let scene = Scene::generate(3, Split::Web, index);
            for style in CaptionStyle::ALL {
                let caption = caption(&scene, style, &mut stream(3, "test", 0, 0, index));
                match style {
                    CaptionStyle::Outline => assert_outline(&caption, &scene),
                    _ => assert_true(&caption, &scene),
                }
                assert!(
                    caption
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || " ,:".contains(c))
                );
            }
        }
    }

    #[test]
    fn the_vocabulary_is_small() {
        let mut words = std::collections::BTreeSet::new();
        for index in 0..2000 {
            let scene = Scene::generate(3, Split::Web, index);
            for style in CaptionStyle::ALL {
                let caption = caption(&scene, style, &mut stream(3, "test", 0, 0, index));
                let letters = caption.split(|c: char| !c.is_ascii_lowercase()).map(str::to_owned);
                words.extend(letters.filter(|word| !word.is_empty()));
            }
        }
        assert!(words.len() < 80, "{words:?}");
    }
}
