//! Running sides in turn and taking medians.

use super::Context;
use super::record::{Ours, RaceRecord, Ratios, SideRecord, Target};
use crate::exit::Exit;
use crate::{interrupt, json_file};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A command whose cost is measured.
#[derive(Debug, Clone)]
pub(super) struct Side {
    pub(super) name: String,
    command: Vec<OsString>,
    environment: Vec<(String, String)>,
    /// Removed before every run, with all that is in them.
    outputs: Vec<PathBuf>,
    /// What the race asks of this side, if it is ours.
    target: Option<Ask>,
}

/// A bound on a ratio.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) metric: Metric,
    pub(super) at_least: f64,
}

/// What a ratio compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Metric {
    /// Processor time of the whole process tree.
    CpuSeconds,
    /// Wall time of the whole run.
    WallSeconds,
    /// Wall time of the measured loop, imports and preparation left out on both sides.
    LoopSeconds,
    /// Wall time: the loop of the peer against the whole run of ours.
    PeerLoopToOurWall,
}

impl Metric {
    /// As a table names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Metric::CpuSeconds => "CPU",
            Metric::WallSeconds => "wall",
            Metric::LoopSeconds => "loop",
            Metric::PeerLoopToOurWall => "peer's loop to our wall",
        }
    }
}

impl Side {
    pub(super) fn new(name: impl Into<String>, program: impl Into<OsString>) -> Side {
        Side {
            name: name.into(),
            command: vec![program.into()],
            environment: Vec::new(),
            outputs: Vec::new(),
            target: None,
        }
    }

    pub(super) fn arg(mut self, arg: impl AsRef<OsStr>) -> Side {
        self.command.push(arg.as_ref().to_owned());
        self
    }

    pub(super) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Side {
        self.command.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(super) fn env(mut self, name: &str, value: &str) -> Side {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A directory that this side writes.
    pub(super) fn output(mut self, dir: impl Into<PathBuf>) -> Side {
        self.outputs.push(dir.into());
        self
    }

    pub(super) fn asked(mut self, metric: Metric, at_least: f64) -> Side {
        self.target = Some(Ask { metric, at_least });
        self
    }

    /// Runs it once without measuring, for a check; returns its figures.
    pub(super) fn figures(&self, context: &Context) -> anyhow::Result<Value> {
        Ok(self.measure(context)?.figures.unwrap_or(Value::Null))
    }

    fn measure(&self, context: &Context) -> anyhow::Result<Measurement> {
        for output in &self.outputs {
            super::remove_all(output)?;
        }
        let report = context.scratch("measurement.json");
        let log_path = context.scratch("stderr.log");
        let log = fs::File::create(&log_path).with_context(|| log_path.display().to_string())?;
        let status = Command::new(context.venv.python())
            .arg(context.script("measure.py"))
            .arg(&report)
            .arg("--")
            .args(&self.command)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(log)
            .status()
            .context("cannot start Python")?;
        if interrupt::requested() {
            return Err(Exit::interrupted("a measurement"));
        }
        if !status.success() {
            let said = fs::read(&log_path).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let lines: Vec<&str> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(12)..].join("\n");
            anyhow::bail!("{} failed: {:?}\n{last}", self.name, self.command);
        }
        json_file::read(&report)
    }
}

/// What `measure.py` reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Measurement {
    pub(super) wall_seconds: f64,
    pub(super) cpu_seconds: f64,
    pub(super) peak_pss_bytes: u64,
    pub(super) max_rss_bytes: u64,
    pub(super) num_memory_samples: u64,
    /// Always 0 here: a side that fails ends the race.
    pub(super) exit_code: i32,
    pub(super) figures: Option<Value>,
}

impl Measurement {
    /// Wall time of the loop, for as many items as the race has: a side may go through them several times.
    fn loop_seconds(&self, num_items: u64) -> Option<f64> {
        let figures = self.figures.as_ref()?;
        let seconds = figures.get("loop_wall_seconds")?.as_f64()?;
        let done = figures.get("num_items").and_then(Value::as_f64).filter(|done| *done > 0.0)?;
        Some(seconds * num_items as f64 / done)
    }
}

/// A peer and what we put against it.
#[derive(Debug)]
pub(super) struct Race {
    pub(super) name: String,
    pub(super) num_items: u64,
    pub(super) peer: Side,
    pub(super) ours: Vec<Side>,
}

impl Race {
    /// Runs all sides in turn, round after round; `rounds` overrides the command's.
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<RaceRecord> {
        let sides: Vec<&Side> = std::iter::once(&self.peer).chain(&self.ours).collect();
        let mut runs: Vec<Vec<Measurement>> = vec![Vec::new(); sides.len()];
        for round in 0..context.rounds {
            for (side, runs) in sides.iter().zip(&mut runs) {
                let run = side.measure(context)?;
                println!(
                    "  {}, round {}: {:<34} {:>8.2} s wall {:>8.2} s cpu {:>6} MiB",
                    self.name,
                    round + 1,
                    side.name,
                    run.wall_seconds,
                    run.cpu_seconds,
                    run.peak_pss_bytes >> 20
                );
                runs.push(run);
            }
        }
        let mut records =
            sides.iter().zip(runs).map(|(side, runs)| (side, summarise(&side.name, self.num_items, runs)));
        let (_, peer) = records.next().context("a race has a peer")?;
        let ours = records.map(|(side, record)| compare(&peer, record, side.target)).collect();
        Ok(RaceRecord { name: self.name.clone(), num_items: self.num_items, peer, ours })
    }
}

fn summarise(name: &str, num_items: u64, runs: Vec<Measurement>) -> SideRecord {
    let of = |value: &dyn Fn(&Measurement) -> f64| median(runs.iter().map(value).collect());
    let loops: Option<Vec<f64>> = runs.iter().map(|run| run.loop_seconds(num_items)).collect();
    SideRecord {
        name: name.to_owned(),
        cpu_seconds: of(&|run| run.cpu_seconds),
        wall_seconds: of(&|run| run.wall_seconds),
        loop_seconds: loops.map(median),
        peak_memory_bytes: of(&|run| run.peak_pss_bytes as f64) as u64,
        runs,
    }
}

fn compare(peer: &SideRecord, ours: SideRecord, ask: Option<Ask>) -> Ours {
    let ratio = |theirs: f64, ours: f64| theirs / ours.max(1e-9);
    let ratios = Ratios {
        cpu_seconds: ratio(peer.cpu_seconds, ours.cpu_seconds),
        wall_seconds: ratio(peer.wall_seconds, ours.wall_seconds),
        loop_seconds: peer.loop_seconds.zip(ours.loop_seconds).map(|(theirs, ours)| ratio(theirs, ours)),
        peer_loop_to_our_wall: peer.loop_seconds.map(|theirs| ratio(theirs, ours.wall_seconds)),
        // A run that was over before the first look at its memory has none to compare.
        peak_memory: (ours.peak_memory_bytes > 0)
            .then(|| ratio(peer.peak_memory_bytes as f64, ours.peak_memory_bytes as f64)),
    };
    let target = ask.and_then(|Ask { metric, at_least }| {
        let measured = match metric {
            Metric::CpuSeconds => Some(ratios.cpu_seconds),
            Metric::WallSeconds => Some(ratios.wall_seconds),
            Metric::LoopSeconds => ratios.loop_seconds,
            Metric::PeerLoopToOurWall => ratios.peer_loop_to_our_wall,
        }?;
        Some(Target { metric, at_least, measured, met: measured >= at_least })
    });
    Ours { side: ours, ratios, target }
}

/// The middle value; of an even number the mean of the middle two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(wall: f64, cpu: f64, loop_seconds: Option<f64>) -> Measurement {
        Measurement {
            wall_seconds: wall,
            cpu_seconds: cpu,
            peak_pss_bytes: 1 << 20,
            max_rss_bytes: 1 << 20,
            num_memory_samples: 3,
            exit_code: 0,
            figures: loop_seconds
                .map(|seconds| serde_json::json!({ "loop_wall_seconds": seconds, "num_items": 5 })),
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![7.0]), 7.0);
    }

    #[test]
    fn ratios_say_how_many_times_less_we_take() {
        let peer = summarise("peer", 5, vec![run(10.0, 8.0, Some(6.0)), run(12.0, 8.0, Some(6.0))]);
        assert_eq!((peer.wall_seconds, peer.loop_seconds), (11.0, Some(6.0)));
        let ask = Ask { metric: Metric::PeerLoopToOurWall, at_least: 3.0 };
        let ours = compare(&peer, summarise("ours", 5, vec![run(2.0, 1.0, None)]), Some(ask));
        assert_eq!(
            (ours.ratios.cpu_seconds, ours.ratios.wall_seconds, ours.ratios.loop_seconds),
            (8.0, 5.5, None)
        );
        let target = ours.target.unwrap();
        assert!(target.met && target.measured == 3.0);
    }

    #[test]
    fn a_loop_over_more_items_is_scaled_down() {
        let twice = run(1.0, 1.0, Some(6.0)).loop_seconds(1);
        assert_eq!(twice, Some(1.2));
    }

    #[test]
    fn a_side_without_a_loop_time_cannot_meet_a_bound_on_it() {
        let side = |name| summarise(name, 5, vec![run(1.0, 1.0, None)]);
        let ask = Ask { metric: Metric::LoopSeconds, at_least: 1.0 };
        assert!(compare(&side("peer"), side("ours"), Some(ask)).target.is_none());
    }
}
