//! Seeded data of the sizes and the statistics that the peers' users work with.

use anyhow::Context as _;
use oqvl_benches::Noise;
use oqvl_image_prep::{RgbImage, encode_jpeg};
use oqvl_shard_io::{Sample, SampleKey, ShardWriter, Uid, UidSubset, write_atomic};
use serde_json::json;
use std::path::Path;

/// Everything here follows from it.
pub(crate) const SEED: u64 = 7;
/// Tokens of an image in the paper's pre-training.
const IMAGE_TOKENS: u64 = 144;
/// Shapes of photographs, longer over shorter side.
const ASPECT_RATIOS: [f64; 5] = [1.0, 1.25, 4.0 / 3.0, 1.5, 16.0 / 9.0];

/// Sides of a photograph of the web: shorter side 300 to 1450 pixels, mean area 0.87 megapixels.
pub(crate) fn web_size(random: &mut Noise, scale: f64) -> (u32, u32) {
    let shorter = 300.0 * (1450.0_f64 / 300.0).powf(unit(random)) * scale;
    let longer = shorter * ASPECT_RATIOS[random.draw() as usize % ASPECT_RATIOS.len()];
    let (shorter, longer) = (shorter.round().max(8.0) as u32, longer.round().max(8.0) as u32);
    if random.draw().is_multiple_of(3) { (shorter, longer) } else { (longer, shorter) }
}

/// A JPEG file such as web servers have.
pub(crate) fn web_jpeg(random: &mut Noise, scale: f64) -> Vec<u8> {
    let (width, height) = web_size(random, scale);
    let quality = 70 + (random.draw() % 21) as u8;
    encode_jpeg(&picture(random, width, height), quality)
}

/// A picture with what makes photographs hard and easy to code: smooth shading, edges, grain.
pub(crate) fn picture(random: &mut Noise, width: u32, height: u32) -> RgbImage {
    let grain = 4 + (random.draw() % 14) as u8;
    // Shading is separable, which makes it cheap: products of one wave along each side.
    let mut wave = |side: u32, cycles: f64| -> Vec<f32> {
        let (phase, cycles) = (unit(random) * 6.3, cycles * (0.5 + unit(random)));
        (0..side).map(|i| (phase + 6.3 * cycles * f64::from(i) / f64::from(side)).sin() as f32).collect()
    };
    let channels: [[Vec<f32>; 4]; 3] =
        std::array::from_fn(|_| [wave(width, 0.7), wave(height, 0.7), wave(width, 4.0), wave(height, 3.0)]);
    let num_blocks = 6 + random.draw() % 10;
    let blocks: Vec<Block> = (0..num_blocks).map(|_| Block::draw(random, width, height)).collect();
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    let mut bits = 0_u64;
    for y in 0..height {
        let crossed: Vec<&Block> = blocks.iter().filter(|block| block.rows.contains(&y)).collect();
        for x in 0..width {
            let offset: [i16; 3] = crossed
                .iter()
                .rev()
                .find(|block| block.columns.contains(&x))
                .map_or([0; 3], |block| block.colour);
            if x % 8 == 0 {
                bits = random.draw();
            }
            // One value for all channels: grain of light, which is what survives chroma subsampling.
            let noise = (bits & 0xff) as i16 * i16::from(grain) / 256;
            bits >>= 8;
            for (channel, [slow_x, slow_y, fast_x, fast_y]) in channels.iter().enumerate() {
                let slow = slow_x[x as usize] * slow_y[y as usize];
                let fast = fast_x[x as usize] * fast_y[y as usize];
                let level = 128.0 + 70.0 * slow + 25.0 * fast;
                pixels.push((level as i16 + offset[channel] + noise).clamp(0, 255) as u8);
            }
        }
    }
    RgbImage::new(width, height, pixels).expect("three bytes were pushed for every pixel")
}

/// A rectangle of another colour: an edge.
struct Block {
    columns: std::ops::Range<u32>,
    rows: std::ops::Range<u32>,
    colour: [i16; 3],
}

impl Block {
    fn draw(random: &mut Noise, width: u32, height: u32) -> Block {
        let mut side = |length: u32| {
            let start = (unit(random) * f64::from(length)) as u32;
            start..start + (unit(random) * f64::from(length) * 0.4) as u32
        };
        let (columns, rows) = (side(width), side(height));
        Block { columns, rows, colour: std::array::from_fn(|_| (random.draw() % 121) as i16 - 60) }
    }
}

/// A number from 0 up to 1.
pub(crate) fn unit(random: &mut Noise) -> f64 {
    (random.draw() >> 11) as f64 / (1_u64 << 53) as f64
}

/// A folder of JPEG files.
pub(crate) fn write_images(dir: &Path, count: usize, scale: f64) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let mut random = Noise::seeded(SEED);
    for number in 0..count {
        let path = dir.join(format!("{number:05}.jpg"));
        write_atomic(&path, &web_jpeg(&mut random, scale)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// How a pool is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolShape {
    pub(crate) num_shards: usize,
    pub(crate) samples_per_shard: usize,
    pub(crate) num_images: usize,
}

/// Shards as img2dataset leaves them (shorter side 512 where it was longer), stats beside them, and `subset.npy`.
pub(crate) fn write_pool(
    dir: &Path,
    shape: PoolShape,
    captions: Option<&Path>,
    scale: f64,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let mut random = Noise::seeded(SEED);
    let images: Vec<StoredImage> =
        (0..shape.num_images).map(|_| StoredImage::draw(&mut random, scale)).collect();
    let captions = match captions {
        Some(file) => read_captions(file)?,
        None => (0..997).map(|_| caption(&mut random)).collect(),
    };
    let mut wanted = Vec::new();
    for shard in 0..shape.num_shards {
        let mut writer = ShardWriter::create(&dir.join(format!("{shard:08}.tar")))?;
        for row in 0..shape.samples_per_shard {
            let number = shard * 10_000 + row;
            let uid = Uid::from_halves(random.draw(), random.draw());
            if random.draw().is_multiple_of(2) {
                wanted.push(uid);
            }
            let image = &images[number % images.len()];
            writer.push(&image.sample(number, uid, &captions[number % captions.len()])?)?;
        }
        let summary = writer.finish()?;
        let stats = serde_json::to_vec_pretty(&json!({ "successes": summary.num_samples }))?;
        write_atomic(&dir.join(format!("{shard:08}_stats.json")), &stats)?;
    }
    wanted.into_iter().collect::<UidSubset>().write(&dir.join("subset.npy"))?;
    Ok(())
}

/// An image as a fetch stores it.
struct StoredImage {
    jpeg: Vec<u8>,
    width: u32,
    height: u32,
}

impl StoredImage {
    fn draw(random: &mut Noise, scale: f64) -> StoredImage {
        let (width, height) = web_size(random, scale);
        let factor = (512.0 * scale / f64::from(width.min(height))).min(1.0);
        let stored = |side: u32| (f64::from(side) * factor).round() as u32;
        let (width, height) = (stored(width), stored(height));
        StoredImage { jpeg: encode_jpeg(&picture(random, width, height), 85), width, height }
    }

    /// The sample with this image, its metadata laid out as img2dataset does.
    fn sample(&self, number: usize, uid: Uid, caption: &str) -> anyhow::Result<Sample> {
        let key = format!("{number:012}");
        let metadata = json!({
            "uid": uid.to_string(), "caption": caption, "url": format!("http://images.example/{number}.jpg"),
            "key": key, "status": "success", "error_message": null, "width": self.width, "height": self.height,
            "original_width": self.width, "original_height": self.height, "exif": "{}",
            "sha256": format!("{:064x}", number),
        });
        let mut sample = Sample::new(SampleKey::new(key)?);
        sample.push("jpg", self.jpeg.clone());
        sample.push("json", serde_json::to_vec_pretty(&metadata)?);
        sample.push("txt", caption.as_bytes().to_vec());
        Ok(sample)
    }
}

fn read_captions(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let mut rows = text.lines().map(|line| line.split('\t'));
    let mut header = rows.next().context("no header")?;
    let column = header.position(|name| name == "caption").context("no column `caption`")?;
    let captions: Vec<String> = rows.filter_map(|mut row| row.nth(column).map(str::to_owned)).collect();
    anyhow::ensure!(!captions.is_empty(), "{} holds no caption", file.display());
    Ok(captions)
}

/// A made-up caption of 3 to 40 words.
pub(crate) fn caption(random: &mut Noise) -> String {
    const WORDS: [&str; 32] = [
        "a",
        "the",
        "red",
        "old",
        "small",
        "wooden",
        "boat",
        "house",
        "woman",
        "man",
        "dog",
        "with",
        "beside",
        "on",
        "near",
        "river",
        "mountain",
        "street",
        "morning",
        "light",
        "holding",
        "umbrella",
        "and",
        "two",
        "children",
        "playing",
        "photograph",
        "of",
        "portrait",
        "vintage",
        "garden",
        "Tuesday",
    ];
    let num_words = 3 + random.draw() % 38;
    let words: Vec<&str> = (0..num_words).map(|_| WORDS[random.draw() as usize % WORDS.len()]).collect();
    words.join(" ")
}

/// Lengths of documents with one image and a caption of 5 to 60 tokens, now and then one of up to 300.
pub(crate) fn write_lengths(file: &Path, count: usize) -> anyhow::Result<()> {
    let mut random = Noise::seeded(SEED);
    let mut text = String::new();
    for _ in 0..count {
        let caption = match random.draw() % 20 {
            0 => 60 + random.draw() % 240,
            _ => 5 + random.draw() % 55,
        };
        text += &format!("{}\n", IMAGE_TOKENS + caption);
    }
    write_atomic(file, text.as_bytes()).with_context(|| file.display().to_string())
}
