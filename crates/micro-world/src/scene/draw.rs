//! Drawing a scene at any size.
//!
//! Everything is placed in shares of the canvas, so a scene drawn 96 by 128 and then squashed to a square
//! equals the one drawn square. Edges are smoothed by looking at nine points per pixel.

use super::font::{GLYPH_HEIGHT, GLYPH_WIDTH, has_ink};
use super::{GRID, Scene, Shape, WrittenText};
use image::RgbImage;
use oqvl_stage::stream;
use rand::Rng as _;

/// Size of a drawing in pixels, and how far the whole scene is moved on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Canvas {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Offset of everything but the background, right and down, in 96ths of the canvas.
    pub shift: [f32; 2],
}

impl Canvas {
    /// A canvas of that size on which nothing is moved.
    #[must_use]
    pub fn sized(width: u32, height: u32) -> Canvas {
        Canvas { width, height, shift: [0.0, 0.0] }
    }
}

impl Default for Canvas {
    /// 96 by 96 pixels.
    fn default() -> Self {
        Canvas::sized(96, 96)
    }
}

/// Jitter and shift are given in this fraction of the canvas.
const UNIT: f32 = 1.0 / 96.0;
/// Side of a cell in shares of the canvas.
const CELL: f32 = 1.0 / GRID as f32;
/// Points per pixel and direction at which an outline is looked up.
const SAMPLES: u32 = 3;
/// Squares of background texture along one side of the canvas.
const TEXTURE_GRID: u32 = 24;
/// Most that the texture departs from the background's colour, of 255.
const TEXTURE_DEPTH: i16 = 5;
/// Share of its cell that a word fills.
const WRITING_SHARE: f32 = 0.94;

/// Draws a scene.
///
/// # Panics
/// If the canvas has no pixels.
#[must_use]
pub fn draw(scene: &Scene, canvas: Canvas) -> RgbImage {
    assert!(canvas.width > 0 && canvas.height > 0, "an empty canvas: {canvas:?}");
    let mut picture = paint_background(scene, canvas);
    for object in &scene.objects {
        let half = object.size.share_of_cell() * CELL / 2.0;
        let x = cell_middle(object.cell.column()) + (object.jitter[0] + canvas.shift[0]) * UNIT;
        let y = cell_middle(object.cell.row()) + (object.jitter[1] + canvas.shift[1]) * UNIT;
        let place = Place { x, y, half_width: half, half_height: half };
        paint(&mut picture, place, object.color.rgb(), |x, y| is_inside(object.shape, x, y));
    }
    if let Some(written) = scene.written {
        paint_writing(&mut picture, written, canvas.shift);
    }
    picture
}

fn cell_middle(position: u8) -> f32 {
    (f32::from(position) + 0.5) * CELL
}

fn paint_background(scene: &Scene, canvas: Canvas) -> RgbImage {
    let mut rng = stream(scene.texture_seed, "micro-world/texture", 0, 0, 0);
    let texture: Vec<i16> =
        (0..TEXTURE_GRID * TEXTURE_GRID).map(|_| rng.random_range(-TEXTURE_DEPTH..=TEXTURE_DEPTH)).collect();
    RgbImage::from_fn(canvas.width, canvas.height, |x, y| {
        let column = x * TEXTURE_GRID / canvas.width;
        let row = y * TEXTURE_GRID / canvas.height;
        let departure = texture[(row * TEXTURE_GRID + column) as usize];
        image::Rgb(scene.background.map(|value| (i16::from(value) + departure).clamp(0, 255) as u8))
    })
}

/// Where a thing is painted, in shares of the canvas.
#[derive(Debug, Clone, Copy)]
struct Place {
    x: f32,
    y: f32,
    half_width: f32,
    half_height: f32,
}

/// Paints what `inside` says is inside; it is asked in coordinates from -1 to 1 over the place, y down.
fn paint(picture: &mut RgbImage, place: Place, rgb: [u8; 3], inside: impl Fn(f32, f32) -> bool) {
    let (width, height) = (picture.width() as f32, picture.height() as f32);
    let pixels = |low: f32, high: f32, size: u32| {
        (low.floor().max(0.0) as u32).min(size)..(high.ceil().max(0.0) as u32).min(size)
    };
    let rows = pixels(
        (place.y - place.half_height) * height,
        (place.y + place.half_height) * height,
        picture.height(),
    );
    let columns =
        pixels((place.x - place.half_width) * width, (place.x + place.half_width) * width, picture.width());
    for y in rows {
        for x in columns.clone() {
            let mut covered = 0;
            for sample in 0..SAMPLES * SAMPLES {
                let offset = |step: u32| (step as f32 + 0.5) / SAMPLES as f32;
                let local_x = ((x as f32 + offset(sample % SAMPLES)) / width - place.x) / place.half_width;
                let local_y = ((y as f32 + offset(sample / SAMPLES)) / height - place.y) / place.half_height;
                covered +=
                    u32::from(local_x.abs() <= 1.0 && local_y.abs() <= 1.0 && inside(local_x, local_y));
            }
            if covered > 0 {
                blend(picture.get_pixel_mut(x, y), rgb, covered);
            }
        }
    }
}

/// Mixes in paint that covers `covered` of a pixel's nine points.
fn blend(pixel: &mut image::Rgb<u8>, rgb: [u8; 3], covered: u32) {
    let all = SAMPLES * SAMPLES;
    for (under, paint) in pixel.0.iter_mut().zip(rgb) {
        *under = ((u32::from(*under) * (all - covered) + u32::from(paint) * covered + all / 2) / all) as u8;
    }
}

/// Whether a point of the square from -1 to 1 (y down) lies in the shape.
fn is_inside(shape: Shape, x: f32, y: f32) -> bool {
    match shape {
        Shape::Ring => (0.36..=1.0).contains(&(x * x + y * y)),
        Shape::Bar => x.abs() <= 0.95 && y.abs() <= 0.35,
        Shape::Pillar => x.abs() <= 0.35 && y.abs() <= 0.95,
        Shape::Cross => {
            x.abs() <= 0.95 && y.abs() <= 0.95 && ((x - y).abs() <= 0.46 || (x + y).abs() <= 0.46)
        }
    }
}

/// Stretches the writing over its cell: at 48 by 48 pixels every pixel of the font counts.
fn paint_writing(picture: &mut RgbImage, written: WrittenText, shift: [f32; 2]) {
    let characters: Vec<char> = written.writing.text().chars().collect();
    let pitch = GLYPH_WIDTH + 1;
    let num_columns = characters.len() * pitch - 1;
    // Three letters fill the cell; fewer characters may be wider, but a lone digit must not become a bar.
    let share = WRITING_SHARE * (num_columns as f32 * 0.14).min(1.0);
    let place = Place {
        x: cell_middle(written.cell.column()) + shift[0] * UNIT,
        y: cell_middle(written.cell.row()) + shift[1] * UNIT,
        half_width: share * CELL / 2.0,
        half_height: WRITING_SHARE * CELL / 2.0,
    };
    let step = |local: f32, count: usize| (((local + 1.0) / 2.0 * count as f32) as usize).min(count - 1);
    paint(picture, place, written.rgb, |x, y| {
        let column = step(x, num_columns);
        let within = column % pitch;
        within < GLYPH_WIDTH && has_ink(characters[column / pitch], within, step(y, GLYPH_HEIGHT))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Cell, Color, Object, ObjectSize, Split, Writing};

    fn scene_of(shape: Shape, color: Color, size: ObjectSize, cell: Cell) -> Scene {
        let object = Object { shape, color, size, cell, jitter: [0.0, 0.0] };
        Scene { objects: vec![object], written: None, background: [20, 20, 20], texture_seed: 1 }
    }

    /// Pixels clearly nearer to `rgb` than to the dark background.
    fn painted(picture: &RgbImage, rgb: [u8; 3]) -> Vec<(u32, u32)> {
        let near = |pixel: &image::Rgb<u8>| pixel.0.iter().zip(rgb).all(|(&a, b)| a.abs_diff(b) < 40);
        picture.enumerate_pixels().filter(|(_, _, pixel)| near(pixel)).map(|(x, y, _)| (x, y)).collect()
    }

    #[test]
    fn objects_stay_in_their_cell_at_every_size() {
        for (width, height) in [(96, 96), (96, 128), (192, 192), (47, 31)] {
            for shape in Shape::ALL {
                for cell in Cell::all() {
                    let scene = scene_of(shape, Color::Red, ObjectSize::Large, cell);
                    let picture = draw(&scene, Canvas::sized(width, height));
                    let pixels = painted(&picture, Color::Red.rgb());
                    assert!(
                        pixels.len() as u32 > width * height / 4 / 5,
                        "{shape:?} {cell:?} {width}x{height}"
                    );
                    for (x, y) in pixels {
                        assert_eq!(
                            (x * 2 / width, y * 2 / height),
                            (u32::from(cell.column()), u32::from(cell.row()))
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn small_is_less_than_half_of_large() {
        for shape in Shape::ALL {
            let area = |size| {
                painted(
                    &draw(&scene_of(shape, Color::Blue, size, Cell::new(3)), Canvas::default()),
                    Color::Blue.rgb(),
                )
                .len()
            };
            let ratio = area(ObjectSize::Small) as f64 / area(ObjectSize::Large) as f64;
            assert!((0.36..0.5).contains(&ratio), "{shape:?}: {ratio}");
        }
    }

    #[test]
    fn shapes_look_different_even_when_small_and_squashed() {
        let pictures: Vec<_> = (Shape::ALL.iter())
            .map(|&shape| {
                draw(&scene_of(shape, Color::Green, ObjectSize::Small, Cell::new(0)), Canvas::sized(48, 48))
            })
            .collect();
        for (i, a) in pictures.iter().enumerate() {
            for b in &pictures[i + 1..] {
                let difference: u32 = a.iter().zip(b.iter()).map(|(&x, &y)| u32::from(x.abs_diff(y))).sum();
                assert!(difference > 600, "{difference}");
            }
        }
    }

    #[test]
    fn writings_fill_their_cell_and_differ() {
        let written = |writing| WrittenText { writing, cell: Cell::new(3), rgb: [255, 255, 255] };
        let mut scene = Scene::generate(7, Split::Web, 0);
        scene.objects.clear();
        let mut seen = std::collections::BTreeSet::new();
        let writings =
            (crate::scene::WORDS.iter().map(|word| Writing::Word(word))).chain((0..100).map(Writing::Number));
        for writing in writings {
            scene.written = Some(written(writing));
            let picture = draw(&scene, Canvas::sized(48, 48));
            assert!(seen.insert(picture.into_raw()), "{writing:?} looks like another");
        }
        scene.written = Some(written(Writing::Word("cat")));
        let ink = painted(&draw(&scene, Canvas::default()), [255, 255, 255]);
        let (left, right) = (ink.iter().map(|p| p.0).min().unwrap(), ink.iter().map(|p| p.0).max().unwrap());
        assert!(left >= 48 && right - left >= 40, "{left}..{right}");
    }

    #[test]
    fn a_shift_moves_the_scene() {
        let scene = scene_of(Shape::Bar, Color::Yellow, ObjectSize::Small, Cell::new(0));
        let left_edge =
            |canvas| painted(&draw(&scene, canvas), Color::Yellow.rgb()).iter().map(|p| p.0).min().unwrap();
        let shifted = Canvas { shift: [2.0, 0.0], ..Canvas::default() };
        assert_eq!(left_edge(shifted), left_edge(Canvas::default()) + 2);
    }
}
