//! Records the commit the binary is built from, for manifests.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rustc-env=OQVL_COMMIT={}", commit().unwrap_or_else(|| "unknown".to_owned()));
    println!("cargo:rerun-if-changed=build.rs");
    // A commit moves the branch that HEAD names; a checkout changes HEAD. Paths that are not there would make cargo
    // build anew every time.
    let git = Path::new("../../.git");
    let head = std::fs::read_to_string(git.join("HEAD")).unwrap_or_default();
    let branch = head.trim().strip_prefix("ref: ").unwrap_or("HEAD");
    for file in ["HEAD", branch, "packed-refs", "logs/HEAD"].map(|name| git.join(name)) {
        if file.is_file() {
            println!("cargo:rerun-if-changed={}", file.display());
        }
    }
}

/// Short name of the commit that is checked out; outside a checkout (a published crate) there is none.
fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let name = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(name.trim().to_owned())
}
