//! S3 and Google Cloud Storage, through the `object_store` library.

use super::settings::StoreSettings;
use super::uri::Place;
use super::{Body, Listing, RemoteFile, Shape, StoreError, StoreUri, answered};
use crate::FilePattern;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path as ObjectPath;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    RetryConfig,
};
use std::sync::Arc;
use std::time::Duration;

/// Longest time for one request with its body. A body that is cut by it is read on from where it was cut.
const REQUEST_SECONDS: u64 = 600;

/// A bucket.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    pub(super) store: Arc<dyn ObjectStore>,
    uri: String,
    bucket: String,
}

impl Objects {
    pub(super) fn new(uri: &StoreUri, settings: &StoreSettings) -> Result<Objects, StoreError> {
        let (store, bucket): (Arc<dyn ObjectStore>, &String) = match uri.place() {
            Place::S3 { bucket } => (Arc::new(s3(uri, bucket, settings)?), bucket),
            Place::Gs { bucket } => (Arc::new(gs(uri, bucket, settings)?), bucket),
            Place::Http | Place::Hub { .. } => unreachable!("other places have clients of their own"),
        };
        Ok(Objects { store, uri: uri.as_str().to_owned(), bucket: bucket.clone() })
    }

    pub(super) async fn list(&self, uri: &StoreUri) -> Result<Listing, StoreError> {
        if let Some(pattern) = FilePattern::of_key(uri.key()) {
            let base = pattern.base().to_string_lossy().into_owned();
            let mut files = self.list_below(&base).await?;
            files.retain(|file| pattern.matches(&file.name));
            if files.is_empty() {
                return Err(StoreError::NoMatch { uri: self.uri.clone() });
            }
            return Ok(Listing { files, shape: Shape::Pattern(pattern.relative().to_owned()) });
        }
        let key = uri.key().trim_end_matches('/');
        if !key.is_empty() && key == uri.key() {
            match answered(&self.uri, self.head(key)).await {
                Ok(meta) => {
                    let name = key.rsplit('/').next().unwrap_or(key).to_owned();
                    return Ok(Listing { files: vec![remote_file(&meta, name)], shape: Shape::File });
                }
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let files = self.list_below(key).await?;
        if files.is_empty() {
            return Err(StoreError::NotFound { uri: self.uri.clone() });
        }
        Ok(Listing { files, shape: Shape::Directory })
    }

    /// Every object below `base/`, without the empty ones that stand for directories.
    pub(super) async fn list_below(&self, base: &str) -> Result<Vec<RemoteFile>, StoreError> {
        let prefix = if base.is_empty() { None } else { Some(self.path(base)?) };
        let mut objects = self.store.list(prefix.as_ref());
        let mut files = Vec::new();
        let skipped = if base.is_empty() { 0 } else { base.len() + 1 };
        loop {
            let next = async { objects.next().await.transpose().map_err(|error| self.failed(error)) };
            let Some(meta) = answered(&self.uri, next).await? else { return Ok(files) };
            let name = meta.location.as_ref().get(skipped..).unwrap_or_default().to_owned();
            if !(name.is_empty() || name.ends_with('/')) {
                files.push(remote_file(&meta, name));
            }
        }
    }

    pub(super) async fn read(&self, file: &RemoteFile, offset: u64) -> Result<Body, StoreError> {
        let path = self.path(&file.key)?;
        let options = GetOptions {
            if_match: file.tag.clone(),
            range: (offset > 0).then_some(GetRange::Offset(offset)),
            ..GetOptions::default()
        };
        let get = async { self.store.get_opts(&path, options).await.map_err(|error| self.failed(error)) };
        let result = answered(&self.uri, get).await?;
        let this = self.clone();
        Ok(result.into_stream().map_err(move |error| this.failed(error)).boxed())
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        self.store.head(&self.path(key)?).await.map_err(|error| self.failed(error))
    }

    pub(super) fn path(&self, key: &str) -> Result<ObjectPath, StoreError> {
        ObjectPath::parse(key)
            .map_err(|_| StoreError::BadName { uri: self.uri.clone(), name: crate::error::printable(key) })
    }

    /// Says of a failure what a person can act on.
    pub(super) fn failed(&self, error: object_store::Error) -> StoreError {
        let uri = self.uri.clone();
        let problem = innermost(&error);
        if problem.contains("NoSuchBucket") || problem.contains("The specified bucket does not exist") {
            return StoreError::NoSuchContainer { uri, what: "bucket", name: self.bucket.clone() };
        }
        match error {
            object_store::Error::NotFound { .. } => StoreError::NotFound { uri },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                StoreError::Denied { uri, problem }
            }
            object_store::Error::Precondition { .. } | object_store::Error::NotModified { .. } => {
                StoreError::Changed { uri, problem: "the object changed while it was read".to_owned() }
            }
            object_store::Error::AlreadyExists { .. } => {
                StoreError::ForeignDestination { uri, problem: "an object of this name is there".to_owned() }
            }
            // Everything else that gets this far was tried again until the time for it was up.
            _ => StoreError::Unreachable { uri, problem },
        }
    }
}

fn remote_file(meta: &ObjectMeta, name: String) -> RemoteFile {
    RemoteFile {
        name,
        key: meta.location.to_string(),
        num_bytes: Some(meta.size),
        tag: meta.e_tag.clone(),
        content: None,
    }
}

/// The last cause, which is the one that names a host or a code; XML answers are cut to their message.
fn innermost(error: &object_store::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        texts.push(source.to_string());
        cause = source;
    }
    let between = |text: &str, open: &str, close: &str| {
        let start = text.find(open)? + open.len();
        let end = text[start..].find(close)?;
        Some(text[start..start + end].to_owned())
    };
    let answer = texts.iter().find_map(|text| {
        let code = between(text, "<Code>", "</Code>")?;
        Some(format!("{code}, {}", between(text, "<Message>", "</Message>").unwrap_or_default()))
    });
    let last = || texts.last().cloned().unwrap_or_default();
    crate::error::printable(&answer.unwrap_or_else(last))
}

fn retry(settings: &StoreSettings) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            base: 2.0,
        },
        // Time is the limit, not the number.
        max_retries: 1000,
        retry_timeout: settings.retry,
    }
}

fn client_options(allow_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(Duration::from_secs(REQUEST_SECONDS))
        .with_connect_timeout(Duration::from_secs(10))
        .with_allow_http(allow_http)
}

fn s3(
    uri: &StoreUri,
    bucket: &str,
    settings: &StoreSettings,
) -> Result<object_store::aws::AmazonS3, StoreError> {
    let has = |name: &str| settings.aws.iter().any(|(known, value)| known == name && !value.is_empty());
    let signs = has("AWS_ACCESS_KEY_ID")
        || has("AWS_WEB_IDENTITY_TOKEN_FILE")
        || has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || has("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    if !(signs || settings.s3_anonymous || settings.instance_credentials) {
        return Err(StoreError::NoCredentials {
            uri: uri.to_string(),
            remedy: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `stores.s3_anonymous = true` for a public \
                     bucket, or `stores.instance_credentials = true` on a machine that has a role",
        });
    }
    let endpoint = settings.aws.iter().rev().find(|(name, _)| name.starts_with("AWS_ENDPOINT"));
    // Whoever names an endpoint without TLS means it.
    let allow_http = endpoint.is_some_and(|(_, address)| address.starts_with("http://"));
    let mut builder = AmazonS3Builder::new();
    for (name, value) in &settings.aws {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    builder
        .with_bucket_name(bucket)
        .with_skip_signature(settings.s3_anonymous && !signs)
        .with_checksum_algorithm(Checksum::SHA256)
        .with_retry(retry(settings))
        .with_client_options(client_options(allow_http))
        .build()
        .map_err(|error| StoreError::Setting { key: "AWS_*", problem: innermost(&error) })
}

fn gs(
    uri: &StoreUri,
    bucket: &str,
    settings: &StoreSettings,
) -> Result<object_store::gcp::GoogleCloudStorage, StoreError> {
    let signs = settings.google.iter().any(|(_, value)| !value.is_empty());
    if !(signs || settings.gs_anonymous || settings.instance_credentials) {
        return Err(StoreError::NoCredentials {
            uri: uri.to_string(),
            remedy: "set GOOGLE_APPLICATION_CREDENTIALS, or `stores.gs_anonymous = true` for a public bucket, or \
                     `stores.instance_credentials = true` on a machine that has a service account",
        });
    }
    let allow_http = settings.gs_endpoint.as_ref().is_some_and(|address| address.starts_with("http://"));
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in &settings.google {
        if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = &settings.gs_endpoint {
        builder = builder.with_base_url(endpoint);
    }
    builder
        .with_bucket_name(bucket)
        .with_skip_signature(settings.gs_anonymous && !signs)
        .with_retry(retry(settings))
        .with_client_options(client_options(allow_http))
        .build()
        .map_err(|error| StoreError::Setting { key: "GOOGLE_*", problem: innermost(&error) })
}
