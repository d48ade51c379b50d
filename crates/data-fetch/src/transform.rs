//! From downloaded bytes to stored bytes: sniff, check, decode, resize, encode. Pure and CPU-bound.
//!
//! Deviations from img2dataset, which goes through OpenCV:
//! - The resampling kernel is Pillow's bicubic in both directions, not OpenCV's `INTER_AREA` and
//!   `INTER_LANCZOS4`; resized pixels differ from img2dataset's.
//! - Grey images that are re-encoded become RGB.
//! - 16-bit images are scaled down to 8 bits; OpenCV saturates them to white.
//! - WebP is always lossless; `encode_quality` is for JPEG.
//!
//! As in img2dataset, an EXIF orientation is not applied.

use crate::client::Body;
use crate::config::{DataFetchConfig, EncodeFormat};
use crate::reject::Reject;
use crate::resize_policy::{ResizePlan, Size, check_size, max_side, plan};
use image::{DynamicImage, ImageDecoder as _, ImageReader};
use oqvl_image_prep::{DecodeError, DecodeLimits, Filter, ImageFormat, RgbImage};
use std::io::Cursor;

/// An image ready for the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredImage {
    /// In the format of the config.
    pub(crate) bytes: Vec<u8>,
    /// Unknown if nobody looked at the image (`disable_all_reencoding`).
    pub(crate) sizes: Option<ImageSizes>,
    /// The EXIF tags as a JSON object, if there are any and the config wants them.
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

/// Turns a downloaded body into an image to store.
///
/// # Errors
/// The reason why there is no image, or none that the config accepts.
pub(crate) fn transform(
    body: &Body,
    expected_hash: Option<&str>,
    config: &DataFetchConfig,
) -> Result<StoredImage, Reject> {
    let bytes = body.bytes.as_slice();
    let digest = config.compute_hash.digest(bytes);
    if expected_hash.is_some_and(|expected| digest.as_deref() != Some(expected)) {
        return Err(Reject::HashMismatch);
    }
    let (format, width, height) = oqvl_image_prep::probe(bytes).map_err(|error| reject_of(&error))?;
    let original_size = Size { width, height };
    check_size(original_size, config)?;
    let plan = plan(original_size, config)?;
    // Decoded even if the bytes are stored as they are: only then is it known that they are an image.
    let (image, opacity) = decode(bytes, format, config.max_decoded_pixels)?;
    let stored_as_is = config.skip_reencode
        && is_format(format, config.encode_format)
        && opacity == Opacity::Opaque
        && plan == ResizePlan::Keep;
    let resized = apply(image, plan);
    let size = Size { width: resized.width(), height: resized.height() };
    if !stored_as_is && size.longer() > max_side(config.encode_format) {
        return Err(Reject::ImageTooLarge);
    }
    let stored = if stored_as_is { bytes.to_vec() } else { encode(&resized, config) };
    let label = content_label(body.media_type.as_deref(), format);
    let sizes = Some(ImageSizes { stored: size, original: original_size });
    Ok(StoredImage { bytes: stored, sizes, exif: None, digest, label })
}

/// Whether an image has transparency to put on a ground.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opacity {
    Opaque,
    Matted,
}

/// Decodes to RGB; an image with an alpha channel is put on white, as img2dataset does.
fn decode(bytes: &[u8], format: ImageFormat, max_pixels: u64) -> Result<(RgbImage, Opacity), Reject> {
    if let Some(image) = decode_on_white(bytes, format, max_pixels)? {
        return Ok((image, Opacity::Matted));
    }
    Ok((decode_opaque(bytes, max_pixels)?, Opacity::Opaque))
}

fn decode_opaque(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, Reject> {
    let limits = DecodeLimits { max_pixels, ..DecodeLimits::default() };
    oqvl_image_prep::decode(bytes, &limits).map_err(|error| reject_of(&error))
}

/// Decodes an image with an alpha channel and mattes it on white; `None` if it has none.
fn decode_on_white(bytes: &[u8], format: ImageFormat, max_pixels: u64) -> Result<Option<RgbImage>, Reject> {
    let format = match format {
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::WebP => image::ImageFormat::WebP,
        ImageFormat::Gif => image::ImageFormat::Gif,
        ImageFormat::Bmp => image::ImageFormat::Bmp,
        ImageFormat::Tiff => image::ImageFormat::Tiff,
        ImageFormat::Jpeg => return Ok(None),
    };
    // Whatever this decoder does not understand, the other one gives its reason for.
    let Ok(mut decoder) = ImageReader::with_format(Cursor::new(bytes), format).into_decoder() else {
        return Ok(None);
    };
    if !decoder.color_type().has_alpha() {
        return Ok(None);
    }
    // Four 16-bit channels, and as much again for the decoder's own buffers.
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(max_pixels.saturating_mul(16));
    decoder.set_limits(limits).map_err(|_| Reject::ImageTooLarge)?;
    let Ok(decoded) = DynamicImage::from_decoder(decoder) else {
        // The other decoder knows more precise reasons; if it is content, its image still lacks the alpha
        // channel.
        return Err(decode_opaque(bytes, max_pixels).err().unwrap_or(Reject::CorruptImage));
    };
    let rgba = match decoded {
        // Scaled down by dropping the low byte, as `image-prep` does for opaque images.
        DynamicImage::ImageLumaA16(_) | DynamicImage::ImageRgba16(_) => {
            let wide = decoded.into_rgba16();
            let narrow = wide.as_raw().iter().map(|value| (value >> 8) as u8).collect();
            image::RgbaImage::from_raw(wide.width(), wide.height(), narrow)
                .expect("one byte for each 16-bit value of an image of the same size")
        }
        other => other.into_rgba8(),
    };
    let pixels = rgba.pixels().flat_map(|pixel| on_white(pixel.0)).collect();
    let image = RgbImage::new(rgba.width(), rgba.height(), pixels);
    Ok(Some(image.expect("three bytes for each pixel of an image of the same size")))
}

/// `alpha / 255 * value + 255 - alpha`, rounded to even. Source: img2dataset `resizer.py`.
fn on_white([red, green, blue, alpha]: [u8; 4]) -> [u8; 3] {
    let alpha = f64::from(alpha);
    [red, green, blue].map(|value| (alpha / 255.0 * f64::from(value) + 255.0 - alpha).round_ties_even() as u8)
}

fn apply(image: RgbImage, plan: ResizePlan) -> RgbImage {
    let scale = |size: Size| oqvl_image_prep::resize(&image, size.width, size.height, Filter::Bicubic);
    match plan {
        ResizePlan::Keep => image,
        ResizePlan::Scale(size) => scale(size),
        ResizePlan::ScaleAndCrop { scaled, side } => {
            let left = (scaled.width.saturating_sub(side)) / 2;
            let top = (scaled.height.saturating_sub(side)) / 2;
            place(&scale(scaled), side, -i64::from(left), -i64::from(top))
        }
        ResizePlan::ScaleAndPad { scaled, side } => {
            let left = (side.saturating_sub(scaled.width)) / 2;
            let top = (side.saturating_sub(scaled.height)) / 2;
            place(&scale(scaled), side, i64::from(left), i64::from(top))
        }
    }
}

/// A white square of side `side` with `image` at (`left`, `top`), cut where it stands out.
fn place(image: &RgbImage, side: u32, left: i64, top: i64) -> RgbImage {
    let (width, height) = (i64::from(image.width()), i64::from(image.height()));
    let mut pixels = vec![255; side as usize * side as usize * 3];
    for y in 0..i64::from(side) {
        let (source_y, first, last) = (y - top, left.max(0), (left + width).min(i64::from(side)));
        if !(0..height).contains(&source_y) || first >= last {
            continue;
        }
        let source = ((source_y * width + first - left) * 3) as usize;
        let target = ((y * i64::from(side) + first) * 3) as usize;
        let num_bytes = ((last - first) * 3) as usize;
        pixels[target..target + num_bytes].copy_from_slice(&image.pixels()[source..source + num_bytes]);
    }
    RgbImage::new(side, side, pixels).expect("three bytes for each pixel of the square")
}

fn encode(image: &RgbImage, config: &DataFetchConfig) -> Vec<u8> {
    match config.encode_format {
        EncodeFormat::Jpg => oqvl_image_prep::encode_jpeg(image, config.encode_quality),
        EncodeFormat::Png => oqvl_image_prep::encode_png(image),
        EncodeFormat::Webp => oqvl_image_prep::encode_webp(image),
    }
}

fn is_format(format: ImageFormat, wanted: EncodeFormat) -> bool {
    matches!(
        (format, wanted),
        (ImageFormat::Jpeg, EncodeFormat::Jpg)
            | (ImageFormat::Png, EncodeFormat::Png)
            | (ImageFormat::WebP, EncodeFormat::Webp)
    )
}

fn content_label(media_type: Option<&str>, format: ImageFormat) -> ContentLabel {
    let names: &[&str] = match format {
        ImageFormat::Jpeg => &["image/jpeg", "image/jpg", "image/pjpeg"],
        ImageFormat::Png => &["image/png", "image/x-png", "image/apng", "image/vnd.mozilla.apng"],
        ImageFormat::WebP => &["image/webp"],
        ImageFormat::Gif => &["image/gif"],
        ImageFormat::Bmp => &["image/bmp", "image/x-bmp", "image/x-ms-bmp"],
        ImageFormat::Tiff => &["image/tiff"],
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
        DecodeError::UnknownFormat => Reject::NotAnImage,
        DecodeError::TooLarge { .. } => Reject::ImageTooLarge,
        _ => Reject::CorruptImage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ComputeHash, ResizeMode};
    use image::ExtendedColorType;

    /// A `width` by `height` image, black on the left half and red on the right.
    fn picture(width: u32, height: u32) -> RgbImage {
        let pixel = |idx: u32| if idx % width < width / 2 { [0, 0, 0] } else { [250, 0, 0] };
        RgbImage::new(width, height, (0..width * height).flat_map(pixel).collect()).unwrap()
    }

    fn body(bytes: Vec<u8>) -> Body {
        Body { bytes, media_type: None, _memory: None }
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
        let stored = transform(&body(bytes.clone()), None, &config()).unwrap();
        assert_eq!(stored.bytes, bytes);
        let size = Size { width: 20, height: 30 };
        assert_eq!(stored.sizes, Some(ImageSizes { stored: size, original: size }));
        let reencoded =
            transform(&body(bytes.clone()), None, &DataFetchConfig { skip_reencode: false, ..config() })
                .unwrap();
        assert_ne!(reencoded.bytes, bytes);
        assert_eq!(reencoded.digest, stored.digest, "the digest is that of the downloaded bytes");
    }

    #[test]
    fn a_large_image_is_scaled_and_reencoded() {
        let stored =
            transform(&body(oqvl_image_prep::encode_png(&picture(100, 64))), None, &config()).unwrap();
        let (stored_size, original) = (Size { width: 50, height: 32 }, Size { width: 100, height: 64 });
        assert_eq!(stored.sizes, Some(ImageSizes { stored: stored_size, original }));
        assert_eq!(ImageFormat::sniff(&stored.bytes), Some(ImageFormat::Jpeg));
        assert_eq!((pixels_of(&stored).width(), pixels_of(&stored).height()), (50, 32));
    }

    #[test]
    fn every_format_can_be_stored() {
        for (encode_format, format) in [
            (EncodeFormat::Jpg, ImageFormat::Jpeg),
            (EncodeFormat::Png, ImageFormat::Png),
            (EncodeFormat::Webp, ImageFormat::WebP),
        ] {
            let config = DataFetchConfig { encode_format, ..config() };
            let stored =
                transform(&body(oqvl_image_prep::encode_png(&picture(64, 64))), None, &config).unwrap();
            assert_eq!(ImageFormat::sniff(&stored.bytes), Some(format));
        }
    }

    #[test]
    fn border_and_crop_give_squares_with_the_image_in_the_middle() {
        let png = oqvl_image_prep::encode_png(&picture(128, 64));
        let config =
            |resize_mode| DataFetchConfig { resize_mode, encode_format: EncodeFormat::Png, ..config() };
        let bordered = pixels_of(&transform(&body(png.clone()), None, &config(ResizeMode::Border)).unwrap());
        assert_eq!((bordered.width(), bordered.height()), (32, 32));
        assert_eq!((bordered.pixel(0, 7), bordered.pixel(0, 8)), ([255; 3], [0; 3]));
        assert_eq!((bordered.pixel(31, 23), bordered.pixel(31, 24)), ([250, 0, 0], [255; 3]));
        let cropped = pixels_of(&transform(&body(png), None, &config(ResizeMode::CenterCrop)).unwrap());
        assert_eq!((cropped.width(), cropped.height()), (32, 32));
        assert_eq!((cropped.pixel(0, 0), cropped.pixel(31, 31)), ([0; 3], [250, 0, 0]));
    }

    #[test]
    fn transparency_is_put_on_white() {
        let config = DataFetchConfig { encode_format: EncodeFormat::Png, ..config() };
        let rgba = [10, 20, 30, 0, 10, 20, 30, 255, 0, 0, 0, 128];
        let stored = transform(&body(png(&rgba, 3, ExtendedColorType::Rgba8)), None, &config).unwrap();
        // 128 / 255 * 0 + 255 - 128 = 127.
        assert_eq!(pixels_of(&stored).pixels(), [255, 255, 255, 10, 20, 30, 127, 127, 127]);
        let wide: Vec<u8> = [0x8000_u16, 0xffff].iter().flat_map(|value| value.to_ne_bytes()).collect();
        let stored = transform(&body(png(&wide, 1, ExtendedColorType::La16)), None, &config).unwrap();
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
            (b"<html>no</html>".to_vec(), vec![Reject::NotAnImage]),
            (png[..png.len() / 2].to_vec(), vec![Reject::CorruptImage]),
            (png[..20].to_vec(), vec![Reject::CorruptImage]),
            (bomb, vec![Reject::ImageTooLarge, Reject::CorruptImage]),
            (oqvl_image_prep::encode_png(&picture(1025, 1024)), vec![Reject::ImageTooLarge]),
        ] {
            let reject = transform(&body(bytes), None, &config()).unwrap_err();
            assert!(expected.contains(&reject), "{reject:?}, expected {expected:?}");
        }
        let small = DataFetchConfig { min_image_size: 41, ..config() };
        assert_eq!(transform(&body(png), None, &small).unwrap_err(), Reject::ImageTooSmall);
    }

    #[test]
    fn a_digest_is_verified_before_anything_else() {
        let bytes = oqvl_image_prep::encode_jpeg(&picture(20, 20), 90);
        let config = DataFetchConfig { compute_hash: ComputeHash::Md5, ..config() };
        let digest = ComputeHash::Md5.digest(&bytes);
        let stored = transform(&body(bytes.clone()), digest.as_deref(), &config).unwrap();
        assert_eq!(stored.digest, digest);
        for (bytes, expected) in [(bytes, ""), (b"no image".to_vec(), "0123")] {
            assert_eq!(transform(&body(bytes), Some(expected), &config).unwrap_err(), Reject::HashMismatch);
        }
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
                let _ = transform(&body(file.clone()), None, &config());
                file[position] = before;
            }
        }
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
            assert_eq!(transform(&body, None, &config()).unwrap().label, expected, "{media_type:?}");
        }
    }
}
