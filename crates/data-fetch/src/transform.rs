//! From downloaded bytes to stored bytes: sniff, check, decode, resize, blur, encode. Pure and CPU-bound.
//!
//! With img2dataset's options the stored image has the pixels that img2dataset 1.47 gives it (decoding, resampling and
//! encoding are OpenCV's, see `oqvl-image-prep`); an EXIF orientation is not applied either. Deviations:
//! - 16-bit images are scaled down to 8 bits; OpenCV saturates them to white.
//! - An image whose faces were blurred is always encoded anew; img2dataset stores the original, faces and all, if
//!   `skip_reencode` is on and nothing was resized.
//! - No body, and no image of more than `max_decoded_pixels`, is an image.

use crate::client::Body;
use crate::config::DataFetchConfig;
use crate::reject::Reject;
use crate::resize_policy::{ResizePlan, Size, check_size, plan};
use crate::sample_json::to_python_json_line;
use oqvl_image_prep::{
    DecodeError, DecodeLimits, Encoding, ImageFormat, Interpolation, NormalizedBox, Raster, blur_boxes,
    decode_on_white, draft_on_white, encode, exif_tags, resize_opencv, shrink_jpeg,
};
use serde_json::{Map, Value};

/// Longest EXIF that is stored, as JSON. A segment of a JPEG holds 64 KiB at the most; what is longer is overlapping
/// directories, of which a picture of some MiB could make a hundred.
const MAX_EXIF_BYTES: usize = 64 << 10;

/// An image ready for the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredImage {
    /// In the format of the config.
    pub(crate) bytes: Vec<u8>,
    /// Unknown if nobody looked at the image (`disable_all_reencoding`).
    pub(crate) sizes: Option<ImageSizes>,
    /// The EXIF tags as a JSON object, if the config wants them and they can be read.
    pub(crate) exif: Option<String>,
    /// Digest of the downloaded bytes, if the config wants one.
    pub(crate) digest: Option<String>,
    /// Whether the server called the image something it is not.
    pub(crate) label: ContentLabel,
}

/// Width and height of an image before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImageSizes {
    /// Size after resizing.
    pub(crate) stored: Size,
    /// Size as downloaded.
    pub(crate) original: Size,
}

/// How the `Content-Type` header compares with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentLabel {
    /// It names the format, or says nothing.
    Honest,
    /// It names something else.
    Mismatch,
}

/// What the list says about an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Expectations {
    /// The digest the bytes must have.
    pub(crate) hash: Option<String>,
    /// The boxes to blur: null, or a list of lists of four numbers.
    pub(crate) boxes: Value,
}

/// Turns a downloaded body into an image to store.
///
/// # Errors
/// The reason why there is no image, or none that the config accepts.
pub(crate) fn transform(
    body: &Body,
    expectations: &Expectations,
    config: &DataFetchConfig,
) -> Result<StoredImage, Reject> {
    let bytes = body.bytes.as_slice();
    let digest = config.compute_hash.digest(bytes);
    if expectations.hash.as_ref().is_some_and(|expected| digest.as_ref() != Some(expected)) {
        return Err(Reject::HashMismatch);
    }
    let label = content_label(body.media_type.as_deref(), ImageFormat::sniff(bytes));
    let exif = || config.extract_exif.then(|| exif_json(bytes)).flatten();
    if config.disable_all_reencoding {
        return Ok(StoredImage { bytes: bytes.to_vec(), sizes: None, exif: exif(), digest, label });
    }
    let (stored, sizes) = reencode(bytes, &expectations.boxes, config)?;
    Ok(StoredImage { bytes: stored, sizes: Some(sizes), exif: exif(), digest, label })
}

/// Pixels of the image in `bytes`, as far as its header says; 0 if it is none.
pub(crate) fn num_pixels(bytes: &[u8]) -> u64 {
    let probed = oqvl_image_prep::probe(bytes);
    probed.map_or(0, |(_, width, height)| u64::from(width) * u64::from(height))
}

fn reencode(bytes: &[u8], boxes: &Value, config: &DataFetchConfig) -> Result<(Vec<u8>, ImageSizes), Reject> {
    let (format, width, height) = oqvl_image_prep::probe(bytes).map_err(|error| reject_of(&error))?;
    let original = Size { width, height };
    check_size(original, config)?;
    let boxes = parse_boxes(boxes)?;
    let encoding = config.encoding();
    let plan = plan(original, config)?;
    // Decoded even if the bytes are stored as they are: only then is it known that they are an image.
    let limits = DecodeLimits { max_pixels: config.max_decoded_pixels, ..DecodeLimits::default() };
    let quick_size =
        plan.shrunk_from(original).filter(|_| config.downscale_interpolation == Interpolation::Fast);
    if let (ResizePlan::Scale(_), Some(size), Encoding::Jpeg { quality }, []) =
        (plan, quick_size, encoding, &boxes[..])
    {
        let shrunk = shrink_jpeg(bytes, &limits, size.width, size.height, quality);
        if let Some(encoded) = shrunk.map_err(|error| reject_of(&error))? {
            return Ok((encoded, ImageSizes { stored: size, original }));
        }
    }
    let decoded = match quick_size {
        Some(size) => draft_on_white(bytes, &limits, size.width, size.height),
        None => decode_on_white(bytes, &limits),
    };
    let decoded = decoded.map_err(|error| reject_of(&error))?;
    let stored_as_is = config.skip_reencode
        && is_format(bytes, format, encoding.format())
        && !decoded.had_alpha
        && boxes.is_empty()
        && plan == ResizePlan::Keep;
    if stored_as_is {
        return Ok((bytes.to_vec(), ImageSizes { stored: original, original }));
    }
    let interpolation = match plan.shrunk_from(original) {
        Some(_) => config.downscale_interpolation,
        None => config.upscale_interpolation,
    };
    let image = apply(decoded.raster, plan, &boxes, interpolation);
    let stored = Size { width: image.width(), height: image.height() };
    // The one thing that can be wrong with it is its size.
    let encoded = encode(&image, encoding).map_err(|_| Reject::ImageTooLarge)?;
    Ok((encoded, ImageSizes { stored, original }))
}

/// Scales, blurs, and cuts or pads: in this order, as img2dataset does.
fn apply(image: Raster, plan: ResizePlan, boxes: &[NormalizedBox], interpolation: Interpolation) -> Raster {
    let scale = |image: &Raster, size: Size| resize_opencv(image, size.width, size.height, interpolation);
    let blur = |image: Raster| if boxes.is_empty() { image } else { blur_boxes(&image, boxes) };
    // Half of what stands out on both sides, or of what is missing; negative when cutting.
    let margin = |side: u32, length: u32| (i64::from(side) - i64::from(length)) / 2;
    match plan {
        ResizePlan::Keep => blur(image),
        ResizePlan::Scale(size) => blur(scale(&image, size)),
        ResizePlan::ScaleAndCrop { scaled, side } | ResizePlan::ScaleAndPad { scaled, side } => {
            let (left, top) = (margin(side, scaled.width), margin(side, scaled.height));
            blur(scale(&image, scaled)).place_on_white(side, side, left, top)
        }
    }
}

/// The boxes of a row; none if it has null.
fn parse_boxes(value: &Value) -> Result<Vec<NormalizedBox>, Reject> {
    match value {
        Value::Null => Ok(Vec::new()),
        // Lists in text formats may hold them as text.
        Value::String(text) => serde_json::from_str(text).map_err(|_| Reject::BadBoxes),
        other => serde_json::from_value(other.clone()).map_err(|_| Reject::BadBoxes),
    }
}

/// The tags as `json.dumps` writes them; `{}` if there are none, nothing if they are longer than [`MAX_EXIF_BYTES`].
fn exif_json(bytes: &[u8]) -> Option<String> {
    let tags = exif_tags(bytes)?;
    let object: Map<_, _> = tags.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    Some(to_python_json_line(&object)).filter(|json| json.len() <= MAX_EXIF_BYTES)
}

/// Whether the bytes are already in the wanted format. A JPEG counts by its first bytes, as for Python's `imghdr`, which
/// img2dataset asks: with a JFIF or EXIF segment, or none at all, before its tables. (Not so are CMYK files of Adobe's.)
fn is_format(bytes: &[u8], format: ImageFormat, wanted: ImageFormat) -> bool {
    let has_known_start = || {
        bytes.get(6..10).is_some_and(|name| name == b"JFIF" || name == b"Exif")
            || bytes.starts_with(b"\xff\xd8\xff\xdb")
    };
    format == wanted && (format != ImageFormat::Jpeg || has_known_start())
}

fn content_label(media_type: Option<&str>, format: Option<ImageFormat>) -> ContentLabel {
    let names: &[&str] = match format {
        Some(ImageFormat::Jpeg) => &["image/jpeg", "image/jpg", "image/pjpeg"],
        Some(ImageFormat::Png) => &["image/png", "image/x-png", "image/apng", "image/vnd.mozilla.apng"],
        Some(ImageFormat::WebP) => &["image/webp"],
        Some(ImageFormat::Gif) => &["image/gif"],
        Some(ImageFormat::Bmp) => &["image/bmp", "image/x-bmp", "image/x-ms-bmp"],
        Some(ImageFormat::Tiff) => &["image/tiff"],
        None => &[],
    };
    match media_type {
        // Servers say this of files they know nothing about.
        None | Some("application/octet-stream" | "binary/octet-stream") => ContentLabel::Honest,
        Some(name) if names.contains(&name) => ContentLabel::Honest,
        Some(_) => ContentLabel::Mismatch,
    }
}

fn reject_of(error: &DecodeError) -> Reject {
    match error {
        DecodeError::Empty => Reject::EmptyBody,
        DecodeError::UnknownFormat => Reject::UnknownFormat,
        DecodeError::TooLarge { .. } => Reject::ImageTooLarge,
        DecodeError::Truncated { .. } => Reject::TruncatedImage,
        DecodeError::Unsupported { .. } => Reject::UnsupportedImage,
        DecodeError::DecoderPanicked { .. } => Reject::DecoderPanicked,
        _ => Reject::CorruptImage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ComputeHash, EncodeFormat, ResizeMode};
    use image::ExtendedColorType;
    use oqvl_image_prep::RgbImage;
    use serde_json::json;

    /// A `width` by `height` image, black on the left half and red on the right.
    fn picture(width: u32, height: u32) -> RgbImage {
        let pixel = |idx: u32| if idx % width < width / 2 { [0, 0, 0] } else { [250, 0, 0] };
        RgbImage::new(width, height, (0..width * height).flat_map(pixel).collect()).unwrap()
    }

    fn body(bytes: Vec<u8>) -> Body {
        Body { bytes, media_type: None, memory: None }
    }

    fn config() -> DataFetchConfig {
        DataFetchConfig { image_size: 32, max_decoded_pixels: 1 << 20, ..Default::default() }
    }

    fn pixels_of(stored: &StoredImage) -> RgbImage {
        oqvl_image_prep::decode(&stored.bytes, &DecodeLimits::default()).unwrap()
    }

    fn png(pixels: &[u8], width: u32, color: ExtendedColorType) -> Vec<u8> {
        use image::ImageEncoder as _;
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes).write_image(pixels, width, 1, color).unwrap();
        bytes
    }

    #[test]
    fn a_small_jpeg_is_stored_as_it_came() {
        let bytes = oqvl_image_prep::encode_jpeg(&picture(20, 30), 40);
        let stored = transform(&body(bytes.clone()), &Expectations::default(), &config()).unwrap();
        assert_eq!(stored.bytes, bytes);
        let size = Size { width: 20, height: 30 };
        assert_eq!(stored.sizes, Some(ImageSizes { stored: size, original: size }));
        let reencoded = transform(
            &body(bytes.clone()),
            &Expectations::default(),
            &DataFetchConfig { skip_reencode: false, ..config() },
        )
        .unwrap();
        assert_ne!(reencoded.bytes, bytes);
        assert_eq!(reencoded.digest, stored.digest, "the digest is that of the downloaded bytes");
    }

    #[test]
    fn a_large_image_is_scaled_and_reencoded() {
        let stored = transform(
            &body(oqvl_image_prep::encode_png(&picture(100, 64))),
            &Expectations::default(),
            &config(),
        )
        .unwrap();
        let (stored_size, original) = (Size { width: 50, height: 32 }, Size { width: 100, height: 64 });
        assert_eq!(stored.sizes, Some(ImageSizes { stored: stored_size, original }));
        assert_eq!(ImageFormat::sniff(&stored.bytes), Some(ImageFormat::Jpeg));
        assert_eq!((pixels_of(&stored).width(), pixels_of(&stored).height()), (50, 32));
    }

    /// In every way that `fast` has: by planes, from a draft, with what planes cannot do.
    #[test]
    fn fast_gives_the_sizes_and_about_the_colours_of_area() {
        let file = oqvl_image_prep::encode_jpeg(&picture(50, 44), 95);
        for (image_size, resize_mode, encode_format, boxes) in [
            (32, ResizeMode::KeepRatio, EncodeFormat::Jpg, Value::Null),
            (20, ResizeMode::KeepRatio, EncodeFormat::Jpg, Value::Null),
            (32, ResizeMode::KeepRatio, EncodeFormat::Png, Value::Null),
            (32, ResizeMode::KeepRatio, EncodeFormat::Jpg, json!([[0.0, 0.0, 0.2, 0.2]])),
            (32, ResizeMode::CenterCrop, EncodeFormat::Jpg, Value::Null),
            (16, ResizeMode::Border, EncodeFormat::Jpg, Value::Null),
        ] {
            let [area, fast] = [Interpolation::Area, Interpolation::Fast].map(|downscale_interpolation| {
                let config = DataFetchConfig {
                    image_size,
                    resize_mode,
                    encode_format,
                    downscale_interpolation,
                    ..config()
                };
                let expectations = Expectations { hash: None, boxes: boxes.clone() };
                transform(&body(file.clone()), &expectations, &config).unwrap()
            });
            assert_eq!(fast.sizes, area.sizes, "{image_size}, {resize_mode:?}");
            let [area, fast] = [pixels_of(&area), pixels_of(&fast)];
            assert_eq!((fast.width(), fast.height()), (area.width(), area.height()));
            for (x, y) in [(2, area.height() / 2), (area.width() - 3, area.height() / 2)] {
                for (exact, quick) in area.pixel(x, y).into_iter().zip(fast.pixel(x, y)) {
                    assert!(exact.abs_diff(quick) < 12, "{image_size}, {resize_mode:?}: {exact} {quick}");
                }
            }
        }
    }

    #[test]
    fn every_format_can_be_stored() {
        for (encode_format, format) in [
            (EncodeFormat::Jpg, ImageFormat::Jpeg),
            (EncodeFormat::Png, ImageFormat::Png),
            (EncodeFormat::Webp, ImageFormat::WebP),
        ] {
            let config = DataFetchConfig { encode_format, ..config() };
            let stored = transform(
                &body(oqvl_image_prep::encode_png(&picture(64, 64))),
                &Expectations::default(),
                &config,
            )
            .unwrap();
            assert_eq!(ImageFormat::sniff(&stored.bytes), Some(format));
        }
    }

    #[test]
    fn border_and_crop_give_squares_with_the_image_in_the_middle() {
        let png = oqvl_image_prep::encode_png(&picture(128, 64));
        let config =
            |resize_mode| DataFetchConfig { resize_mode, encode_format: EncodeFormat::Png, ..config() };
        let bordered = pixels_of(
            &transform(&body(png.clone()), &Expectations::default(), &config(ResizeMode::Border)).unwrap(),
        );
        assert_eq!((bordered.width(), bordered.height()), (32, 32));
        assert_eq!((bordered.pixel(0, 7), bordered.pixel(0, 8)), ([255; 3], [0; 3]));
        assert_eq!((bordered.pixel(31, 23), bordered.pixel(31, 24)), ([250, 0, 0], [255; 3]));
        let cropped = pixels_of(
            &transform(&body(png), &Expectations::default(), &config(ResizeMode::CenterCrop)).unwrap(),
        );
        assert_eq!((cropped.width(), cropped.height()), (32, 32));
        assert_eq!((cropped.pixel(0, 0), cropped.pixel(31, 31)), ([0; 3], [250, 0, 0]));
    }

    #[test]
    fn transparency_is_put_on_white() {
        let config = DataFetchConfig { encode_format: EncodeFormat::Png, ..config() };
        let rgba = [10, 20, 30, 0, 10, 20, 30, 255, 0, 0, 0, 128];
        let stored =
            transform(&body(png(&rgba, 3, ExtendedColorType::Rgba8)), &Expectations::default(), &config)
                .unwrap();
        // 128 / 255 * 0 + 255 - 128 = 127.
        assert_eq!(pixels_of(&stored).pixels(), [255, 255, 255, 10, 20, 30, 127, 127, 127]);
        let wide: Vec<u8> = [0x8000_u16, 0xffff].iter().flat_map(|value| value.to_ne_bytes()).collect();
        let stored =
            transform(&body(png(&wide, 1, ExtendedColorType::La16)), &Expectations::default(), &config)
                .unwrap();
        assert_eq!(pixels_of(&stored).pixels(), [0x80; 3]);
    }

    #[test]
    fn what_is_no_image_has_a_reason() {
        let png = oqvl_image_prep::encode_png(&picture(40, 40));
        let mut bomb = png.clone();
        // Width and height stand at bytes 16 to 23 of a PNG; the header's checksum no longer fits, which is
        // no matter to a reader of sizes.
        bomb[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        for (bytes, expected) in [
            (b"<html>no</html>".to_vec(), vec![Reject::UnknownFormat]),
            (png[..png.len() / 2].to_vec(), vec![Reject::TruncatedImage, Reject::CorruptImage]),
            (png[..20].to_vec(), vec![Reject::TruncatedImage, Reject::CorruptImage]),
            (bomb, vec![Reject::ImageTooLarge, Reject::CorruptImage]),
            (oqvl_image_prep::encode_png(&picture(1025, 1024)), vec![Reject::ImageTooLarge]),
        ] {
            let reject = transform(&body(bytes), &Expectations::default(), &config()).unwrap_err();
            assert!(expected.contains(&reject), "{reject:?}, expected {expected:?}");
        }
        let small = DataFetchConfig { min_image_size: 41, ..config() };
        assert_eq!(
            transform(&body(png), &Expectations::default(), &small).unwrap_err(),
            Reject::ImageTooSmall
        );
    }

    #[test]
    fn a_digest_is_verified_before_anything_else() {
        let bytes = oqvl_image_prep::encode_jpeg(&picture(20, 20), 90);
        let config = DataFetchConfig { compute_hash: ComputeHash::Md5, ..config() };
        let digest = ComputeHash::Md5.digest(&bytes);
        let expect = |hash| Expectations { hash, boxes: Value::Null };
        let stored = transform(&body(bytes.clone()), &expect(digest.clone()), &config).unwrap();
        assert_eq!(stored.digest, digest);
        for (bytes, expected) in [(bytes, ""), (b"no image".to_vec(), "0123")] {
            let expected = expect(Some(expected.to_owned()));
            assert_eq!(transform(&body(bytes), &expected, &config).unwrap_err(), Reject::HashMismatch);
        }
    }

    /// A PNG whose EXIF is one directory of `num_entries` tags, all of which are the same `text`.
    fn with_repeated_exif(num_entries: u16, text: &[u8]) -> Vec<u8> {
        let mut block = [b"II\x2a\0\x08\0\0\0", &num_entries.to_le_bytes()[..]].concat();
        let text_offset = 8 + 2 + 12 * u32::from(num_entries) + 4;
        for tag in 0..num_entries {
            block.extend((0xa500 + tag).to_le_bytes());
            block.extend(2_u16.to_le_bytes());
            block.extend((text.len() as u32).to_le_bytes());
            block.extend(text_offset.to_le_bytes());
        }
        block.extend([0; 4]);
        block.extend(text);
        let png = oqvl_image_prep::encode_png(&picture(20, 20));
        let chunk = [&(block.len() as u32).to_be_bytes()[..], b"eXIf", &block, &[0; 4]].concat();
        [&png[..33], &chunk, &png[33..]].concat()
    }

    #[test]
    fn exif_has_an_end() {
        let config = DataFetchConfig { disable_all_reencoding: true, ..config() };
        let exif = |num_entries, text: &[u8]| {
            let body = body(with_repeated_exif(num_entries, text));
            transform(&body, &Expectations::default(), &config).unwrap().exif
        };
        let num_bytes = |exif: Option<String>| exif.map(|json| json.len());
        assert!((60_000..=MAX_EXIF_BYTES).contains(&num_bytes(exif(60, &[b'a'; 1000])).unwrap()));
        assert_eq!(exif(70, &[b'a'; 1000]), None);
        // 16 MiB of text from 64 KiB of file, four letters a byte.
        assert_eq!(exif(250, &[0xff; 1 << 16]), None);
    }

    #[test]
    fn damaged_files_never_panic() {
        let mut files = vec![
            oqvl_image_prep::encode_jpeg(&picture(40, 40), 90),
            oqvl_image_prep::encode_png(&picture(40, 40)),
            oqvl_image_prep::encode_webp(&picture(40, 40)),
            png(&[7; 40 * 4], 40, ExtendedColorType::Rgba8),
        ];
        for file in &mut files {
            for position in 0..file.len() {
                let before = file[position];
                file[position] = before.wrapping_add(101);
                let outcome = transform(&body(file.clone()), &Expectations::default(), &config());
                assert_ne!(outcome.err(), Some(Reject::DecoderPanicked), "byte {position} of {}", file.len());
                file[position] = before;
            }
        }
    }

    #[test]
    fn boxes_are_blurred_and_the_original_is_not_stored() {
        let bytes = oqvl_image_prep::encode_png(&picture(20, 20));
        let config = DataFetchConfig { encode_format: EncodeFormat::Png, ..config() };
        let blurred = |boxes: Value| {
            let expectations = Expectations { hash: None, boxes };
            transform(&body(bytes.clone()), &expectations, &config).map(|stored| stored.bytes)
        };
        for none in [Value::Null, json!([]), json!("[]")] {
            assert_eq!(blurred(none).unwrap(), bytes);
        }
        let boxes = json!([[0.25, 0.25, 0.75, 0.75]]);
        let found = blurred(boxes.clone()).unwrap();
        assert_ne!(found, bytes);
        assert_eq!(blurred(json!(boxes.to_string())).unwrap(), found);
        let pixels = oqvl_image_prep::decode(&found, &DecodeLimits::default()).unwrap();
        assert_eq!((pixels.pixel(0, 0), pixels.pixel(19, 19)), ([0, 0, 0], [250, 0, 0]), "far from the box");
        assert!((1..250).contains(&pixels.pixel(10, 10)[0]), "black and red run into each other");
        for wrong in [json!([0.1, 0.2, 0.3, 0.4]), json!([[0.1, 0.2, 0.3]]), json!("no"), json!(7)] {
            assert_eq!(blurred(wrong), Err(Reject::BadBoxes));
        }
    }

    #[test]
    fn untouched_means_untouched() {
        let config = DataFetchConfig { disable_all_reencoding: true, min_image_size: 1000, ..config() };
        for bytes in [oqvl_image_prep::encode_png(&picture(20, 20)), b"no image".to_vec()] {
            let stored = transform(&body(bytes.clone()), &Expectations::default(), &config).unwrap();
            assert_eq!((stored.bytes, stored.sizes), (bytes, None));
            assert_eq!(stored.exif.as_deref(), Some("{}"));
            assert!(stored.digest.is_some());
        }
    }

    #[test]
    fn grey_stays_grey() {
        let grey = png(&[7, 90, 200], 3, ExtendedColorType::L8);
        let stored = transform(&body(grey), &Expectations::default(), &config()).unwrap();
        // The number of components stands behind the sides in the frame header.
        let frame = stored.bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        assert_eq!(stored.bytes[frame + 9], 1);
    }

    #[test]
    fn a_wrong_label_is_noticed() {
        let bytes = oqvl_image_prep::encode_jpeg(&picture(20, 20), 90);
        for (media_type, expected) in [
            (None, ContentLabel::Honest),
            (Some("image/jpeg"), ContentLabel::Honest),
            (Some("image/jpg"), ContentLabel::Honest),
            (Some("application/octet-stream"), ContentLabel::Honest),
            (Some("image/png"), ContentLabel::Mismatch),
            (Some("text/html"), ContentLabel::Mismatch),
        ] {
            let body = Body { media_type: media_type.map(str::to_owned), ..body(bytes.clone()) };
            assert_eq!(
                transform(&body, &Expectations::default(), &config()).unwrap().label,
                expected,
                "{media_type:?}"
            );
        }
    }
}
