//! A work directory with a list, a hosts file and a server behind it.

use crate::server::{Reply, Request, Server};
use oqvl_data_fetch::{DataFetch, DataFetchConfig, DataFetchError, DataFetchReport, ShardNetwork};
use oqvl_image_prep::RgbImage;
use oqvl_shard_io::write_atomic;
use oqvl_stage::{RunContext, Stage as _};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tempfile::TempDir;

/// Hosts the server answers for, under names only the hosts file knows.
pub(crate) const HOSTS: [&str; 3] = ["a.test", "b.test", "c.test"];

pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) config: DataFetchConfig,
    pub(crate) server: Server,
}

impl World {
    /// A list of `urls` with the captions `caption 0`, `caption 1`, … and uids `uid-0`, ….
    pub(crate) fn new(urls: &[String], respond: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(respond);
        let mut lines = String::new();
        for (idx, url) in urls.iter().enumerate() {
            let row = json!({"url": url, "caption": format!("caption {idx}"), "uid": format!("uid-{idx}")});
            lines += &format!("{row}\n");
        }
        write_atomic(&dir.path().join("urls.jsonl"), lines.as_bytes()).unwrap();
        let mut hosts: BTreeMap<_, _> = HOSTS.map(|host| (host, server.address)).into();
        // A port where nobody listens: bound for a moment, then free.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        hosts.insert("closed.test", closed);
        write_atomic(&dir.path().join("hosts.local.json"), json!(hosts).to_string().as_bytes()).unwrap();
        let config = DataFetchConfig {
            url_list: "urls.jsonl".into(),
            hosts_file: Some("hosts.local.json".into()),
            number_sample_per_shard: 1000,
            image_size: 16,
            max_decoded_pixels: 1 << 20,
            deadline_seconds: 5.0,
            backoff_seconds: 0.01,
            max_body_bytes: 100_000,
            ..Default::default()
        };
        Self { dir, config, server }
    }

    pub(crate) fn context(&self) -> RunContext {
        RunContext::for_test::<DataFetch>(self.dir.path(), 7).unwrap()
    }

    pub(crate) fn try_run(&self) -> Result<DataFetchReport, DataFetchError> {
        DataFetch::run(&self.config, &self.context())
    }

    pub(crate) fn run(&self) -> DataFetchReport {
        self.try_run().unwrap()
    }

    pub(crate) fn out_dir(&self) -> PathBuf {
        self.dir.path().join("data-fetch")
    }

    /// Names of the files of the output, sorted; none before the first run.
    pub(crate) fn output_names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.out_dir()) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Requests that were sent again, as the shards tell.
    pub(crate) fn num_retries(&self) -> u64 {
        let names = self.output_names().into_iter().filter(|name| name.ends_with("_network.local.json"));
        let network =
            |name: String| oqvl_shard_io::read_json::<ShardNetwork>(&self.out_dir().join(name)).unwrap();
        names.map(|name| network(name).retries).sum()
    }

    /// All files of the output with their bytes, but for those that tell of one run only.
    pub(crate) fn outputs(&self) -> BTreeMap<String, Vec<u8>> {
        let bytes = |name: &String| std::fs::read(self.out_dir().join(name)).unwrap();
        self.output_names()
            .into_iter()
            .filter(|name| !name.contains(".local."))
            .map(|name| (name.clone(), bytes(&name)))
            .collect()
    }
}

/// A JPEG of one colour.
pub(crate) fn jpeg(width: u32, height: u32, shade: u8) -> Vec<u8> {
    oqvl_image_prep::encode_jpeg(&plain(width, height, shade), 90)
}

/// A PNG of one colour; it takes few bytes whatever its size.
pub(crate) fn png(width: u32, height: u32) -> Vec<u8> {
    oqvl_image_prep::encode_png(&plain(width, height, 200))
}

fn plain(width: u32, height: u32, shade: u8) -> RgbImage {
    RgbImage::new(width, height, vec![shade; (width * height * 3) as usize]).unwrap()
}

/// A JPEG that compresses badly.
pub(crate) fn noise(width: u32, height: u32, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let pixels = (0..width * height * 3).map(|_| next()).collect();
    oqvl_image_prep::encode_jpeg(&RgbImage::new(width, height, pixels).unwrap(), 90)
}
