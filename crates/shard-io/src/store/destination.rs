//! Finished files on their way to a bucket.

use super::objects::Objects;
use super::settings::StoreSettings;
use super::uri::Place;
use super::{Store, StoreError, StoreUri, answered};
use crate::digest_file;
use bytes::Bytes;
use futures_util::StreamExt;
use object_store::{
    Attribute, AttributeValue, Attributes, GetOptions, MultipartUpload, ObjectStoreExt as _, PutMode,
    PutMultipartOptions, PutOptions, PutPayload,
};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Objects up to this size are sent in one request, larger ones in parts of it.
const PART_BYTES: u64 = 8 << 20;
/// Most parts an object may have (S3: 10,000).
const MAX_PARTS: u64 = 9_000;
/// Parts of one object under way at the same time: with the size of a part, what sending takes in memory.
const PARALLEL_PARTS: usize = 4;
/// Metadata key of an object: the BLAKE3 digest of its content.
const DIGEST_KEY: &str = "blake3";
/// Largest stamp that is read back.
const MAX_STAMP_BYTES: usize = 1 << 20;

/// The mark of whoever writes below a prefix. Two that write the same have the same content.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Name of its object below the prefix.
    pub name: &'a str,
    /// Its content.
    pub content: &'a [u8],
    /// Content of an earlier mark that this one takes the place of.
    pub replaces: Option<&'a [u8]>,
    /// The same, if nothing but the mark is there.
    pub replaces_alone: Option<&'a [u8]>,
}

/// What became of a file that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It went, and the store has it with its size and digest.
    Now,
    /// It was there already.
    Before,
}

/// A prefix of a bucket that is ours to write below.
#[derive(Debug)]
pub struct Destination {
    store: Store,
    objects: Objects,
    uri: StoreUri,
    /// What was there at first: sizes by name.
    known: HashMap<String, u64>,
}

impl Destination {
    /// Claims the prefix: puts the mark there, on condition that there is none, or finds its own.
    ///
    /// # Errors
    /// [`StoreError::ForeignDestination`] if another mark, or objects without a mark, are there; or if the bucket
    /// cannot be reached, read or written.
    pub fn claim(
        settings: StoreSettings,
        uri: StoreUri,
        claim: Claim<'_>,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Destination, StoreError> {
        if !matches!(uri.place(), Place::S3 { .. } | Place::Gs { .. }) {
            let problem = "files can only be sent to s3:// and gs://".to_owned();
            return Err(StoreError::Uri { uri: uri.to_string(), problem });
        }
        if settings.offline {
            let problem = "nothing can be sent".to_owned();
            return Err(StoreError::Offline { uri: uri.to_string(), problem });
        }
        let objects = Objects::new(&uri, &settings)?;
        let mut destination =
            Destination { store: Store::new(settings)?, objects, uri, known: HashMap::new() };
        destination.known = destination.store.run(is_stopped, destination.take(claim))?;
        Ok(destination)
    }

    async fn take(&self, claim: Claim<'_>) -> Result<HashMap<String, u64>, StoreError> {
        let foreign = |problem: &str| StoreError::ForeignDestination {
            uri: self.uri.to_string(),
            problem: problem.to_owned(),
        };
        let files = self.objects.list_below(self.uri.key().trim_end_matches('/')).await?;
        let known: HashMap<String, u64> =
            files.into_iter().filter_map(|file| Some((file.name, file.num_bytes?))).collect();
        if !known.contains_key(claim.name) {
            if !known.is_empty() {
                return Err(foreign("holds files that no run of ours put there"));
            }
            let path = self.objects.path(self.key(claim.name).as_str())?;
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let payload = PutPayload::from_bytes(Bytes::copy_from_slice(claim.content));
            match answered(self.uri.as_str(), async {
                Ok(self.objects.store.put_opts(&path, payload, options).await)
            })
            .await?
            {
                Ok(_) => return Ok(known),
                // Somebody was faster; whose mark is it?
                Err(object_store::Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(self.objects.failed(error)),
            }
        }
        let mark = self.read(claim.name).await?;
        if mark == claim.content {
            return Ok(known);
        }
        let is_alone = known.len() == 1;
        let is_replaced = claim.replaces == Some(mark.as_slice())
            || is_alone && claim.replaces_alone == Some(mark.as_slice());
        if !is_replaced {
            return Err(foreign("holds the output of another run: of other inputs or another config"));
        }
        let path = self.objects.path(self.key(claim.name).as_str())?;
        let payload = PutPayload::from_bytes(Bytes::copy_from_slice(claim.content));
        let put = self.objects.store.put_opts(&path, payload, PutOptions::default()).await;
        put.map(|_| known).map_err(|error| self.objects.failed(error))
    }

    async fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let path = self.objects.path(&self.key(name))?;
        let failed = |error| self.objects.failed(error);
        let get = async { self.objects.store.get(&path).await.map_err(failed) };
        let mut body = answered(self.uri.as_str(), get).await?.into_stream();
        let mut content = Vec::new();
        while let Some(chunk) = body.next().await {
            content.extend_from_slice(&chunk.map_err(failed)?);
            content.truncate(MAX_STAMP_BYTES);
        }
        Ok(content)
    }

    /// Sends a file, unless the store has it with the same size and digest.
    ///
    /// # Errors
    /// If the file cannot be read, the store cannot be reached or refuses it, or the store then has another size
    /// or digest.
    pub fn send(&self, file: &Path, name: &str, is_stopped: &dyn Fn() -> bool) -> Result<Sent, StoreError> {
        let num_bytes = std::fs::metadata(file).map_err(StoreError::io(file))?.len();
        let digest = digest_file(file).map_err(StoreError::io(file))?;
        let work = async {
            if self.known.get(name) == Some(&num_bytes) && self.has(name, num_bytes, &digest).await? {
                return Ok(Sent::Before);
            }
            let mut attributes = Attributes::new();
            attributes.insert(Attribute::Metadata(DIGEST_KEY.into()), AttributeValue::from(digest.clone()));
            if num_bytes <= PART_BYTES {
                self.put(file, name, attributes).await?;
            } else {
                self.put_parts(file, name, num_bytes, attributes).await?;
            }
            if self.has(name, num_bytes, &digest).await? {
                return Ok(Sent::Now);
            }
            let problem = "it arrived with another size or digest".to_owned();
            Err(StoreError::Changed { uri: self.uri.join(name).to_string(), problem })
        };
        self.store.run(is_stopped, work)
    }

    fn key(&self, name: &str) -> String {
        self.uri.join(name).key().to_owned()
    }

    /// Whether the store has the object, with this size and, if it tells, this digest.
    async fn has(&self, name: &str, num_bytes: u64, digest: &str) -> Result<bool, StoreError> {
        let path = self.objects.path(&self.key(name))?;
        let options = GetOptions { head: true, ..GetOptions::default() };
        let head = async {
            self.objects.store.get_opts(&path, options).await.map_err(|error| self.objects.failed(error))
        };
        let found = answered(self.uri.as_str(), head).await?;
        let there = found.attributes.get(&Attribute::Metadata(DIGEST_KEY.into()));
        Ok(found.meta.size == num_bytes && there.is_none_or(|there| there.as_ref() == digest))
    }

    async fn put(&self, file: &Path, name: &str, attributes: Attributes) -> Result<(), StoreError> {
        let path = self.objects.path(&self.key(name))?;
        let content = std::fs::read(file).map_err(StoreError::io(file))?;
        let options = PutOptions { attributes, ..PutOptions::default() };
        let put = self.objects.store.put_opts(&path, PutPayload::from(content), options).await;
        put.map(|_| ()).map_err(|error| self.objects.failed(error))
    }

    async fn put_parts(
        &self,
        file: &Path,
        name: &str,
        num_bytes: u64,
        attributes: Attributes,
    ) -> Result<(), StoreError> {
        let path = self.objects.path(&self.key(name))?;
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let failed = |error| self.objects.failed(error);
        let mut upload = self.objects.store.put_multipart_opts(&path, options).await.map_err(failed)?;
        match self.send_parts(file, num_bytes, upload.as_mut()).await {
            Ok(()) => upload.complete().await.map(|_| ()).map_err(failed),
            Err(error) => {
                // Parts of an upload that never ends are stored, and paid for, for ever.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }

    async fn send_parts(
        &self,
        file: &Path,
        num_bytes: u64,
        upload: &mut dyn MultipartUpload,
    ) -> Result<(), StoreError> {
        let part_bytes = PART_BYTES.max(num_bytes.div_ceil(MAX_PARTS));
        let mut input = File::open(file).map_err(StoreError::io(file))?;
        let mut under_way = futures_util::stream::FuturesUnordered::new();
        let mut left = num_bytes;
        while left > 0 {
            if under_way.len() == PARALLEL_PARTS
                && let Some(Err(error)) = under_way.next().await
            {
                return Err(self.objects.failed(error));
            }
            let mut part = vec![0; usize::try_from(left.min(part_bytes)).expect("a part fits in memory")];
            input.read_exact(&mut part).map_err(StoreError::io(file))?;
            left -= part.len() as u64;
            under_way.push(upload.put_part(PutPayload::from(part)));
        }
        while let Some(part) = under_way.next().await {
            part.map_err(|error| self.objects.failed(error))?;
        }
        Ok(())
    }
}
