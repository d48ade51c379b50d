//! Scenes: what is in a picture, as a pure function of the seed, the split and an index.
//!
//! Splits share no scene by construction. A scene's [`layout`](Scene::layout) (which shape in which colour
//! stands in which cell, and what is written where; sizes, jitter and backgrounds do not count) is hashed
//! into one of 16 buckets, every bucket belongs to one split, and drawing goes on until the layout falls into
//! a bucket of the split that was asked for.

mod attributes;
mod draw;
mod font;

pub use attributes::{Cell, Color, GRID, NUMBER_LIMIT, ObjectSize, Shape, WORDS, Writing};
pub use draw::{Canvas, draw};

use oqvl_stage::{Rng, stream};
use rand::Rng as _;
use rand::seq::{IndexedRandom, SliceRandom};

/// What a scene is for. Scenes of two splits never have the same [layout](Scene::layout).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// The corpora that stand for public checkpoints: SigLIP pairs and the language model's text.
    Bootstrap,
    /// The pool of URLs.
    Web,
    /// Visual instruction tuning.
    Sft,
    /// The MLM-Filter's training pairs.
    Mlm,
    /// The held-out benchmarks.
    Eval,
}

impl Split {
    /// Every split.
    pub const ALL: [Split; 5] = [Split::Bootstrap, Split::Web, Split::Sft, Split::Mlm, Split::Eval];

    /// The buckets of 16 whose layouts are this split's.
    fn buckets(self) -> std::ops::Range<u8> {
        match self {
            Split::Bootstrap => 0..4,
            Split::Web => 4..9,
            Split::Sft => 9..12,
            Split::Mlm => 12..14,
            Split::Eval => 14..16,
        }
    }

    /// Name of the split's random streams.
    fn stream_name(self) -> &'static str {
        match self {
            Split::Bootstrap => "micro-world/scene/bootstrap",
            Split::Web => "micro-world/scene/web",
            Split::Sft => "micro-world/scene/sft",
            Split::Mlm => "micro-world/scene/mlm",
            Split::Eval => "micro-world/scene/eval",
        }
    }
}

/// One object of a scene.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Object {
    /// Outline.
    pub shape: Shape,
    /// Paint.
    pub color: Color,
    /// Share of the cell it fills.
    pub size: ObjectSize,
    /// Where it stands.
    pub cell: Cell,
    /// Offset from the middle of the cell, right and down, in 96ths of the canvas; at most 2 either way.
    pub jitter: [f32; 2],
}

/// A word or number that fills a cell of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WrittenText {
    /// What is written.
    pub writing: Writing,
    /// Where it stands.
    pub cell: Cell,
    /// Its paint: white or a pale colour.
    pub rgb: [u8; 3],
}

/// A picture before it is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// One to four objects in reading order, in distinct cells and with distinct (shape, colour) pairs.
    pub objects: Vec<Object>,
    /// About a third of the scenes have a word or a number in a cell of its own.
    pub written: Option<WrittenText>,
    /// Mean colour of the background: dark.
    pub background: [u8; 3],
    /// Seed of the background's texture.
    pub texture_seed: u64,
}

/// The most objects a scene has.
pub const MAX_OBJECTS: usize = 4;

/// Share of the scenes with a word or a number among those that have a cell for it.
const WRITTEN_SHARE: f64 = 0.5;
/// Share of the writings that are words; words are fewer than numbers and so easier to learn.
const WORD_SHARE: f64 = 0.65;
/// Share of the scenes all of whose objects differ in shape and in colour, so that one attribute names an
/// object.
const ALL_DISTINCT_SHARE: f64 = 0.5;
/// Weights of one, two, three and four objects. Few scenes have a single object: there are not many of those.
const OBJECT_COUNT_WEIGHTS: [u32; MAX_OBJECTS] = [16, 26, 30, 28];

const BACKGROUNDS: [[u8; 3]; 6] =
    [[18, 18, 20], [38, 38, 40], [58, 58, 60], [74, 74, 74], [24, 30, 44], [44, 34, 32]];
const INKS: [[u8; 3]; 3] = [[255, 255, 255], [255, 246, 204], [212, 232, 255]];

impl Scene {
    /// Scene number `index` of a split: a pure function of its arguments.
    #[must_use]
    pub fn generate(seed: u64, split: Split, index: u64) -> Scene {
        let mut rng = stream(seed, split.stream_name(), 0, 0, index);
        loop {
            let scene = Scene::random(&mut rng);
            if split.buckets().contains(&scene.bucket()) {
                return scene;
            }
        }
    }

    fn random(rng: &mut Rng) -> Scene {
        let num_objects = 1 + weighted_index(&OBJECT_COUNT_WEIGHTS, rng);
        let mut cells: Vec<Cell> = Cell::all().collect();
        cells.shuffle(rng);
        let has_room = num_objects < cells.len();
        let written = (has_room && rng.random_bool(WRITTEN_SHARE)).then(|| WrittenText {
            writing: random_writing(rng),
            cell: cells[num_objects],
            rgb: *INKS.choose(rng).expect("there are inks"),
        });
        let looks = random_looks(num_objects, rng);
        let mut objects: Vec<Object> = (looks.into_iter().zip(cells))
            .map(|((shape, color), cell)| random_object(shape, color, cell, rng))
            .collect();
        objects.sort_by_key(|object| object.cell);
        let background = *BACKGROUNDS.choose(rng).expect("there are backgrounds");
        Scene { objects, written, background, texture_seed: rng.random() }
    }

    /// What the scene shows, without sizes, jitter and background; equal for scenes a caption without sizes
    /// could not tell apart.
    #[must_use]
    pub fn layout(&self) -> String {
        let mut layout: Vec<String> = (self.objects.iter())
            .map(|object| {
                format!("{} {} {}", object.cell.position(), object.color.name(), object.shape.name())
            })
            .collect();
        if let Some(written) = self.written {
            layout.push(format!(
                "{} {} {}",
                written.cell.position(),
                written.writing.kind(),
                written.writing.text()
            ));
        }
        layout.join(",")
    }

    fn bucket(&self) -> u8 {
        // Any fixed hash will do, and `stream` is one that is at hand: the layout is the name of the stream.
        stream(0, &self.layout(), 0, 0, 0).random::<u8>() % 16
    }

    /// Whether an object of that shape and colour is there.
    #[must_use]
    pub fn contains(&self, shape: Shape, color: Color) -> bool {
        self.objects.iter().any(|object| object.shape == shape && object.color == color)
    }

    /// The objects whose shape no other object has.
    pub fn uniquely_shaped(&self) -> impl Iterator<Item = &Object> {
        self.objects
            .iter()
            .filter(|one| self.objects.iter().filter(|other| other.shape == one.shape).count() == 1)
    }

    /// The objects whose colour no other object has.
    pub fn uniquely_colored(&self) -> impl Iterator<Item = &Object> {
        self.objects
            .iter()
            .filter(|one| self.objects.iter().filter(|other| other.color == one.color).count() == 1)
    }
}

/// Distinct (shape, colour) pairs; in half of the scenes no shape and no colour comes twice.
fn random_looks(num_objects: usize, rng: &mut Rng) -> Vec<(Shape, Color)> {
    if rng.random_bool(ALL_DISTINCT_SHARE) {
        let shapes = Shape::ALL.choose_multiple(rng, num_objects).copied().collect::<Vec<_>>();
        let colors = Color::ALL.choose_multiple(rng, num_objects).copied();
        return shapes.into_iter().zip(colors).collect();
    }
    let mut looks = Vec::with_capacity(num_objects);
    while looks.len() < num_objects {
        let look = (random_shape(rng), random_color(rng));
        if !looks.contains(&look) {
            looks.push(look);
        }
    }
    looks
}

fn random_object(shape: Shape, color: Color, cell: Cell, rng: &mut Rng) -> Object {
    let size = *ObjectSize::ALL.choose(rng).expect("there are sizes");
    // A large object nearly fills its cell; with less jitter it stays clear of its neighbours.
    let reach = if size == ObjectSize::Large { 1.0 } else { 2.0 };
    let jitter = [rng.random_range(-reach..=reach), rng.random_range(-reach..=reach)];
    Object { shape, color, size, cell, jitter }
}

/// A uniformly random shape.
pub(crate) fn random_shape(rng: &mut Rng) -> Shape {
    *Shape::ALL.choose(rng).expect("there are shapes")
}

/// A uniformly random colour.
pub(crate) fn random_color(rng: &mut Rng) -> Color {
    *Color::ALL.choose(rng).expect("there are colours")
}

fn random_writing(rng: &mut Rng) -> Writing {
    if rng.random_bool(WORD_SHARE) {
        Writing::Word(WORDS.choose(rng).expect("there are words"))
    } else {
        Writing::Number(rng.random_range(0..NUMBER_LIMIT))
    }
}

/// A random index with probability proportional to its weight.
pub(crate) fn weighted_index(weights: &[u32], rng: &mut Rng) -> usize {
    let mut rest = rng.random_range(0..weights.iter().sum());
    for (index, &weight) in weights.iter().enumerate() {
        if rest < weight {
            return index;
        }
        rest -= weight;
    }
    unreachable!("the draw is below the sum of the weights")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn scenes(split: Split, count: u64) -> impl Iterator<Item = Scene> {
        (0..count).map(move |index| Scene::generate(7, split, index))
    }

    #[test]
    fn a_scene_is_a_function_of_seed_split_and_index() {
        let scene = Scene::generate(7, Split::Web, 12);
        let _other = Scene::generate(7, Split::Web, 13);
        assert_eq!(scene, Scene::generate(7, Split::Web, 12));
        for other in [(8, Split::Web, 12), (7, Split::Sft, 12), (7, Split::Web, 11)] {
            assert_ne!(scene, Scene::generate(other.0, other.1, other.2));
        }
    }

    #[test]
    fn scenes_obey_the_rules() {
        for split in Split::ALL {
            for scene in scenes(split, 300) {
                assert!((1..=MAX_OBJECTS).contains(&scene.objects.len()));
                assert!(scene.objects.is_sorted_by_key(|object| object.cell), "reading order");
                let mut cells: BTreeSet<_> = scene.objects.iter().map(|object| object.cell).collect();
                let looks: BTreeSet<_> =
                    scene.objects.iter().map(|object| (object.shape, object.color)).collect();
                assert_eq!((cells.len(), looks.len()), (scene.objects.len(), scene.objects.len()));
                assert!(scene.written.is_none_or(|written| cells.insert(written.cell)));
                assert!(scene.objects.iter().flat_map(|object| object.jitter).all(|j| j.abs() <= 2.0));
            }
        }
    }

    #[test]
    fn splits_share_no_layout() {
        let mut owner: BTreeMap<String, Split> = BTreeMap::new();
        for split in Split::ALL {
            for scene in scenes(split, 3000) {
                let first = *owner.entry(scene.layout()).or_insert(split);
                assert_eq!(first, split, "{}", scene.layout());
            }
        }
    }

    #[test]
    fn buckets_cover_all_layouts_once() {
        let mut owners = [0; 16];
        for split in Split::ALL {
            split.buckets().for_each(|bucket| owners[usize::from(bucket)] += 1);
        }
        assert_eq!(owners, [1; 16]);
    }

    #[test]
    fn shares_are_as_documented() {
        let scenes: Vec<_> = scenes(Split::Bootstrap, 4000).collect();
        let share = |count: usize| count as f64 / scenes.len() as f64;
        let written = share(scenes.iter().filter(|scene| scene.written.is_some()).count());
        let with_room = f64::from(OBJECT_COUNT_WEIGHTS[..MAX_OBJECTS - 1].iter().sum::<u32>()) / 100.0;
        assert!((written - with_room * WRITTEN_SHARE).abs() < 0.04, "{written}");
        let uniquely = share(scenes.iter().filter(|scene| scene.uniquely_shaped().next().is_some()).count());
        assert!(uniquely > 0.9, "{uniquely}");
        for (num_objects, weight) in (1..).zip(OBJECT_COUNT_WEIGHTS) {
            let found = share(scenes.iter().filter(|scene| scene.objects.len() == num_objects).count());
            assert!((found - f64::from(weight) / 100.0).abs() < 0.04, "{num_objects} objects: {found}");
        }
    }
}
