//! Small but real shards.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{ImageFormat, Rgb, RgbImage};
use oqvl_shard_io::{Sample, SampleKey, ShardWriter, digest_bytes};
use serde_json::json;

/// Edges of the drawn images in pixels: odd, not square, quick to decode.
const IMAGE_SIZE: (u32, u32) = (19, 13);

/// Writes the shard `{dir}/{name}.tar` with one sample per `(key, caption)` and returns its path.
///
/// Each sample has an image drawn from its key (JPEG and PNG in turn), the caption as `txt`, and a `json` with
/// the fields img2dataset writes; its `uid` is [`tiny_uid`] of the key. The directory is created if need be.
///
/// # Panics
/// If a key is not one or the shard cannot be written.
#[must_use]
pub fn tiny_shard(dir: &Path, name: &str, samples: &[(&str, &str)]) -> PathBuf {
    std::fs::create_dir_all(dir).expect("the directory of a tiny shard can be created");
    let path = dir.join(format!("{name}.tar"));
    let mut writer = ShardWriter::create(&path).expect("a tiny shard can be created");
    for (index, &(key, caption)) in samples.iter().enumerate() {
        let (extension, format) =
            if index % 2 == 0 { ("jpg", ImageFormat::Jpeg) } else { ("png", ImageFormat::Png) };
        let image = encode(&draw(key), format);
        let (width, height) = IMAGE_SIZE;
        let metadata = json!({
            "uid": tiny_uid(key), "caption": caption, "url": format!("http://tiny.test/{key}.{extension}"),
            "key": key, "status": "success", "error_message": null, "width": width, "height": height,
            "original_width": width, "original_height": height, "exif": null,
        });
        let mut sample = Sample::new(SampleKey::new(key).expect("a tiny shard has good keys"));
        sample.push(extension, image);
        sample.push("json", serde_json::to_vec_pretty(&metadata).expect("the metadata is plain JSON"));
        sample.push("txt", caption.as_bytes().to_vec());
        let _locations = writer.push(&sample).expect("a tiny sample can be written");
    }
    let _summary = writer.finish().expect("a tiny shard can be finished");
    path
}

/// The uid a [`tiny_shard`] gives to the sample `key`: 32 hexadecimal digits, the same in every shard.
#[must_use]
pub fn tiny_uid(key: &str) -> String {
    digest_bytes(key.as_bytes())[..32].to_owned()
}

/// Stripes in two colours that depend on the key.
fn draw(key: &str) -> RgbImage {
    let digest = digest_bytes(key.as_bytes()).into_bytes();
    let (width, height) = IMAGE_SIZE;
    RgbImage::from_fn(width, height, |x, y| {
        let start = if (x / 4 + y / 4) % 2 == 0 { 0 } else { 3 };
        // Hexadecimal digits are 48..=102; spread them over the byte.
        Rgb([0, 1, 2].map(|channel| digest[start + channel].wrapping_mul(37)))
    })
}

fn encode(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("a small image can be encoded in memory");
    bytes.into_inner()
}

#[cfg(test)]
mod tests {
    use oqvl_shard_io::{ShardReader, Uid};

    use super::*;

    #[test]
    fn images_decode_and_differ_and_bytes_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let pairs = [("a", "one"), ("b", "two"), ("c", "")];
        let path = tiny_shard(&dir.path().join("deep/er"), "00000", &pairs);
        let bytes = std::fs::read(&path).unwrap();
        let mut seen = Vec::new();
        for (sample, (key, caption)) in ShardReader::open(&path).unwrap().zip(pairs) {
            let sample = sample.unwrap();
            assert_eq!(sample.key.as_str(), key);
            assert_eq!(sample.caption().unwrap(), Some(caption));
            let metadata: serde_json::Value = sample.metadata().unwrap().unwrap();
            assert!(metadata["uid"].as_str().unwrap().parse::<Uid>().is_ok());
            let image = image::load_from_memory(&sample.image().unwrap().data).unwrap().into_rgb8();
            assert_eq!(image.dimensions(), IMAGE_SIZE);
            assert!(!seen.contains(&image));
            seen.push(image);
        }
        assert_eq!(seen.len(), pairs.len());
        assert_eq!(std::fs::read(tiny_shard(&dir.path().join("deep/er"), "00000", &pairs)).unwrap(), bytes);
    }
}
