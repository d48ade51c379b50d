//! Records the commit the binary is built from, for manifests.

use std::path::Path;
use std::process::Command;

fn main() {
    // Outside a checkout (a published crate) there is no commit to record.
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned());
    println!("cargo:rustc-env=OQVL_COMMIT={commit}");
    println!("cargo:rerun-if-changed=build.rs");
    let head = Path::new("../../.git/logs/HEAD");
    if head.exists() {
        println!("cargo:rerun-if-changed={}", head.display());
    }
}
