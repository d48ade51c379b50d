//! The stage against a web server with every kind of fault, on the loopback address.

mod binary;
mod connections;
mod faults;
mod img2dataset;
mod layout;
mod politeness;
mod resume;
mod retry;
mod server;
mod world;
