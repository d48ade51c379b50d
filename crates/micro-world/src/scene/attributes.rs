//! What an object can look like and where it can be, with the word for each value.

/// Number of cells along one side of the scene's grid.
pub const GRID: u8 = 2;

/// Outline of an object. The four share little of their area, so that a tower which sees an object as four patches of a
/// dozen pixels each learns to tell them apart from thousands of pairs; filled outlines took many times more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// A circle with a wide rim.
    Ring,
    /// A bar that lies.
    Bar,
    /// A bar that stands.
    Pillar,
    /// Two diagonal bars.
    Cross,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Shape; 4] = [Shape::Ring, Shape::Bar, Shape::Pillar, Shape::Cross];

    /// Its word in captions and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Shape::Ring => "ring",
            Shape::Bar => "bar",
            Shape::Pillar => "pillar",
            Shape::Cross => "cross",
        }
    }
}

/// Colour of an object; six values far apart in RGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Color {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
    Orange,
}

impl Color {
    /// Every colour.
    pub const ALL: [Color; 6] =
        [Color::Red, Color::Green, Color::Blue, Color::Yellow, Color::Purple, Color::Orange];

    /// Its word in captions and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Color::Red => "red",
            Color::Green => "green",
            Color::Blue => "blue",
            Color::Yellow => "yellow",
            Color::Purple => "purple",
            Color::Orange => "orange",
        }
    }

    /// The word after the indefinite article that fits it: `a red`, `an orange`.
    #[must_use]
    pub fn with_article(self) -> String {
        let article = if self == Color::Orange { "an" } else { "a" };
        format!("{article} {}", self.name())
    }

    /// Red, green and blue of its paint, 0-255.
    #[must_use]
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Color::Red => [226, 32, 36],
            Color::Green => [36, 172, 52],
            Color::Blue => [40, 68, 232],
            Color::Yellow => [248, 222, 36],
            Color::Purple => [156, 48, 196],
            Color::Orange => [244, 124, 16],
        }
    }
}

/// How much of its cell an object fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectSize {
    /// 60 % of the cell's side.
    Small,
    /// 90 % of the cell's side.
    Large,
}

impl ObjectSize {
    /// Both sizes.
    pub const ALL: [ObjectSize; 2] = [ObjectSize::Small, ObjectSize::Large];

    /// Its word in captions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ObjectSize::Small => "small",
            ObjectSize::Large => "large",
        }
    }

    /// Side of the object as a share of the cell's side.
    #[must_use]
    pub fn share_of_cell(self) -> f32 {
        match self {
            ObjectSize::Small => 0.6,
            ObjectSize::Large => 0.9,
        }
    }
}

/// One of the four cells, in reading order: 0 is the top left, 3 the bottom right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell(u8);

impl Cell {
    /// Number of cells.
    pub const COUNT: u8 = GRID * GRID;

    /// The cell with that place in reading order.
    ///
    /// # Panics
    /// If `position` is 4 or more.
    #[must_use]
    pub fn new(position: u8) -> Cell {
        assert!(position < Cell::COUNT, "cell {position} of {}", Cell::COUNT);
        Cell(position)
    }

    /// Every cell, in reading order.
    pub fn all() -> impl Iterator<Item = Cell> {
        (0..Cell::COUNT).map(Cell)
    }

    /// Place in reading order, 0-3.
    #[must_use]
    pub fn position(self) -> u8 {
        self.0
    }

    /// Row from the top, 0 or 1.
    #[must_use]
    pub fn row(self) -> u8 {
        self.0 / GRID
    }

    /// Column from the left, 0 or 1.
    #[must_use]
    pub fn column(self) -> u8 {
        self.0 % GRID
    }

    /// Its words in captions and answers; after `at the`.
    #[must_use]
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 4] = ["top left", "top right", "bottom left", "bottom right"];
        NAMES[usize::from(self.0)]
    }
}

/// The words that can be written in a scene.
pub const WORDS: [&str; 16] = [
    "cat", "dog", "sun", "car", "box", "hat", "pen", "cup", "bus", "key", "fox", "ice", "map", "jar", "egg",
    "leg",
];

/// Written numbers are below this.
pub const NUMBER_LIMIT: u8 = 100;

/// What is written in a scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Writing {
    /// One of [`WORDS`].
    Word(&'static str),
    /// A number from 0 to 99.
    Number(u8),
}

impl Writing {
    /// What kind of writing it is, as captions and questions call it: `word` or `number`.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Writing::Word(_) => "word",
            Writing::Number(_) => "number",
        }
    }

    /// What is written, as answers spell it: `cat`, `42`.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Writing::Word(word) => word.to_owned(),
            Writing::Number(number) => number.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn colors_are_far_apart() {
        for (i, a) in Color::ALL.iter().enumerate() {
            for b in &Color::ALL[i + 1..] {
                let distance: i32 =
                    a.rgb().iter().zip(b.rgb()).map(|(&x, y)| (i32::from(x) - i32::from(y)).abs()).sum();
                assert!(distance >= 110, "{a:?} and {b:?} are {distance} apart");
            }
        }
    }

    #[test]
    fn every_value_has_its_own_word() {
        let words: BTreeSet<_> = (Shape::ALL.iter().map(|shape| shape.name()))
            .chain(Color::ALL.iter().map(|color| color.name()))
            .chain(ObjectSize::ALL.iter().map(|size| size.name()))
            .chain(Cell::all().map(Cell::name))
            .chain(WORDS)
            .collect();
        assert_eq!(words.len(), 4 + 6 + 2 + 4 + 16);
    }

    #[test]
    fn cells_are_in_reading_order() {
        let cells: Vec<_> = Cell::all().map(|cell| (cell.row(), cell.column())).collect();
        assert!(cells.is_sorted());
        assert_eq!((cells.len(), Cell::new(1).name()), (4, "top right"));
    }
}
