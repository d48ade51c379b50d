//! What can be wrong with an image file, a pixel buffer, or a geometry.

use crate::{ImageFormat, Layout};

/// Why bytes are not an image one can use. Every variant has a stable [`reason`](DecodeError::reason) for counting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the image file is empty")]
    Empty,
    /// The first bytes are those of no supported format.
    #[error("not a JPEG, PNG, WebP, GIF, BMP or TIFF file")]
    UnknownFormat,
    /// The header announces more than the limits allow; nothing was allocated for it.
    #[error("{format} image of {width} x {height} pixels is over the limit {limit}")]
    TooLarge {
        /// The file's format.
        format: ImageFormat,
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
        /// The limit, as `name = value`.
        limit: String,
    },
    /// The file ends before its image does.
    #[error("{format} file is truncated")]
    Truncated {
        /// The file's format.
        format: ImageFormat,
    },
    /// The file breaks the rules of its format.
    #[error("{format} file is corrupt")]
    Corrupt {
        /// The file's format.
        format: ImageFormat,
        /// What the decoder said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file keeps the rules of its format but uses a part of it that nobody here decodes.
    #[error("{format} file uses an unsupported feature")]
    Unsupported {
        /// The file's format.
        format: ImageFormat,
        /// What the decoder said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The decoder panicked. A bug of a dependency, but one bad file must not end a run over millions.
    #[error("the {format} decoder panicked")]
    DecoderPanicked {
        /// The file's format.
        format: ImageFormat,
    },
}

impl DecodeError {
    /// A stable kebab-case name for tallies, the same for all errors of one variant, and the same in all stages.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty-file",
            Self::UnknownFormat => "unknown-format",
            Self::TooLarge { .. } => "image-too-large",
            Self::Truncated { .. } => "truncated-image",
            Self::Corrupt { .. } => "corrupt-image",
            Self::Unsupported { .. } => "unsupported-image",
            Self::DecoderPanicked { .. } => "decoder-panicked",
        }
    }
}

/// Why an image was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A side is longer than the format, or its encoder, can hold.
    #[error("a {format} file cannot hold {width} x {height} pixels: sides end at {max_side}")]
    TooLarge {
        /// The format asked for.
        format: ImageFormat,
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
        /// The longest side that can be written.
        max_side: u32,
    },
    /// The quality or level is not one the format has.
    #[error("{setting} must be from {min} to {max}, got {found}")]
    Setting {
        /// Which setting.
        setting: &'static str,
        /// Its least value.
        min: u8,
        /// Its greatest value.
        max: u8,
        /// What was asked for.
        found: u8,
    },
}

/// Why width, height and bytes are not an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// A side is 0 or longer than [`crate::MAX_SIDE`].
    #[error("an image of {width} x {height} pixels: sides must be from 1 to {}", crate::MAX_SIDE)]
    Side {
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// The buffer does not hold all samples, or holds more.
    #[error("{} image of {width} x {height} pixels needs {expected} bytes, got {found}", match layout {
        Layout::Gray => "a gray",
        Layout::Rgb => "an RGB",
    })]
    NumBytes {
        /// Which samples make a pixel.
        layout: Layout,
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
        /// `width * height` times the bytes of a pixel.
        expected: usize,
        /// Length of the buffer.
        found: usize,
    },
}

/// Why an [`crate::ImageGeometry`] makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} must be {expected}, got {found}")]
pub struct GeometryError {
    /// The field at fault.
    pub key: &'static str,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub found: u32,
}
