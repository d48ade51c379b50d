//! Finds out whether libjpeg was built with SIMD, and says so if it was not: Cargo does not show the warnings of crates
//! that come from the registry.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(jpeg_simd)");
    // Set by `mozjpeg-sys` for those who depend on it: the folders of its headers, the generated one among them.
    let include = std::env::var_os("DEP_JPEG_INCLUDE").unwrap_or_default();
    let has_simd = std::env::split_paths(&include).any(|folder| defines_simd(&folder.join("jconfig.h")));
    if has_simd {
        println!("cargo::rustc-cfg=jpeg_simd");
    } else {
        println!(
            "cargo::warning=JPEG files will be read and written without SIMD: reading takes about 1.5 times as long, writing \
             4 times. On x86, install nasm, run `cargo clean -p mozjpeg-sys` (with --release for release builds) and build again."
        );
    }
}

fn defines_simd(config: &Path) -> bool {
    std::fs::read_to_string(config).is_ok_and(|text| text.contains("#define WITH_SIMD 1"))
}
