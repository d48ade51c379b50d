//! The plan of a run: how every stage stands before anything is done.

use crate::stages::{STAGES, StageName};
use anyhow::Context;
use serde::Deserialize;
use std::path::PathBuf;

/// How a stage's output stands to the request, in the words of its `--dry-run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// Finished, and neither its config nor its inputs have changed.
    UpToDate,
    /// To be run.
    Pending,
    /// To be run once the stages before it have made its inputs.
    Waiting,
}

/// One line of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedStage {
    pub(crate) stage: StageName,
    pub(crate) status: Status,
    pub(crate) out_dir: PathBuf,
    /// Why it has to run; empty when it is up to date.
    pub(crate) reason: String,
}

impl PlannedStage {
    /// Reads what `--dry-run --log-format json` printed.
    pub(crate) fn parse(stage: StageName, stdout: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct DryRun {
            status: Status,
            out_dir: PathBuf,
            #[serde(default)]
            reason: String,
        }
        let DryRun { status, out_dir, reason } = serde_json::from_slice(stdout)
            .with_context(|| format!("{} --dry-run printed something else than its plan", stage.package()))?;
        Ok(Self { stage, status, out_dir, reason })
    }

    pub(crate) fn is_up_to_date(&self) -> bool {
        self.status == Status::UpToDate
    }

    /// Plans the stage to run after the others, however it stands.
    pub(crate) fn run_last(&mut self) {
        self.status = Status::Waiting;
    }
}

/// The plan as a table. A stage that is up to date now may still run if one before it comes out differently.
pub(crate) fn table(plan: &[PlannedStage]) -> String {
    let mut lines = vec![line("stage", "status", "output")];
    let mut something_runs = false;
    for planned in plan {
        let status = match planned.status {
            Status::UpToDate if something_runs => "up to date so far".to_owned(),
            Status::UpToDate => "up to date".to_owned(),
            Status::Pending => format!("to run ({})", planned.reason),
            Status::Waiting => "to run (after the above)".to_owned(),
        };
        something_runs |= !planned.is_up_to_date();
        lines.push(line(planned.stage.as_str(), &status, &planned.out_dir.display().to_string()));
    }
    let absent: Vec<_> =
        STAGES.iter().filter(|stage| plan.iter().all(|planned| planned.stage != **stage)).collect();
    if !absent.is_empty() {
        let names: Vec<_> = absent.iter().map(|stage| stage.as_str()).collect();
        lines.push(format!("not in this run: {}", names.join(", ")));
    }
    lines.join("\n")
}

fn line(stage: &str, status: &str, output: &str) -> String {
    format!("{stage:<12} {status:<48} {output}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str, json: &str) -> PlannedStage {
        PlannedStage::parse(StageName::find(name).unwrap(), json.as_bytes()).unwrap()
    }

    #[test]
    fn the_table_says_what_will_run_and_what_is_absent() {
        let plan = [
            planned("mixer", r#"{"stage":"mixer","status":"up-to-date","out_dir":"w/mixer","reason":""}"#),
            planned(
                "packer",
                r#"{"stage":"packer","status":"pending","out_dir":"w/packer","reason":"never run"}"#,
            ),
            planned(
                "trainer",
                r#"{"stage":"trainer","status":"waiting","out_dir":"w/trainer","reason":"x"}"#,
            ),
            planned("report", r#"{"stage":"report","status":"up-to-date","out_dir":"w/report"}"#),
        ];
        let table = table(&plan);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].contains("up to date") && !lines[1].contains("so far"), "{table}");
        assert!(lines[2].contains("to run (never run)"), "{table}");
        assert!(lines[3].contains("to run (after the above)"), "{table}");
        assert!(lines[4].contains("up to date so far"), "{table}");
        assert_eq!(
            lines[5],
            "not in this run: micro-world, data-fetch, bootstrap, clip-filter, mlm-filter, sft, evaluator"
        );
    }

    #[test]
    fn something_else_than_a_plan_is_an_error() {
        let stage = StageName::find("mixer").unwrap();
        assert!(PlannedStage::parse(stage, b"hello").is_err());
        assert!(PlannedStage::parse(stage, br#"{"status":"fine","out_dir":"x"}"#).is_err());
    }
}
