//! The HTTP server of the micro world, running beside data-fetch and never longer.
//!
//! It ends when its standard input closes. Both the runner and data-fetch hold the other end of that pipe: the
//! server outlives neither, and a data-fetch that survives a killed runner still has a world to fetch from.

use crate::exit::Exit;
use crate::stages::{MICRO_WORLD, WORLD_SERVER_BINARY};
use crate::{cargo, child_output, interrupt};
use anyhow::{Context, bail};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running server; dropping it ends the process.
#[derive(Debug)]
pub(crate) struct WorldServer {
    child: Child,
    alive: Option<ChildStdin>,
    peak_rss_bytes: u64,
}

impl WorldServer {
    /// Starts the server on the world of a work directory and waits until it says where it listens.
    pub(crate) fn start(work_dir: &Path) -> anyhow::Result<Self> {
        let world = work_dir.join(MICRO_WORLD.as_str());
        let hosts = world.join("hosts.local.json");
        match fs::remove_file(&hosts) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(hosts.display().to_string());
            }
            _ => {}
        }
        let mut child = Command::new(cargo::binary_dir()?.join(WORLD_SERVER_BINARY))
            .arg("--world")
            .arg(&world)
            .arg("--exit-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Out of reach of Ctrl-C: it must serve until data-fetch has come to a safe point.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {WORLD_SERVER_BINARY}"))?;
        let alive = child.stdin.take();
        // That it serves is what is expected of it; what goes wrong is worth a line. The thread ends with the server.
        child.stderr.take().map(|stderr| child_output::forward(stderr, |line| line.contains(" INFO ")));
        let mut server = Self { child, alive, peak_rss_bytes: 0 };
        server.wait_until_it_listens(hosts)?;
        Ok(server)
    }

    fn wait_until_it_listens(&mut self, hosts: PathBuf) -> anyhow::Result<()> {
        let started = Instant::now();
        while !hosts.is_file() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{WORLD_SERVER_BINARY} ended before it listened ({status})");
            }
            if interrupt::requested() {
                return Err(Exit::interrupted("the start of the world server"));
            }
            if started.elapsed() > START_LIMIT {
                bail!("{WORLD_SERVER_BINARY} has not written {} after {START_LIMIT:?}", hosts.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The far end of the server's standard input, for data-fetch to hold as its standard output, which it does
    /// not otherwise use.
    pub(crate) fn lifeline(&self) -> anyhow::Result<Stdio> {
        let alive = self.alive.as_ref().context("the server has a piped standard input")?;
        Ok(alive.as_fd().try_clone_to_owned().context("cannot share the server's pipe")?.into())
    }

    /// Notes the largest memory so far; call it while the server runs.
    pub(crate) fn measure(&mut self) {
        self.peak_rss_bytes = self.peak_rss_bytes.max(peak_rss_bytes(self.child.id()));
    }

    /// Ends the server and says how much memory it took at most.
    pub(crate) fn stop(mut self) -> u64 {
        self.measure();
        self.peak_rss_bytes
    }
}

impl Drop for WorldServer {
    fn drop(&mut self) {
        drop(self.alive.take());
        // It has nothing to save, so there is nothing to wait for; both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Largest resident size of a living process so far, or 0 where the system does not say.
fn peak_rss_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0);
    kibibytes * 1024
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn a_living_process_has_a_size() {
        assert!(super::peak_rss_bytes(std::process::id()) > 100 * 1024);
        assert_eq!(super::peak_rss_bytes(u32::MAX), 0);
    }
}
