//! The one line a stage gets when it is done: counts, rate, duration, memory.

use crate::run_record::{StageManifest, StageRecord};
use crate::units;
use serde_json::Value;

/// What is worth a place in a stage's line besides its counts: stage, words, where it stands in the report.
const NUMBERS: [(&str, &str, &str); 12] = [
    ("bootstrap", "vocabulary", "/vocab_size"),
    ("mixer", "shards", "/output_shards"),
    ("packer", "packs", "/num_packs"),
    ("packer", "efficiency", "/efficiency"),
    ("trainer", "steps", "/num_steps"),
    ("trainer", "last loss", "/last_loss"),
    ("trainer", "tokens/s", "/tokens_per_second"),
    ("sft", "steps", "/num_steps"),
    ("sft", "last loss", "/last_loss"),
    ("sft", "tokens/s", "/tokens_per_second"),
    ("evaluator", "multiple choice", "/results/multiple_choice/accuracy"),
    ("evaluator", "yes/no", "/results/yes_no/accuracy"),
];

/// The line of a stage that ran.
pub(crate) fn done(record: &StageRecord, manifest: &StageManifest) -> String {
    let memory = units::bytes(record.peak_rss_bytes);
    let seen = count_of(&manifest.report, "seen").unwrap_or(0);
    let rate = units::rate(seen, record.seconds).unwrap_or_default();
    let (mut what, time) = (what(&record.name, &manifest.report), units::seconds(record.seconds));
    if let Some(server) = record.server_peak_rss_bytes {
        what += &format!(" (memory: {} of it the world server)", units::bytes(server));
    }
    format!("{:<12} {rate:>9} {time:>12} {memory:>9}  {what}", record.name)
}

/// The line of a stage that was up to date.
pub(crate) fn skipped(name: &str) -> String {
    format!("{name:<12} skipped (up to date)")
}

fn count_of(report: &Value, key: &str) -> Option<u64> {
    report.get(key).and_then(Value::as_u64)
}

/// What a report says, in words.
fn what(stage: &str, report: &Value) -> String {
    let mut parts = Vec::new();
    if let (Some(seen), Some(kept)) = (count_of(report, "seen"), count_of(report, "kept")) {
        let rejected = units::count(seen.saturating_sub(kept));
        parts.push(format!("{} seen, {} kept, {rejected} rejected", units::count(seen), units::count(kept)));
    }
    let own = NUMBERS.iter().filter(|(name, ..)| *name == stage);
    parts.extend(
        own.filter_map(|(_, words, place)| Some(format!("{words} {}", number_text(report.pointer(place)?)?))),
    );
    parts.join(", ")
}

fn number_text(value: &Value) -> Option<String> {
    match (value.as_u64(), value.as_f64()) {
        (Some(whole), _) => Some(units::count(whole)),
        (None, Some(real)) if real >= 1000.0 => Some(units::count(real.round() as u64)),
        (None, Some(real)) => Some(format!("{real:.3}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_has_the_counts_and_what_matters_to_the_stage() {
        let packer =
            json!({"seen": 3000, "kept": 2500, "num_packs": 1200, "efficiency": 0.98765, "other": 1});
        let expected = "3 000 seen, 2 500 kept, 500 rejected, packs 1 200, efficiency 0.988";
        assert_eq!(what("packer", &packer), expected);
        assert_eq!(what("trainer", &json!({"num_steps": 7, "tokens_per_second": null})), "steps 7");
        assert_eq!(what("sft", &json!({"tokens_per_second": 6608.5})), "tokens/s 6 609");
        assert_eq!(what("report", &Value::Null), "");
    }
}
