//! The `[stores]` table, and what the environment says of object stores.
//!
//! The table belongs to the run, not to a stage, and no output depends on it: the same files from elsewhere are
//! the same input.

use crate::config_error::ConfigError;
use oqvl_shard_io::{HubSettings, StoreSettings, StoreUri};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most bytes that one address of an input may take in the work directory. A whole bucket, named by mistake, is
/// noticed before it is copied.
const DEFAULT_MAX_MIRROR_BYTES: u64 = 100 << 30;
/// Where the copies of remote inputs lie, below the work directory.
pub(crate) const MIRROR_DIR: &str = ".mirror";

/// The `[stores]` table. Where a key and a variable of the environment say different things, the key counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StoresConfig {
    /// Address of an S3 server other than Amazon's (`AWS_ENDPOINT_URL`).
    s3_endpoint: Option<String>,
    /// Region of the buckets (`AWS_REGION`).
    s3_region: Option<String>,
    /// Read public buckets of S3 without credentials.
    s3_anonymous: bool,
    /// Address of a Google Cloud Storage server other than Google's.
    gs_endpoint: Option<String>,
    /// Read public buckets of Google Cloud Storage without credentials.
    gs_anonymous: bool,
    /// Without credentials in the environment, ask the machine's metadata service for those of its role.
    instance_credentials: bool,
    /// Address of the Hugging Face hub (`HF_ENDPOINT`).
    hf_endpoint: Option<String>,
    /// Use no network: copies that are complete are taken as they are (`HF_HUB_OFFLINE`).
    offline: bool,
    /// Seconds a request is tried again while nothing comes.
    retry_seconds: f64,
    /// Most bytes that one address of an input may take in the work directory.
    max_mirror_bytes: u64,
    /// `s3://bucket/prefix` or `gs://bucket/prefix`: finished output is copied to `{upload_to}/{stage}/`.
    upload_to: Option<String>,
}

impl Default for StoresConfig {
    fn default() -> Self {
        Self {
            s3_endpoint: None,
            s3_region: None,
            s3_anonymous: false,
            gs_endpoint: None,
            gs_anonymous: false,
            instance_credentials: false,
            hf_endpoint: None,
            offline: false,
            retry_seconds: StoreSettings::default().retry.as_secs_f64(),
            max_mirror_bytes: DEFAULT_MAX_MIRROR_BYTES,
            upload_to: None,
        }
    }
}

impl StoresConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        for (key, address) in [
            ("s3_endpoint", &self.s3_endpoint),
            ("gs_endpoint", &self.gs_endpoint),
            ("hf_endpoint", &self.hf_endpoint),
        ] {
            if let Some(address) = address
                && !(address.starts_with("http://") || address.starts_with("https://"))
            {
                return Err(ConfigError::new(
                    key,
                    format!("expected http://… or https://…, got `{address}`"),
                ));
            }
        }
        if !(0.0..=3600.0).contains(&self.retry_seconds) {
            let message = format!("must be from 0 to 3600, got {}", self.retry_seconds);
            return Err(ConfigError::new("retry_seconds", message));
        }
        if let Some(text) = &self.upload_to {
            let wrong = |message: String| ConfigError::new("upload_to", message);
            StoreUri::parse(text).map_err(|error| wrong(error.to_string()))?;
            if !["s3://", "s3a://", "gs://", "gcs://"].iter().any(|scheme| text.starts_with(scheme)) {
                return Err(wrong(format!(
                    "expected s3://bucket/prefix or gs://bucket/prefix, got `{text}`"
                )));
            }
        }
        Ok(())
    }

    /// Where the output of a stage is copied to.
    pub(crate) fn destination(&self, stage: &str) -> Option<StoreUri> {
        let uri = StoreUri::parse(self.upload_to.as_ref()?).expect("validated before the run");
        Some(uri.join(stage))
    }

    /// Most bytes of one remote input.
    pub(crate) fn max_mirror_bytes(&self) -> u64 {
        self.max_mirror_bytes
    }

    /// The table and the environment together.
    pub(crate) fn settings(&self, environment: &Environment) -> StoreSettings {
        let mut aws = environment.aws();
        let mut set = |name: &str, value: &Option<String>| {
            if let Some(value) = value {
                aws.retain(|(known, _)| known != name);
                aws.push((name.to_owned(), value.clone()));
            }
        };
        set("AWS_ENDPOINT_URL_S3", &self.s3_endpoint);
        set("AWS_REGION", &self.s3_region);
        let mut hub = environment.hub();
        if let Some(endpoint) = &self.hf_endpoint {
            hub.endpoint.clone_from(endpoint);
        }
        StoreSettings {
            aws,
            google: environment.google(),
            gs_endpoint: self.gs_endpoint.clone(),
            s3_anonymous: self.s3_anonymous,
            gs_anonymous: self.gs_anonymous,
            instance_credentials: self.instance_credentials,
            hub,
            offline: self.offline || environment.is_on("HF_HUB_OFFLINE"),
            retry: Duration::from_secs_f64(self.retry_seconds),
        }
    }
}

/// The variables that tools for object stores share, as they were when the process started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    variables: Vec<(String, String)>,
}

impl Environment {
    /// Takes the variables; those without a value count as absent.
    pub(crate) fn new(variables: impl Iterator<Item = (String, String)>) -> Self {
        let has_prefix = |name: &str| {
            ["AWS_", "GOOGLE_", "HF_"].iter().any(|prefix| name.starts_with(prefix))
                || ["HOME", "XDG_CACHE_HOME"].contains(&name)
        };
        Self { variables: variables.filter(|(name, value)| has_prefix(name) && !value.is_empty()).collect() }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on, as the hub's own tools read it.
    fn is_on(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
    }

    fn below_home(&self, path: &str) -> Option<PathBuf> {
        self.get("HOME").map(|home| Path::new(home).join(path))
    }

    /// `AWS_…`; without a key there, that of the profile in `~/.aws`.
    fn aws(&self) -> Vec<(String, String)> {
        let mut pairs: Vec<_> =
            self.variables.iter().filter(|(name, _)| name.starts_with("AWS_")).cloned().collect();
        let profile = self.get("AWS_PROFILE").unwrap_or("default");
        let file = |variable: &str, path: &str| {
            self.get(variable).map(PathBuf::from).or_else(|| self.below_home(path))
        };
        if self.get("AWS_ACCESS_KEY_ID").is_none() {
            let path = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
            let text = path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
            pairs.extend(profile_values(
                &text,
                profile,
                &["aws_access_key_id", "aws_secret_access_key", "aws_session_token"],
            ));
        }
        if self.get("AWS_REGION").is_none() {
            let region =
                self.get("AWS_DEFAULT_REGION").map(|region| ("AWS_REGION".to_owned(), region.to_owned()));
            let path = file("AWS_CONFIG_FILE", ".aws/config");
            let text = path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
            let section =
                if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
            let from_file = profile_values(&text, &section, &["region"]).into_iter();
            pairs.extend(
                region.or_else(|| from_file.map(|(_, region)| ("AWS_REGION".to_owned(), region)).next()),
            );
        }
        pairs
    }

    /// `GOOGLE_…`; without credentials there, those that `gcloud auth application-default login` left.
    fn google(&self) -> Vec<(String, String)> {
        let mut pairs: Vec<_> =
            self.variables.iter().filter(|(name, _)| name.starts_with("GOOGLE_")).cloned().collect();
        let login = self.below_home(".config/gcloud/application_default_credentials.json");
        if pairs.is_empty()
            && let Some(path) = login.filter(|path| path.is_file())
        {
            pairs.push(("GOOGLE_APPLICATION_CREDENTIALS".to_owned(), path.display().to_string()));
        }
        pairs
    }

    /// The hub's variables, with the defaults of its own tools.
    fn hub(&self) -> HubSettings {
        let cache = self.get("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| self.below_home(".cache"));
        let home = self.get("HF_HOME").map(PathBuf::from).or_else(|| Some(cache?.join("huggingface")));
        let below_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let token_file = self.get("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| below_home("token"));
        let token = self.get("HF_TOKEN").map(str::to_owned).or_else(|| {
            let is_implicit = !self.is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN");
            token_file.filter(|_| is_implicit).and_then(|path| std::fs::read_to_string(path).ok())
        });
        let default = HubSettings::default();
        HubSettings {
            endpoint: self.get("HF_ENDPOINT").map_or(default.endpoint, str::to_owned),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            cache_dir: self.get("HF_HUB_CACHE").map(PathBuf::from).or_else(|| below_home("hub")),
        }
    }
}

/// Values of a section of an INI file, under the names that the environment has for them.
fn profile_values(text: &str, section: &str, names: &[&str]) -> Vec<(String, String)> {
    let mut is_inside = false;
    let mut values = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_inside = header.trim() == section;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| is_inside)
            && names.contains(&name.trim())
        {
            values.push((name.trim().to_uppercase(), value.trim().to_owned()));
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_shard_io::write_atomic;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn value<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
        pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn the_table_beats_the_environment() {
        let environment = environment(&[
            ("AWS_ENDPOINT_URL", "http://a"),
            ("AWS_REGION", "eu-west-1"),
            ("HF_ENDPOINT", "http://hub"),
            ("HF_TOKEN", " t \n"),
            ("HF_HUB_OFFLINE", "1"),
            ("PATH", "/bin"),
        ]);
        let mut config = StoresConfig::default();
        let settings = config.settings(&environment);
        assert_eq!(value(&settings.aws, "AWS_REGION"), Some("eu-west-1"));
        assert_eq!(
            (settings.hub.endpoint.as_str(), settings.hub.token.as_deref()),
            ("http://hub", Some("t"))
        );
        assert!(settings.offline && value(&settings.aws, "PATH").is_none());
        config.s3_region = Some("us-west-2".to_owned());
        config.s3_endpoint = Some("http://b".to_owned());
        config.hf_endpoint = Some("http://other".to_owned());
        let settings = config.settings(&environment);
        assert_eq!(value(&settings.aws, "AWS_REGION"), Some("us-west-2"));
        assert_eq!(value(&settings.aws, "AWS_ENDPOINT_URL_S3"), Some("http://b"));
        assert_eq!(settings.hub.endpoint, "http://other");
    }

    #[test]
    fn files_below_home_stand_in_for_variables() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            write_atomic(&path, text.as_bytes()).unwrap();
        };
        write(
            ".aws/credentials",
            "[other]\naws_access_key_id = no\n[default]\naws_access_key_id=id\naws_secret_access_key = se=cret\n",
        );
        write(".aws/config", "[profile other]\nregion = eu-central-1\n[default]\nregion = us-west-1\n");
        write(".cache/huggingface/token", "hf_x\n");
        let dir = home.path().to_str().unwrap();
        let settings = |extra: &[(&str, &str)]| {
            StoresConfig::default().settings(&environment(&[&[("HOME", dir)], extra].concat()))
        };
        let found = settings(&[]);
        assert_eq!(value(&found.aws, "AWS_ACCESS_KEY_ID"), Some("id"));
        assert_eq!(value(&found.aws, "AWS_SECRET_ACCESS_KEY"), Some("se=cret"));
        assert_eq!(value(&found.aws, "AWS_REGION"), Some("us-west-1"));
        assert_eq!(found.hub.token.as_deref(), Some("hf_x"));
        assert_eq!(found.hub.cache_dir, Some(home.path().join(".cache/huggingface/hub")));
        let other = settings(&[
            ("AWS_PROFILE", "other"),
            ("AWS_DEFAULT_REGION", "ap-east-1"),
            ("HF_HOME", "/hf"),
            ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
        ]);
        assert_eq!(value(&other.aws, "AWS_ACCESS_KEY_ID"), Some("no"));
        assert_eq!(value(&other.aws, "AWS_REGION"), Some("ap-east-1"));
        assert_eq!((other.hub.token, other.hub.cache_dir), (None, Some("/hf/hub".into())));
        let explicit = settings(&[("AWS_ACCESS_KEY_ID", "mine")]);
        assert_eq!(value(&explicit.aws, "AWS_ACCESS_KEY_ID"), Some("mine"));
        assert_eq!(value(&explicit.aws, "AWS_SECRET_ACCESS_KEY"), None);
    }

    #[test]
    fn wrong_keys_are_named() {
        let with = |change: &dyn Fn(&mut StoresConfig)| {
            let mut config = StoresConfig::default();
            change(&mut config);
            config.validate().unwrap_err().key().to_owned()
        };
        assert_eq!(with(&|config| config.s3_endpoint = Some("minio:9000".to_owned())), "s3_endpoint");
        assert_eq!(with(&|config| config.retry_seconds = f64::NAN), "retry_seconds");
        for wrong in ["bucket/prefix", "http://h/x", "s3:///x", "hf://datasets/a/b"] {
            assert_eq!(with(&|config| config.upload_to = Some(wrong.to_owned())), "upload_to");
        }
        let config = StoresConfig { upload_to: Some("s3://b/run1/".to_owned()), ..Default::default() };
        config.validate().unwrap();
        assert_eq!(config.destination("mixer").unwrap().as_str(), "s3://b/run1/mixer");
    }
}
