//! What the tests of several crates share; a dev-dependency only.
//!
//! Four nouns: a [`Tolerance`] says how close two results must be ([`assert_close`]), a *tiny shard* is a real
//! WebDataset tar of a few small images ([`tiny_shard`]), the *shared data* are real photographs and
//! tokenizers that may or may not lie beside the checkout ([`shared_data`]), and a [`PythonVenv`] is a virtual
//! environment with packages from PyPI ([`python_venv`]) for the tests that run other people's tools, the
//! [`S3Server`] among them. A [`HubServer`] plays the Hugging Face hub, with all that can go wrong there; other servers of tests read an
//! [`HttpRequest`] and begin their answer with [`http_head`].
//!
//! What a test needs and does not find, it says in a line that begins with `skipped: `; `cargo xtask test` lists
//! those lines at its end, so that a skipped test is never taken for a passed one.
//!
//! ```
//! use oqvl_shard_io::ShardReader;
//! use oqvl_testkit::{Tolerance, assert_close, tiny_shard};
//!
//! let dir = tempfile::tempdir().unwrap();
//! let path = tiny_shard(dir.path(), "00000", &[("000000000", "a red square"), ("000000001", "a blue one")]);
//! let captions: Vec<String> = ShardReader::open(&path)
//!     .unwrap()
//!     .map(|sample| sample.unwrap().caption().unwrap().unwrap().to_owned())
//!     .collect();
//! assert_eq!(captions, ["a red square", "a blue one"]);
//!
//! assert_close(&[0.1 + 0.2], &[0.3], Tolerance::F32);
//! ```
//!
//! Panics are its way to report: every function is for use inside a test.

mod http;
mod hub_server;
mod picture;
mod python;
mod s3_server;
mod shared_data;
mod tiny_shard;
mod tolerance;

pub use http::{HttpRequest, http_head};
pub use hub_server::{HubFile, HubRequest, HubServer, git_blob_id, sha256_hex};
pub use picture::picture;
pub use python::{PythonVenv, python_venv};
pub use s3_server::{Bucket, S3Server};
pub use shared_data::shared_data;
pub use tiny_shard::{tiny_shard, tiny_uid};
pub use tolerance::{Tolerance, assert_close};
