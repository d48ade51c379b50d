//! The web pool of real images.

use super::source::{PhotoSet, collection};
use crate::caption::CaptionStyle;
use crate::config::{PhotosConfig, share_of};
use crate::error::WorldError;
use crate::pair::{PairClass, grade};
use crate::records::{Answer, BodyRef, Delivery, Fault, Route, TruthRecord, UrlRecord};
use crate::report::{WorldReport, count};
use crate::world_dir::{ShardSet, WorldDir, write_jsonl};
use oqvl_stage::{RunContext, stream};
use rand::Rng as _;
use rand::seq::SliceRandom;

/// Bodies per shard of `images/`.
const BODIES_PER_SHARD: usize = 200;

/// A URL of the pool.
struct Row {
    file: String,
    /// Number of the image.
    image: usize,
    /// Number of the caption among those of its image.
    caption_idx: usize,
    caption: String,
    class: PairClass,
    fault: Option<Fault>,
}

impl Row {
    fn host(&self) -> String {
        format!("{}.photo-world.test", host_label(collection(&self.file)))
    }

    /// The first caption has the plain address of the file; every other one has its own.
    fn target(&self) -> String {
        let path = percent_encode(&self.file);
        if self.caption_idx == 0 { format!("/{path}") } else { format!("/{path}?text={}", self.caption_idx) }
    }
}

/// Writes `urls.jsonl`, `truth.jsonl`, `routes.jsonl` and `images/`.
pub(super) fn write(
    config: &PhotosConfig,
    run: &RunContext,
    world: &WorldDir,
    photos: &PhotoSet,
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    let rows = plan(config, run.seed, photos);
    let bodies = write_bodies(run, world, photos, report)?;
    let uids: Vec<String> = (0..rows.len() as u64).map(|index| uid(run.seed, index)).collect();
    let first_row = |image: usize| rows.partition_point(|row| row.image < image);

    let truth: Vec<TruthRecord> = (rows.iter().enumerate())
        .map(|(index, row)| {
            let mut rng = stream(run.seed, "micro-world/photo-scores", 0, 0, index as u64);
            let first = first_row(row.image);
            TruthRecord {
                uid: uids[index].clone(),
                url: format!("http://{}{}", row.host(), row.target()),
                pair: row.class,
                fault: row.fault.clone(),
                duplicate_of: (first < index).then(|| uids[first].clone()),
                near_duplicate_of: None,
                scene: row.image as u64,
                scores: grade(row.class, Some(nearest_style(&row.caption)), &mut rng),
            }
        })
        .collect();
    report.count_truth(&truth);
    let urls = rows.iter().zip(&truth).map(|(row, truth)| UrlRecord {
        url: truth.url.clone(),
        caption: row.caption.clone(),
        uid: truth.uid.clone(),
    });
    write_jsonl(&world.urls(), urls)?;
    let routes = rows.iter().map(|row| Route {
        host: row.host(),
        target: row.target(),
        answer: Answer::Body {
            body: bodies[row.image].clone(),
            content_type: content_type(&row.file).to_owned(),
            delivery: Delivery::Plain,
            robots_tag: None,
        },
    });
    write_jsonl(&world.routes(), routes)?;
    write_jsonl(&world.truth(), &truth)
}

/// One row per image and caption, then one per awkward file.
fn plan(config: &PhotosConfig, seed: u64, photos: &PhotoSet) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (image, photo) in photos.photos.iter().enumerate() {
        rows.extend(photo.captions.iter().enumerate().map(|(caption_idx, caption)| Row {
            file: photo.file.clone(),
            image,
            caption_idx,
            caption: caption.text.clone(),
            class: PairClass::Clean,
            fault: None,
        }));
    }
    mismatch(&mut rows, config.mismatched_share, seed);
    rows.extend(photos.awkward.iter().enumerate().map(|(number, awkward)| Row {
        file: awkward.file.clone(),
        image: photos.photos.len() + number,
        caption_idx: 0,
        caption: awkward.oddity.clone(),
        class: PairClass::Clean,
        fault: Some(Fault::Awkward(awkward.oddity.clone())),
    }));
    rows
}

/// Gives a share of the rows the caption of another image.
fn mismatch(rows: &mut [Row], share: f64, seed: u64) {
    let mut chosen: Vec<usize> = (0..rows.len()).collect();
    chosen.shuffle(&mut stream(seed, "micro-world/photo-mismatch", 0, 0, 0));
    let captions: Vec<(usize, String)> =
        chosen.iter().map(|&index| (rows[index].image, rows[index].caption.clone())).collect();
    for (place, &index) in chosen.iter().enumerate().take(share_of(rows.len(), share)) {
        let row = &mut rows[index];
        // The next caption in the shuffled order that is another image's and says something else.
        let others = captions[place + 1..].iter().chain(&captions[..place]);
        let other =
            others.into_iter().find(|(image, caption)| *image != row.image && *caption != row.caption);
        if let Some((_, caption)) = other {
            row.caption.clone_from(caption);
            row.class = PairClass::Mismatched;
        }
    }
}

/// Writes every file once; returns where they lie, images first, then awkward files.
fn write_bodies(
    run: &RunContext,
    world: &WorldDir,
    photos: &PhotoSet,
    report: &mut WorldReport,
) -> Result<Vec<BodyRef>, WorldError> {
    let files: Vec<&str> = (photos.photos.iter().map(|photo| photo.file.as_str()))
        .chain(photos.awkward.iter().map(|awkward| awkward.file.as_str()))
        .collect();
    let progress = run.progress(files.len() as u64, "images");
    let mut shards = ShardSet::new(world.create_dir("images")?, BODIES_PER_SHARD);
    let mut bodies = Vec::with_capacity(files.len());
    for file in files {
        run.check_interrupt()?;
        count(&mut report.formats, extension(file));
        bodies.push(shards.push_body(extension(file), photos.read(file)?)?);
        progress.inc(1);
    }
    shards.finish()?;
    progress.finish();
    Ok(bodies)
}

fn uid(seed: u64, index: u64) -> String {
    let mut rng = stream(seed, "micro-world/photo-uid", 0, 0, index);
    format!("{:016x}{:016x}", rng.random::<u64>(), rng.random::<u64>())
}

/// The style whose scores suit a human caption of that length.
pub(super) fn nearest_style(caption: &str) -> CaptionStyle {
    match caption.split_whitespace().count() {
        0..=2 => CaptionStyle::Terse,
        3..=5 => CaptionStyle::AltText,
        6..=8 => CaptionStyle::Counting,
        9..=11 => CaptionStyle::Relational,
        _ => CaptionStyle::Full,
    }
}

/// Extension of a file name, in lower case; `bin` if there is none that could name a member of a shard.
pub(super) fn extension(file: &str) -> &str {
    const KNOWN: [&str; 13] =
        ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tiff", "tif", "avif", "ico", "svg", "jp2", "html"];
    let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension);
    KNOWN.iter().find(|known| known.eq_ignore_ascii_case(extension)).copied().unwrap_or("bin")
}

/// Media type by extension, which is what web servers go by.
fn content_type(file: &str) -> &'static str {
    match extension(file) {
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "webp" => "image/webp",
        "gif" => "image/gif",
        "bmp" => "image/bmp",
        "tif" | "tiff" => "image/tiff",
        "avif" => "image/avif",
        "ico" => "image/vnd.microsoft.icon",
        "svg" => "image/svg+xml",
        "jp2" => "image/jp2",
        _ => "application/octet-stream",
    }
}

/// A collection's name as part of a host name.
fn host_label(collection: &str) -> String {
    let label: String = collection
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    label.trim_matches('-').to_owned()
}

/// Percent-encodes what RFC 3986 does not let stand in a path.
fn percent_encode(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for &byte in path.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_valid() {
        assert_eq!(percent_encode("images/a b/ö?.jpg"), "images/a%20b/%C3%B6%3F.jpg");
        assert_eq!(host_label("easy_VQA"), "easy-vqa");
        assert_eq!(extension("a.JPEG"), "jpeg");
        assert_eq!((extension("a"), extension("a.x/y")), ("bin", "bin"));
    }

    #[test]
    fn a_caption_that_does_not_fit_is_another_images() {
        let row = |image: usize| Row {
            file: format!("{image}.png"),
            image,
            caption_idx: 0,
            caption: format!("caption {image}"),
            class: PairClass::Clean,
            fault: None,
        };
        for (count, share, expected) in [(0, 0.2, 0), (1, 0.9, 0), (2, 0.5, 1), (50, 0.2, 10)] {
            let mut rows: Vec<Row> = (0..count).map(row).collect();
            mismatch(&mut rows, share, 7);
            for row in &rows {
                assert_eq!(row.caption == format!("caption {}", row.image), row.class == PairClass::Clean);
            }
            assert_eq!(rows.iter().filter(|row| row.class == PairClass::Mismatched).count(), expected);
        }
    }
}
