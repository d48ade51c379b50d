//! The web of the fetch comparison: a world for `oqvl-world-server`, of the size and the faults that a part of a
//! real list has.

use crate::data::{SEED, picture, unit, web_jpeg, web_size};
use anyhow::Context as _;
use oqvl_benches::Noise;
use oqvl_image_prep::encode_webp;
use oqvl_shard_io::{Sample, SampleKey, ShardWriter, write_atomic};
use serde_json::{Value, json};
use std::path::Path;

/// What URLs answer, in parts of 3000. Expected of a fetcher: 2730 kept, 210 not downloaded, 60 no image.
const SHARES: [(Kind, usize); 14] = [
    (Kind::Jpeg, 2635),
    (Kind::Png, 30),
    (Kind::TransparentPng, 15),
    (Kind::WebP, 30),
    (Kind::Gif, 10),
    (Kind::Redirect, 10),
    (Kind::Status(404), 150),
    (Kind::Silent, 20),
    (Kind::Stalled, 5),
    (Kind::HalfAFile, 30),
    (Kind::Page, 30),
    (Kind::OptedOut, 15),
    (Kind::Status(429), 10),
    (Kind::Status(500), 10),
];

/// What a URL answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Jpeg,
    Png,
    TransparentPng,
    WebP,
    Gif,
    /// Somewhere else, where a JPEG is.
    Redirect,
    Status(u16),
    /// Nothing, ever.
    Silent,
    /// Half of the body, then nothing.
    Stalled,
    /// A whole answer that is half of a JPEG file.
    HalfAFile,
    /// An HTML page called a JPEG.
    Page,
    /// A JPEG that says `noai`.
    OptedOut,
}

/// Writes `routes.jsonl` and `images/` as `oqvl-world-server` reads them, and `targets.txt`: a path per line.
pub(crate) fn write(dir: &Path, num_urls: usize, scale: f64) -> anyhow::Result<()> {
    let images = dir.join("images");
    std::fs::create_dir_all(&images).with_context(|| images.display().to_string())?;
    let mut random = Noise::seeded(SEED ^ 0xfe7c);
    let kinds = shuffled_kinds(&mut random, num_urls);
    let mut bodies = ShardWriter::create(&images.join(BODIES))?;
    let mut routes = String::new();
    let mut targets = String::new();
    for (number, kind) in kinds.into_iter().enumerate() {
        let target = format!("/{number:05}.jpg");
        let answer = match kind {
            Kind::Status(status) => json!({ "kind": "status", "status": status }),
            Kind::Redirect => {
                let elsewhere = format!("/moved/{number:05}.jpg");
                let body = push(&mut bodies, number, web_jpeg(&mut random, scale))?;
                routes += &route(&elsewhere, &plain(&body, "image/jpeg"));
                json!({ "kind": "redirect", "location": elsewhere })
            }
            _ => {
                let (file, content_type) = file_of(kind, &mut random, scale)?;
                let body = push(&mut bodies, number, file)?;
                let mut answer = plain(&body, content_type);
                match kind {
                    Kind::Silent => answer["delivery"] = json!({ "how": "silent" }),
                    Kind::Stalled => answer["delivery"] = json!({ "how": "stalled" }),
                    Kind::OptedOut => answer["robots_tag"] = json!("noai"),
                    _ => {}
                }
                answer
            }
        };
        routes += &route(&target, &answer);
        targets += &format!("{target}\n");
    }
    bodies.finish()?;
    write_atomic(&dir.join("routes.jsonl"), routes.as_bytes())?;
    write_atomic(&dir.join("targets.txt"), targets.as_bytes())?;
    Ok(())
}

/// The tar in `images/` that holds the bodies.
const BODIES: &str = "bodies.tar";

/// Every kind as often as its share says, at least once, in seeded order.
fn shuffled_kinds(random: &mut Noise, num_urls: usize) -> Vec<Kind> {
    let total: usize = SHARES.iter().map(|(_, parts)| parts).sum();
    let mut kinds: Vec<Kind> = Vec::with_capacity(num_urls);
    for (kind, parts) in SHARES.iter().skip(1) {
        let count = (parts * num_urls / total).max(1);
        kinds.extend(std::iter::repeat_n(*kind, count));
    }
    kinds.resize(num_urls.max(kinds.len()), Kind::Jpeg);
    for last in (1..kinds.len()).rev() {
        kinds.swap(last, random.draw() as usize % (last + 1));
    }
    kinds
}

fn file_of(kind: Kind, random: &mut Noise, scale: f64) -> anyhow::Result<(Vec<u8>, &'static str)> {
    // Lossless files of photographs are large; those of the web are mostly drawings and small.
    let small = scale * 0.5;
    Ok(match kind {
        Kind::Png | Kind::TransparentPng => {
            let (width, height) = web_size(random, small);
            (png_file(random, width, height, kind == Kind::TransparentPng)?, "image/png")
        }
        Kind::WebP => {
            let (width, height) = web_size(random, small);
            (encode_webp(&picture(random, width, height)), "image/webp")
        }
        Kind::Gif => {
            let (width, height) = web_size(random, small);
            (gif_file(random, width, height)?, "image/gif")
        }
        Kind::Page => {
            (b"<!DOCTYPE html><html><body>Not here any more.</body></html>\n".repeat(20), "image/jpeg")
        }
        Kind::HalfAFile => {
            let mut file = web_jpeg(random, scale);
            file.truncate(file.len() / 2);
            (file, "image/jpeg")
        }
        _ => (web_jpeg(random, scale), "image/jpeg"),
    })
}

fn png_file(random: &mut Noise, width: u32, height: u32, with_alpha: bool) -> anyhow::Result<Vec<u8>> {
    let image = picture(random, width, height);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_color(if with_alpha { png::ColorType::Rgba } else { png::ColorType::Rgb });
    let pixels: Vec<u8> = if with_alpha {
        // Opaque in the middle, clear towards the left.
        let alpha = |i: usize| (i as u32 % width * 510 / width).min(255) as u8;
        let coloured = image.pixels().chunks_exact(3).enumerate();
        coloured.flat_map(|(i, rgb)| [rgb[0], rgb[1], rgb[2], alpha(i)]).collect()
    } else {
        image.pixels().to_vec()
    };
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(file)
}

/// Two colours are enough for a drawing.
fn gif_file(random: &mut Noise, width: u32, height: u32) -> anyhow::Result<Vec<u8>> {
    let (width, height) = (width.min(800) as u16, height.min(800) as u16);
    let period = 5 + (unit(random) * 40.0) as usize;
    let indices: Vec<u8> =
        (0..usize::from(width) * usize::from(height)).map(|i| (i / period % 4) as u8).collect();
    let mut file = Vec::new();
    let palette = [20, 30, 40, 200, 60, 40, 250, 250, 240, 60, 120, 200];
    let mut encoder = gif::Encoder::new(&mut file, width, height, &palette)?;
    encoder.write_frame(&gif::Frame::from_indexed_pixels(width, height, indices, None))?;
    drop(encoder);
    Ok(file)
}

/// Stores a body; returns where it is, as routes say it.
fn push(bodies: &mut ShardWriter, number: usize, file: Vec<u8>) -> anyhow::Result<Value> {
    let mut sample = Sample::new(SampleKey::new(format!("{number:05}"))?);
    sample.push("bin", file);
    let locations = bodies.push(&sample)?;
    let place = locations.first().context("one member was pushed")?;
    Ok(json!({ "shard": BODIES, "offset": place.offset, "num_bytes": place.num_bytes }))
}

fn plain(body: &Value, content_type: &str) -> Value {
    json!({ "kind": "body", "body": body, "content_type": content_type })
}

fn route(target: &str, answer: &Value) -> String {
    // The server tells hosts apart by name, without the port.
    format!("{}\n", json!({ "host": "127.0.0.1", "target": target, "answer": answer }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_the_list() {
        assert_eq!(SHARES.iter().map(|(_, parts)| parts).sum::<usize>(), 3000);
        let kinds = shuffled_kinds(&mut Noise::seeded(1), 3000);
        assert_eq!(kinds.len(), 3000);
        for (kind, parts) in SHARES {
            assert_eq!(kinds.iter().filter(|k| **k == kind).count(), parts, "{kind:?}");
        }
        let few = shuffled_kinds(&mut Noise::seeded(1), 30);
        assert_eq!(few.len(), 30);
        assert!(SHARES.iter().all(|(kind, _)| few.contains(kind)));
    }
}
