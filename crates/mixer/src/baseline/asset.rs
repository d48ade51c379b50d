//! Models and lists that users supply.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use oqvl_stage::RunContext;
use sha2::{Digest, Sha256};

use crate::MixerError;
use crate::baseline_config::{BaselineAssets, LANGUAGE_MODEL_SHA256, WORDNET_IDS_SHA256};

/// Checks that every file is there and those with a published digest have it.
pub(super) fn check(assets: &BaselineAssets, run: &RunContext) -> Result<(), MixerError> {
    for path in assets.files() {
        let path = run.resolve(&path);
        if !path.exists() {
            return Err(problem(&path, "there is no such file"));
        }
    }
    let digests = [
        (&assets.language_model, &assets.language_model_sha256, LANGUAGE_MODEL_SHA256),
        (&assets.wordnet_ids, &assets.wordnet_ids_sha256, WORDNET_IDS_SHA256),
    ];
    for (path, given, published) in digests {
        let Some(path) = path else { continue };
        let path = run.resolve(path);
        let expected = given.as_deref().unwrap_or(published);
        let found = sha256_of(&path)?;
        if !found.eq_ignore_ascii_case(expected) {
            let problem_text = format!("its SHA-256 is {found}, and should be {expected}");
            return Err(problem(&path, &problem_text));
        }
    }
    Ok(())
}

fn sha256_of(path: &Path) -> Result<String, MixerError> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).map_err(|error| problem(path, &error.to_string()))?;
    let mut chunk = vec![0; 1 << 16];
    loop {
        match io::Read::read(&mut file, &mut chunk) {
            Ok(0) => break,
            Ok(len) => hasher.update(&chunk[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(problem(path, &error.to_string())),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Says what is wrong with the asset at `path`.
pub(super) fn problem(path: &Path, problem: &str) -> MixerError {
    MixerError::Asset { path: path.to_path_buf(), problem: problem.to_owned() }
}

/// The path of an asset the config was checked to have.
pub(super) fn required(path: Option<&PathBuf>, run: &RunContext) -> PathBuf {
    run.resolve(path.expect("the config was checked to have it"))
}

/// The text of an asset.
pub(super) fn read_text(path: &Path) -> Result<String, MixerError> {
    std::fs::read_to_string(path).map_err(|error| problem(path, &error.to_string()))
}
