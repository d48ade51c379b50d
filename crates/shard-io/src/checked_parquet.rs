//! A parquet file of others as the parquet library reads it.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

use crate::parquet_claims::{TAIL_BYTES, check_footer, read_page_header};

/// A parquet file whose footer and page headers are checked before the library believes them (see
/// [`open_parquet`](crate::open_parquet)).
#[derive(Debug)]
pub struct CheckedParquet(Arc<File>);

impl CheckedParquet {
    pub(crate) fn new(file: File) -> Result<CheckedParquet> {
        check_footer(&file)?;
        Ok(CheckedParquet(Arc::new(file)))
    }
}

impl Length for CheckedParquet {
    fn len(&self) -> u64 {
        Length::len(&*self.0)
    }
}

impl ChunkReader for CheckedParquet {
    type T = ChunkStart;

    fn get_read(&self, start: u64) -> Result<ChunkStart> {
        Ok(ChunkStart { file: Arc::clone(&self.0), start, rest: None })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let end = u64::try_from(length).ok().and_then(|length| start.checked_add(length));
        if end.is_none_or(|end| end > self.len()) {
            // Before memory is reserved for it.
            let problem = format!("{length} bytes at byte {start} are asked for, the file ends before");
            return Err(ParquetError::EOF(problem));
        }
        self.0.get_bytes(start, length)
    }
}

/// What the library parses piece by piece: the tail of the file or a page header.
///
/// It is looked at when something is read, not before: the library also asks for a reader where it then reads nothing
/// and no header is. Its end is an error, not nothing: the library passes over values without asking whether they were
/// there.
#[derive(Debug)]
pub struct ChunkStart {
    file: Arc<File>,
    start: u64,
    rest: Option<Bytes>,
}

impl ChunkStart {
    fn open(&self) -> Result<Bytes> {
        if Length::len(&*self.file).checked_sub(TAIL_BYTES as u64) == Some(self.start) {
            return self.file.get_bytes(self.start, TAIL_BYTES);
        }
        read_page_header(&self.file, self.start)
    }
}

impl Read for ChunkStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = match &mut self.rest {
            Some(rest) => rest,
            None => {
                let bytes = self.open().map_err(io::Error::other)?;
                self.rest.insert(bytes)
            }
        };
        if rest.is_empty() && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let number = buffer.len().min(rest.len());
        rest.copy_to_slice(&mut buffer[..number]);
        Ok(number)
    }
}
