//! Every row keeps its bound, and none is missing.

#[test]
fn every_comparison_keeps_its_bound() {
    let rows = oqvl_parity::measure(|why| eprintln!("skipped: {why}")).unwrap();
    let failed: Vec<_> = rows.iter().filter(|row| !row.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    // Folders: 2 SigLIP towers, 2 pairs, 4 CLIPs, 4 Qwen2s, 4 VLMs; 3 pictures.
    let fixtures: std::collections::BTreeSet<_> =
        rows.iter().filter(|row| row.architecture.ends_with(')')).map(|row| &row.fixture).collect();
    assert_eq!(fixtures.len(), 16, "{fixtures:?}");
    let num_steps = |row: &&oqvl_parity::Row| row.what.starts_with("64 greedy tokens");
    assert_eq!(rows.iter().filter(num_steps).count(), 8 * 3);
}
