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
    /// Everything, place by place: `at the top left a large red circle, at the center a small blue square and at
    /// the bottom the word cat`.
    Full,
    /// A list: `red circle, blue square, word cat`.
    Terse,
    /// Where things are relative to each other: `the red circle is above the blue square`.
    Relational,
    /// With a count in front: `two objects and the word cat: a red circle and a blue square`.
    Counting,
    /// Like a page's alt text, about two objects at most: `photo of a red circle above a blue square`.
    AltText,
}

impl CaptionStyle {
    /// Every style.
    pub const ALL: [CaptionStyle; 5] = [
        CaptionStyle::Full,
        CaptionStyle::Terse,
        CaptionStyle::Relational,
        CaptionStyle::Counting,
        CaptionStyle::AltText,
    ];

    /// Weights of [`ALL`](Self::ALL) wherever a style is drawn.
    const WEIGHTS: [u32; 5] = [60, 10, 10, 10, 10];

    pub(crate) fn random(rng: &mut Rng) -> CaptionStyle {
        Self::ALL[weighted_index(&Self::WEIGHTS, rng)]
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
    }
}

/// The full caption; there is one way to word it.
#[must_use]
pub fn full(scene: &Scene) -> String {
    let mentions = in_reading_order(
        scene,
        |object| {
            let size = object.size.name();
            format!("at the {} a {size} {}", object.cell.name(), look(object))
        },
        |written| format!("at the {} {}", written.cell.name(), the_writing(written)),
    );
    join_with_and(&mentions)
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

/// `red circle`.
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
            object(ObjectSize::Large, Color::Red, Shape::Circle, 0),
            object(ObjectSize::Small, Color::Orange, Shape::Square, 3),
        ];
        let written = Some(WrittenText { writing: Writing::Word("cat"), cell: Cell::new(7), rgb: [255; 3] });
        Scene { objects, written, background: [0; 3], texture_seed: 0 }
    }

    #[test]
    fn styles_read_as_documented() {
        let caption = |style| caption(&example(), style, &mut stream(0, "test", 0, 0, 0));
        assert_eq!(
            caption(CaptionStyle::Full),
            "at the top left a large red circle, at the left a small orange square and at the bottom the word cat"
        );
        assert_eq!(caption(CaptionStyle::Terse), "red circle, orange square, word cat");
        assert_eq!(caption(CaptionStyle::Relational), "the red circle is above the orange square");
        assert_eq!(
            caption(CaptionStyle::Counting),
            "two objects and the word cat: a red circle and an orange square"
        );
        let alt = caption(CaptionStyle::AltText);
        assert!(alt.ends_with(" of a red circle above an orange square"), "{alt}");
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
                assert_true(&caption, &scene);
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
