//! What access to stores depends on.

use std::path::PathBuf;
use std::time::Duration;

/// Seconds a request is tried again while nothing comes.
const DEFAULT_RETRY_SECONDS: f64 = 60.0;

/// Everything that access to stores depends on; nothing is read from the environment.
#[derive(Clone)]
pub struct StoreSettings {
    /// Settings of S3 by their `AWS_…` names, as the command-line tools know them: `AWS_ACCESS_KEY_ID`,
    /// `AWS_ENDPOINT_URL`, `AWS_REGION`, ….
    pub aws: Vec<(String, String)>,
    /// Settings of Google Cloud Storage by their `GOOGLE_…` names: `GOOGLE_APPLICATION_CREDENTIALS`, ….
    pub google: Vec<(String, String)>,
    /// Address of Google Cloud Storage, if it is another than the public one.
    pub gs_endpoint: Option<String>,
    /// Read buckets of S3 without signing: public ones.
    pub s3_anonymous: bool,
    /// The same for Google Cloud Storage.
    pub gs_anonymous: bool,
    /// Without credentials, ask the machine's metadata service for some.
    pub instance_credentials: bool,
    /// The Hugging Face hub.
    pub hub: HubSettings,
    /// Use no network; copies that are complete are used as they are.
    pub offline: bool,
    /// How long a request is tried again while nothing comes.
    pub retry: Duration,
}

/// The Hugging Face hub, as its own tools are set up.
#[derive(Clone)]
pub struct HubSettings {
    /// `HF_ENDPOINT`.
    pub endpoint: String,
    /// `HF_TOKEN`, or the content of the token file.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`: `$HF_HOME/hub`. Files that are there are not downloaded again.
    pub cache_dir: Option<PathBuf>,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            aws: Vec::new(),
            google: Vec::new(),
            gs_endpoint: None,
            s3_anonymous: false,
            gs_anonymous: false,
            instance_credentials: false,
            hub: HubSettings::default(),
            offline: false,
            retry: Duration::from_secs_f64(DEFAULT_RETRY_SECONDS),
        }
    }
}

impl Default for HubSettings {
    fn default() -> Self {
        Self { endpoint: "https://huggingface.co".to_owned(), token: None, cache_dir: None }
    }
}

// Secrets do not belong in logs.
impl std::fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = |pairs: &[(String, String)]| -> Vec<String> {
            pairs.iter().map(|(name, _)| name.clone()).collect()
        };
        f.debug_struct("StoreSettings")
            .field("aws", &names(&self.aws))
            .field("google", &names(&self.google))
            .field("hub", &self.hub.endpoint)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
