//! Lists that lie in object stores and on the hub, and output that is sent to one.
//!
//! The stores are a real S3 server (moto's, from PyPI) and a small server that speaks the hub's interface; without
//! Python or PyPI the tests of the former are skipped and say so.

mod hub;
mod lists;
mod pictures;
mod program;
mod proxy;
mod upload;
