//! The plain files of a tar, in a stream: headers are distrusted, memory is bounded.
//!
//! Understands USTAR, GNU long names, base-256 sizes and pax `path` and `size` records (POSIX.1-2017, `pax`,
//! "ustar Interchange Format" and "pax Header Block"). Directories and global pax headers carry no data of a
//! sample and are passed over; links, devices and sparse files are errors.

use std::io::{self, Read};
use std::path::PathBuf;

use crate::ShardError;
use crate::error::printable;

/// Tar files are sequences of blocks of this many bytes.
pub(crate) const BLOCK_BYTES: u64 = 512;

/// What a tar ends with: two blocks of zeros. A piece of one that is read as a tar must end so too.
pub const TAR_END: [u8; 2 * BLOCK_BYTES as usize] = [0; 2 * BLOCK_BYTES as usize];

/// Longest member name that is believed; GNU and pax names are data and could claim any length.
const MAX_NAME_BYTES: u64 = 4096;

/// Longest pax header that is believed: it may carry records of other tools beside the name.
const MAX_PAX_BYTES: u64 = 1 << 20;

/// Capacity reserved before the first byte of a member has arrived, whatever size its header claims.
const MAX_RESERVE_BYTES: u64 = 1 << 16;

/// A plain file of the tar whose content has not been read yet.
#[derive(Debug)]
pub(crate) struct FileEntry {
    /// Its path inside the tar.
    pub(crate) name: String,
    /// Where what belongs to it starts: its extension headers, if it has any.
    pub(crate) start_offset: u64,
    /// Where its header starts.
    pub(crate) header_offset: u64,
    /// Where its content starts.
    pub(crate) data_offset: u64,
    /// Bytes of content its header claims.
    pub(crate) num_bytes: u64,
}

/// What extension headers said about the entry that follows them.
#[derive(Debug, Default)]
struct Overrides {
    name: Option<Vec<u8>>,
    num_bytes: Option<u64>,
}

/// The stream of entries of one tar.
#[derive(Debug)]
pub(crate) struct TarEntries<R> {
    reader: R,
    path: PathBuf,
    /// Bytes consumed so far.
    position: u64,
    /// Name of the last file whose header was read, for error messages; its memory is used again for the next.
    last_member: Option<String>,
    pass_over: PassOver<R>,
}

/// Goes on by so many bytes, or to the end of the stream if that comes first; returns how many there were.
type PassOver<R> = fn(&mut R, u64) -> io::Result<u64>;

impl<R: Read> TarEntries<R> {
    /// Starts where `reader` stands, `position` bytes into the tar; `path` is only for messages.
    pub(crate) fn new(reader: R, path: PathBuf, position: u64) -> TarEntries<R> {
        let read_and_drop =
            |reader: &mut R, num_bytes| io::copy(&mut reader.take(num_bytes), &mut io::sink());
        TarEntries { reader, path, position, last_member: None, pass_over: read_and_drop }
    }

    /// Uses `pass_over` where content is not wanted, instead of reading it.
    pub(crate) fn pass_over_by(&mut self, pass_over: PassOver<R>) {
        self.pass_over = pass_over;
    }

    /// Where in the tar the stream stands.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The path given for messages.
    pub(crate) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The next plain file, or `None` at the zero block that closes the archive.
    ///
    /// An archive that ends where a header could stand, but without that block, is [`ShardError::Unterminated`].
    ///
    /// The content must be taken with [`read_data`](TarEntries::read_data) before the next call.
    pub(crate) fn next_file(&mut self) -> Result<Option<FileEntry>, ShardError> {
        let start_offset = self.position;
        let mut overrides = Overrides::default();
        loop {
            let header_offset = self.position;
            // An extension header announces an entry: the archive must not end between them.
            let announced = overrides.name.is_some() || overrides.num_bytes.is_some();
            let header = match self.read_header() {
                Ok(Some(header)) => header,
                Ok(None) | Err(ShardError::Unterminated { .. }) if announced => return Err(self.truncated()),
                Ok(None) => return Ok(None),
                Err(error) => return Err(error),
            };
            let claimed = parse_number(&header.as_old().size)
                .map_err(|problem| self.bad_header(header_offset, problem))?;
            match header.as_bytes()[TYPE_OFFSET] {
                b'0' | 0 | b'7' => {
                    let raw_name = overrides.name.take().unwrap_or_else(|| header.path_bytes().into_owned());
                    let name = self.decode_name(raw_name, header_offset)?;
                    let num_bytes = overrides.num_bytes.take().unwrap_or(claimed);
                    let entry = FileEntry {
                        name,
                        start_offset,
                        header_offset,
                        data_offset: self.position,
                        num_bytes,
                    };
                    // Tars older than USTAR mark a directory by a trailing slash.
                    if entry.name.ends_with('/') {
                        self.skip_data(num_bytes)?;
                        continue;
                    }
                    return Ok(Some(entry));
                }
                b'5' => {
                    self.skip_data(overrides.num_bytes.take().unwrap_or(claimed))?;
                    overrides = Overrides::default();
                }
                b'g' => self.skip_data(claimed)?,
                b'L' => overrides.name = Some(self.read_long_name(header_offset, claimed)?),
                b'x' => self.read_pax(header_offset, claimed, &mut overrides)?,
                kind => {
                    let raw_name = overrides.name.take().unwrap_or_else(|| header.path_bytes().into_owned());
                    return Err(ShardError::EntryKind {
                        path: self.path.clone(),
                        member: printable(&String::from_utf8_lossy(&raw_name)),
                        offset: header_offset,
                        kind: char::from(kind).escape_default().to_string(),
                    });
                }
            }
        }
    }

    /// Reads the content of the entry that [`next_file`](TarEntries::next_file) just returned.
    ///
    /// Memory grows with the bytes that arrive, not with the size the header claims; the caller has checked
    /// that size against its limits.
    pub(crate) fn read_data(&mut self, num_bytes: u64) -> Result<Vec<u8>, ShardError> {
        let mut data = Vec::with_capacity(num_bytes.min(MAX_RESERVE_BYTES) as usize);
        let taken = (&mut self.reader).take(num_bytes).read_to_end(&mut data);
        self.position += data.len() as u64;
        taken.map_err(|source| self.read_failed(source))?;
        if (data.len() as u64) < num_bytes {
            return Err(self.truncated());
        }
        self.discard(padding_bytes(num_bytes))?;
        Ok(data)
    }

    /// Passes over the content of the entry that [`next_file`](TarEntries::next_file) just returned.
    pub(crate) fn skip_data(&mut self, num_bytes: u64) -> Result<(), ShardError> {
        self.discard(num_bytes)?;
        self.discard(padding_bytes(num_bytes))
    }

    fn discard(&mut self, num_bytes: u64) -> Result<(), ShardError> {
        if num_bytes == 0 {
            return Ok(());
        }
        let passed =
            (self.pass_over)(&mut self.reader, num_bytes).map_err(|source| self.read_failed(source))?;
        self.position += passed;
        if passed < num_bytes { Err(self.truncated()) } else { Ok(()) }
    }

    /// The next header with a correct checksum; `None` at a zero block.
    fn read_header(&mut self) -> Result<Option<tar::Header>, ShardError> {
        let offset = self.position;
        let mut header = tar::Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.read_failed(source)),
            }
        }
        self.position += filled as u64;
        if filled == 0 {
            return Err(ShardError::Unterminated {
                path: self.path.clone(),
                member: self.last_member(),
                offset,
            });
        }
        if filled < block.len() {
            return Err(self.truncated());
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let stored = parse_number(&header.as_old().cksum);
        if stored != Ok(checksum(header.as_bytes())) {
            return Err(self.bad_header(offset, "the checksum does not match"));
        }
        Ok(Some(header))
    }

    fn read_long_name(&mut self, header_offset: u64, claimed: u64) -> Result<Vec<u8>, ShardError> {
        if claimed > MAX_NAME_BYTES {
            return Err(self.bad_header(header_offset, "the long name is longer than 4096 bytes"));
        }
        let mut name = self.read_data(claimed)?;
        // GNU tar closes the name with a zero byte.
        name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn read_pax(
        &mut self,
        header_offset: u64,
        claimed: u64,
        overrides: &mut Overrides,
    ) -> Result<(), ShardError> {
        if claimed > MAX_PAX_BYTES {
            return Err(self.bad_header(header_offset, "the pax header is longer than 1 MiB"));
        }
        let records = self.read_data(claimed)?;
        let mut rest = records.as_slice();
        while !rest.is_empty() {
            let (key, value, tail) = split_pax_record(rest)
                .ok_or_else(|| self.bad_header(header_offset, "malformed pax record"))?;
            match key {
                b"path" if value.len() as u64 > MAX_NAME_BYTES => {
                    return Err(self.bad_header(header_offset, "the pax name is longer than 4096 bytes"));
                }
                b"path" => overrides.name = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    overrides.num_bytes = Some(
                        size.ok_or_else(|| self.bad_header(header_offset, "the pax size is no number"))?,
                    );
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(self.bad_header(header_offset, "sparse files are not supported"));
                }
                _ => {}
            }
            rest = tail;
        }
        Ok(())
    }

    fn decode_name(&mut self, raw_name: Vec<u8>, header_offset: u64) -> Result<String, ShardError> {
        match String::from_utf8(raw_name) {
            Ok(name) => {
                self.last_member.get_or_insert_default().clone_from(&name);
                Ok(name)
            }
            Err(error) => Err(ShardError::MemberName {
                path: self.path.clone(),
                member: printable(&String::from_utf8_lossy(error.as_bytes())),
                offset: header_offset,
                problem: "it is not utf-8",
            }),
        }
    }

    /// The last file, as a message shows it.
    fn last_member(&self) -> String {
        self.last_member.as_deref().map_or("(start)".to_owned(), printable)
    }

    fn truncated(&self) -> ShardError {
        ShardError::Truncated { path: self.path.clone(), member: self.last_member(), offset: self.position }
    }

    fn bad_header(&self, offset: u64, problem: &'static str) -> ShardError {
        ShardError::Header { path: self.path.clone(), member: self.last_member(), offset, problem }
    }

    fn read_failed(&self, source: io::Error) -> ShardError {
        ShardError::Read {
            path: self.path.clone(),
            member: self.last_member(),
            offset: self.position,
            source,
        }
    }
}

/// Position of the type byte in a header block.
const TYPE_OFFSET: usize = 156;

/// Position and length of the checksum field in a header block.
const CHECKSUM_FIELD: std::ops::Range<usize> = 148..156;

/// Bytes between the end of `num_bytes` of content and the next block.
pub(crate) fn padding_bytes(num_bytes: u64) -> u64 {
    (BLOCK_BYTES - num_bytes % BLOCK_BYTES) % BLOCK_BYTES
}

/// The sum of the header's bytes, its checksum field counted as blanks.
fn checksum(block: &[u8; 512]) -> u64 {
    let blanks = CHECKSUM_FIELD.len() as u32 * u32::from(b' ');
    let field: u32 = block[CHECKSUM_FIELD].iter().map(|&byte| u32::from(byte)).sum();
    // 512 bytes fit 32 bits, which the compiler adds up twice as many at a time as 64.
    let all: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    u64::from(all - field + blanks)
}

/// A numeric header field: octal digits between blanks or zero bytes, or GNU base-256.
fn parse_number(field: &[u8]) -> Result<u64, &'static str> {
    match field[0] {
        0x80 => {
            let (high, low) = field[1..].split_at(field.len().saturating_sub(9));
            if high.iter().any(|&byte| byte != 0) {
                return Err("a number does not fit 64 bits");
            }
            Ok(low.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
        }
        byte if byte & 0x80 != 0 => Err("a number is negative"),
        _ => {
            let digits = field.trim_ascii_start();
            let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
            digits[..end].iter().try_fold(0, |number, &byte| match byte {
                b'0'..=b'7' => Ok(number << 3 | u64::from(byte - b'0')),
                _ => Err("a number is not octal"),
            })
        }
    }
}

/// Splits the first record off a pax header: `"{length} {key}={value}\n"`, the length counting all of it.
fn split_pax_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = records.iter().take(20).position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..blank]).ok()?.parse().ok()?;
    let body = records.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|&byte| byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &records[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(parse_number(b"00000000017\0"), Ok(15));
        assert_eq!(parse_number(b"        17 \0"), Ok(15));
        assert_eq!(parse_number(b"\0\0\0\0\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(parse_number(b"777777777777"), Ok((1 << 36) - 1));
        assert_eq!(parse_number(b"\x80\0\0\0\0\0\0\0\0\0\x01\x02"), Ok(258));
        assert_eq!(parse_number(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), Ok(u64::MAX));
        assert!(parse_number(b"\x80\0\0\x01\0\0\0\0\0\0\0\0").is_err());
        assert!(parse_number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
        assert!(parse_number(b"00000000008\0").is_err());
        assert!(parse_number(b"-0000000001\0").is_err());
    }

    #[test]
    fn pax_records() {
        assert_eq!(split_pax_record(b"9 a=b=c\nrest"), None, "the length must end at a newline");
        assert_eq!(split_pax_record(b"8 a=b=c\nrest"), Some((&b"a"[..], &b"b=c"[..], &b"rest"[..])));
        for bad in [&b""[..], b"8", b"8 ", b"x a=b\n", b"99 a=b\n", b"1 a=b\n", b"0 a=b\n", b"5 ab\n", b"2 "]
        {
            assert_eq!(split_pax_record(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn padding() {
        assert_eq!([0, 1, 511, 512, 513].map(padding_bytes), [0, 511, 1, 0, 511]);
    }
}
