//! What an earlier, unfinished run left among the output shards.

use std::path::Path;

use oqvl_shard_io::{is_cut_short, read_json, remove_if_there};
use oqvl_stage::RunContext;

use crate::MixerError;

/// Takes the marker from an output shard of the run that an earlier one left, if its tar, its table or the marker is cut
/// short, or the marker speaks of another number of samples than `num_samples`: it is written again then. What is changed
/// in the middle of a file is not seen.
pub(crate) fn unmark_if_unsound(run: &RunContext, shard: usize, num_samples: u64) -> Result<(), MixerError> {
    let Some(problem) = problem_of(&run.out_dir, shard, num_samples) else { return Ok(()) };
    tracing::warn!("{problem}; the shard is written again");
    let stats = run.out_dir.join(format!("{shard:08}_stats.json"));
    remove_if_there(&stats).map_err(|source| MixerError::Scratch { path: stats, source })
}

/// What is wrong with an output shard that is marked as finished: the file and the problem.
fn problem_of(out_dir: &Path, shard: usize, num_samples: u64) -> Option<String> {
    let [tar, table, stats] =
        [".tar", ".parquet", "_stats.json"].map(|ending| out_dir.join(format!("{shard:08}{ending}")));
    if !(tar.exists() && table.exists() && stats.exists()) {
        return None;
    }
    let cut_short = |path: &Path| Some(format!("{}: an earlier run left it cut short", path.display()));
    for path in [&tar, &table] {
        if is_cut_short(path) {
            return cut_short(path);
        }
    }
    match read_json::<serde_json::Value>(&stats) {
        Err(_) => cut_short(&stats),
        Ok(counts) if counts["successes"] == num_samples => None,
        Ok(_) => {
            let stats = stats.display();
            Some(format!("{stats}: counts other samples than the {num_samples} it should have"))
        }
    }
}

#[cfg(test)]
mod tests {
    use oqvl_shard_io::write_atomic;

    use super::*;

    #[test]
    fn what_is_wrong_is_said_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| write_atomic(&dir.path().join(name), content).unwrap();
        let check = |expected: Option<&str>| {
            let expected = expected.map(|it| format!("{}/00000003{it}", dir.path().display()));
            assert_eq!(problem_of(dir.path(), 3, 7), expected);
        };
        check(None);
        write("00000003.tar", &[0; 2048]);
        write("00000003.parquet", b"PAR1 and PAR1");
        write("00000003_stats.json", br#"{"successes": 7}"#);
        check(None);
        write("00000003_stats.json", br#"{"successes": 6}"#);
        check(Some("_stats.json: counts other samples than the 7 it should have"));
        write("00000003_stats.json", br#"{"succ"#);
        check(Some("_stats.json: an earlier run left it cut short"));
        write("00000003.parquet", b"PAR1 and");
        check(Some(".parquet: an earlier run left it cut short"));
        write("00000003.tar", &[1; 2048]);
        check(Some(".tar: an earlier run left it cut short"));
    }
}
