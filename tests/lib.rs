//! Driving the project's programs from tests, as a person would: through flags, exit codes and files.
//!
//! [`stage_binary`] builds the stages once and says where they are; a [`Reproduce`] is one `cargo xtask reproduce`
//! with its config and work directory, which can be run to its end or killed on the way; [`outputs`] are the bytes
//! a run left, without what speaks of one run on one machine.
//!
//! ```no_run
//! use oqvl_tests::{Reproduce, scratch_dir};
//!
//! let run = Reproduce::micro(scratch_dir("doc")).set("packer.no_such_key=1").finish();
//! assert_eq!(run.code, Some(2));
//! assert!(run.stderr.contains("no_such_key"));
//! ```

mod binaries;
mod moments;
mod outputs;
mod reproduce;

pub use binaries::{STAGES, run_stage, stage_binary, terminate_stage};
pub use moments::Moments;
pub use outputs::{differences, losses, outputs};
pub use reproduce::{Finished, Reproduce};

use std::path::{Path, PathBuf};

/// Root of the workspace.
#[must_use]
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies below the root").to_path_buf()
}

/// An empty directory for one test, below the build directory, where it stays for inspection until the next run.
///
/// # Panics
/// If it cannot be emptied or created.
#[must_use]
pub fn scratch_dir(name: &str) -> PathBuf {
    let directory = binaries::target_dir().join("oqvl-tests").join(name);
    if directory.exists() {
        std::fs::remove_dir_all(&directory).expect("a scratch directory can be removed");
    }
    std::fs::create_dir_all(&directory).expect("a scratch directory can be created");
    directory
}
