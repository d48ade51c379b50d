//! The targets: what is read, and what must hold whatever the bytes.

mod config;
mod image;
mod npy;
mod parquet;
mod tar;
mod text;
mod url_list;
mod weights;

use std::fmt;

/// A reader under test.
#[derive(Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Reads the input, checks what must hold (by panicking), says in words which way the input took.
    pub run: fn(&[u8]) -> String,
    /// Valid and half-valid files to start from, small.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What the format's files are made of.
    pub words: &'static [&'static [u8]],
    /// Mends checksums and lengths after a mutation.
    pub fixup: Fixup,
    /// Most bytes of memory that an input of so many bytes may take.
    pub memory_bound: fn(usize) -> usize,
}

/// A function that mends an input in place.
pub struct Fixup(pub fn(&mut [u8]));

impl fmt::Debug for Fixup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fixup")
    }
}

/// All targets.
pub static TARGETS: [Target; 12] = [
    tar::TARGET,
    npy::TARGET,
    parquet::SCORES,
    parquet::PLAN,
    url_list::TARGET,
    image::TARGET,
    weights::TORCH,
    weights::PICKLES,
    weights::SAFETENSORS,
    text::CAPTIONS,
    text::TOKENIZERS,
    config::TARGET,
];

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Files of `seeds/{directory}`, compiled in so that a campaign needs no files.
macro_rules! seed_files {
    ($($name:literal),* $(,)?) => { [$(include_bytes!(concat!("../../seeds/", $name)).to_vec()),*] };
}
use seed_files;

/// A directory that goes with the value.
fn scratch() -> tempfile::TempDir {
    // On a memory file system where there is one: files are written and synced thousands of times a second.
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary directory can be made")
}

/// Runs `read` on a file that holds `input`.
fn with_file<T>(input: &[u8], read: impl FnOnce(&std::path::Path) -> T) -> T {
    let dir = scratch();
    let path = dir.path().join("input");
    let mut file = std::fs::File::create(&path).expect("a temporary file can be made");
    std::io::Write::write_all(&mut file, input).expect("a temporary file can be written");
    read(&path)
}
