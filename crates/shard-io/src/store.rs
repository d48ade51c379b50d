//! Files in object stores and behind HTTP: listing them, mirroring them into a local directory, and sending
//! finished files up.
//!
//! Stages read and write local files only. What lies elsewhere is brought here once, by [`Store::mirror`], and
//! what is finished here is copied there, by [`Destination`]. Both are resumable: a second run transfers only
//! what the first one did not.
//!
//! | address | what it names |
//! |---|---|
//! | `s3://bucket/key`, `gs://bucket/key` | an object, or everything below `key/`; `*`, `?`, `[..]`, `**` are wildcards |
//! | `http://…`, `https://…` | one file, query string and all; `{00000..00031}` and `{tar,parquet}` name several |
//! | `hf://datasets/owner/name[@revision]/path` | a file or folder of a Hugging Face data set; wildcards as above |
//! | `hf://owner/name[@revision][/path]` | what a checkpoint needs of a Hugging Face model; wildcards as above |
//!
//! Copies go below a directory of the caller's, but models into the cache of the hub's own tools, which use them too.
//!
//! Libraries do not read the environment: everything a store depends on is in [`StoreSettings`].

mod checkpoint_files;
mod content_id;
mod destination;
mod error;
mod hub;
mod hub_cache;
mod mirror;
mod objects;
mod settings;
mod transfer;
mod uri;
mod web;

pub use checkpoint_files::{WEIGHT_FILES, weight_file_names};

pub use destination::{Claim, Destination, Sent};
pub use error::StoreError;
pub use mirror::{Mirror, MirrorOptions, MirroredFile};
pub use settings::{HubSettings, StoreSettings};
pub use uri::StoreUri;

use bytes::Bytes;
use content_id::ContentId;
use futures_util::stream::BoxStream;
use hub::Hub;
use objects::Objects;
use std::time::Duration;
use tokio::runtime::Runtime;
use uri::Place;
use web::HttpFiles;

/// Longest wait for the answer to a request that carries no body of any size.
const ANSWER_SECONDS: u64 = 120;
/// How often a transfer looks whether it is to stop.
const INTERRUPT_TICK: Duration = Duration::from_millis(100);

/// The bytes of a file, as they come.
type Body = BoxStream<'static, Result<Bytes, StoreError>>;

/// One file of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RemoteFile {
    /// Path below the directory that is listed, with `/` between names.
    name: String,
    /// What the store calls it: a key, a path in a repository, a URL.
    key: String,
    /// Size in bytes, where it is known before the download.
    num_bytes: Option<u64>,
    /// What changes when the content does: an entity tag, a digest, a time.
    tag: Option<String>,
    /// A digest of the content, where the store tells.
    content: Option<ContentId>,
}

/// A listing.
#[derive(Debug)]
struct Listing {
    /// Sorted by name.
    files: Vec<RemoteFile>,
    /// What the address turned out to be.
    shape: Shape,
}

/// What an address names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// One file.
    File,
    /// Everything below a directory.
    Directory,
    /// What matches this pattern below a directory.
    Pattern(String),
}

/// The client of one kind of store.
#[derive(Debug)]
enum Backend {
    Objects(Objects),
    Http(HttpFiles),
    Hub(Box<Hub>),
}

impl Backend {
    fn new(uri: &StoreUri, settings: &StoreSettings) -> Result<Backend, StoreError> {
        Ok(match uri.place() {
            Place::S3 { .. } | Place::Gs { .. } => Backend::Objects(Objects::new(uri, settings)?),
            Place::Http => Backend::Http(HttpFiles::new(uri, settings)?),
            Place::Hub { .. } => Backend::Hub(Box::new(Hub::new(uri, settings)?)),
        })
    }

    async fn list(&self, uri: &StoreUri) -> Result<Listing, StoreError> {
        let mut listing = match self {
            Backend::Objects(objects) => objects.list(uri).await?,
            Backend::Http(files) => files.list(uri).await?,
            Backend::Hub(hub) => hub.list(uri).await?,
        };
        listing.files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    /// The bytes of a file from `offset` on; an error if it is not what was listed any more.
    async fn read(&self, file: &RemoteFile, offset: u64) -> Result<Body, StoreError> {
        match self {
            Backend::Objects(objects) => objects.read(file, offset).await,
            Backend::Http(files) => files.read(file, offset).await,
            Backend::Hub(hub) => hub.read(file, offset).await,
        }
    }
}

/// Access to stores, with one set of settings. Blocks: asynchronous callers want a thread for it.
#[derive(Debug)]
pub struct Store {
    settings: StoreSettings,
    runtime: Runtime,
}

impl Store {
    /// Prepares access; nothing is connected yet.
    ///
    /// # Errors
    /// If the event loop cannot be started.
    pub fn new(settings: StoreSettings) -> Result<Store, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Store { settings, runtime: runtime.map_err(|source| StoreError::Runtime { source })? })
    }

    /// Runs the work until it ends or `is_stopped` says so.
    fn run<T>(
        &self,
        is_stopped: &dyn Fn() -> bool,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let stopped = async {
            while !is_stopped() {
                tokio::time::sleep(INTERRUPT_TICK).await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                result = work => result,
                () = stopped => Err(StoreError::Interrupted),
            }
        })
    }
}

/// The work's result, or an error if it takes longer than an answer may.
async fn answered<T>(uri: &str, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let limit = Duration::from_secs(ANSWER_SECONDS);
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        Err(StoreError::Unreachable {
            uri: uri.to_owned(),
            problem: format!("no answer within {ANSWER_SECONDS} s"),
        })
    })
}
