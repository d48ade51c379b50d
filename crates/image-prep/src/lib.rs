//! Images for Open-Qwen2VL: decoding with limits, Pillow-exact resizing, SigLIP normalisation, and the arithmetic of
//! patches and pooled image tokens.
//!
//! The nouns:
//! - [`RgbImage`]: width, height and row-major RGB bytes.
//! - [`decode`] and [`probe`]: bytes from the web to an [`RgbImage`], or only its size. Whatever is in the bytes, the
//!   answer is an image or a [`DecodeError`] with a [reason](DecodeError::reason) to count; memory is bounded by
//!   [`DecodeLimits`] before it is allocated.
//! - [`resize`]: Pillow's resampling, bit for bit.
//! - [`ImageGeometry`]: how many patches and how many language-model tokens an image becomes.
//! - [`pixel_values`]: what the vision tower reads; [`clip_pixel_values`] for CLIP's, [`Preprocessing`] for others of the kind.
//!
//! # Example
//!
//! ```
//! use oqvl_image_prep::{DecodeLimits, Filter, ImageGeometry, RgbImage};
//! use oqvl_image_prep::{decode, encode_png, pixel_values, probe, resize};
//!
//! let red = RgbImage::new(40, 30, [255, 0, 0].repeat(40 * 30))?;
//! let file = encode_png(&red);
//! let (_, width, height) = probe(&file)?; // reads the header only
//! assert_eq!((width, height), (40, 30));
//!
//! let image = decode(&file, &DecodeLimits::default())?;
//! assert_eq!(resize(&image, 20, 20, Filter::Bicubic).pixel(19, 19), [255, 0, 0]);
//!
//! let geometry = ImageGeometry::pretrain(); // 384 pixels, patches of 14, pooled to 12 x 12
//! assert_eq!(geometry.num_image_tokens(), 144);
//! let values = pixel_values(&image, geometry.image_size); // (3, 384, 384), red plane first
//! assert_eq!((values.len(), values[0], values[384 * 384]), (3 * 384 * 384, 1.0, -1.0));
//!
//! let refused = decode(b"<!DOCTYPE html>", &DecodeLimits::default()).unwrap_err();
//! assert_eq!(refused.reason(), "unknown-format");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How exact
//!
//! Compared, and equal bit for bit (`tests/image_goldens.rs`):
//! - [`resize`] with Pillow 11.1, on 2,400 random sizes and on every image of the shared data; releases from 10.4 to 12.2
//!   give the same. Pillow 13 runs the vertical pass first where that is less work: then 32 of 739 real images at
//!   384 x 384 differ, by 13 levels at most.
//! - [`decode`] with Pillow 11.1 and [`decode_on_white`] with OpenCV 4.14, on 165 JPEG files made to be different, and on
//!   739 real and 48 awkward files in all formats. The exception is 16-bit gray, which keeps its high byte here, is cut
//!   off at 255 by Pillow, and is turned white by img2dataset.
//! - [`resize_opencv`] with OpenCV 4.14, on 2,000 random sizes. Its x86 wheels use Intel's IPP for `INTER_CUBIC`, which
//!   differs by one level in 3.4 % of bytes.
//! - JPEG files of [`encode`] with those of Pillow and OpenCV, at 14 qualities; lossy WebP by its pixels.
//! - [`exif_tags`] with `exifread` 3.0, on 127 real files and some hundred made-up blocks. [`blur_boxes`] is within one level of
//!   img2dataset 1.47.
//!
//! [`draft_on_white`] and [`shrink_jpeg`] are not exact. Beside an exact decoding with the `Area` downscale, both stored at
//! quality 95, photographs have a peak signal-to-noise ratio of 42 dB on average (37 at the least) where they are decoded
//! whole, and of 35 dB (27 at the least, text and line drawings) where libjpeg leaves out the finer half of their
//! frequencies, which is sharper than the mean of an area (`tests/image_goldens.rs`).
//!
//! JPEG is read and written by libjpeg-turbo's code, as in Pillow and OpenCV; [`JPEG_SIMD`] tells whether this build of it
//! has vector code, which makes it faster and changes no pixel.

mod blur;
mod clip_transform;
mod decode;
mod encode;
mod error;
mod exif;
mod format;
mod geometry;
mod interpolation;
mod orientation;
mod pixel_values;
mod preprocessing;
mod raster;
mod resample;
mod rgb_image;
mod shrink;
mod shrink_jpeg;
#[cfg(target_arch = "x86_64")]
mod vector;

/// Whether JPEG files are read and written with vector instructions: libjpeg-turbo's are in assembly language and need
/// `nasm` at build time on x86. Without them the pixels of intact files are the same, and those of some damaged files are
/// not; reading takes about one and a half times as long, writing four times.
pub const JPEG_SIMD: bool = cfg!(jpeg_simd);

pub use blur::{NormalizedBox, blur_boxes};
pub use clip_transform::{CLIP_MEAN, CLIP_STD, clip_pixel_values};
pub use decode::{
    DEFAULT_DECODE_LIMITS, DecodeLimits, MattedImage, decode, decode_on_white, draft_on_white, probe,
};
pub use encode::{Encoding, encode, encode_jpeg, encode_png, encode_webp};
pub use error::{DecodeError, EncodeError, GeometryError, ShapeError};
pub use exif::exif_tags;
pub use format::ImageFormat;
pub use geometry::ImageGeometry;
pub use interpolation::{Interpolation, resize_opencv};
pub use orientation::exif_orientation;
pub use pixel_values::{SIGLIP_MEAN, SIGLIP_STD, pixel_values};
pub use preprocessing::{Preprocessing, ResizeMode};
pub use raster::{Layout, Raster, RasterRef};
pub use resample::{Filter, resize};
pub use rgb_image::{MAX_SIDE, RgbImage};
pub use shrink::{reference_shrink, reference_shrunk_size};
pub use shrink_jpeg::shrink_jpeg;
