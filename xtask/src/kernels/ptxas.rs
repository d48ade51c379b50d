//! What ptxas says of the kernels it assembles.

use anyhow::Context as _;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// What one kernel takes on one architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    /// The `.cu` file, without the ending.
    pub(super) module: String,
    pub(super) kernel: String,
    /// `sm_80`, `sm_90a`.
    pub(super) target: String,
    /// Registers of a thread.
    pub(super) registers: u32,
    /// Bytes of shared memory of a block beside what a launch asks for.
    pub(super) static_shared_bytes: u32,
    /// Bytes of shared memory of a block that its launches ask for; the most of those seen, none if it was never launched.
    pub(super) dynamic_shared_bytes: Option<u32>,
    pub(super) stack_bytes: u32,
    pub(super) spill_store_bytes: u32,
    pub(super) spill_load_bytes: u32,
}

impl Usage {
    pub(super) fn spill_bytes(&self) -> u32 {
        self.spill_store_bytes.max(self.spill_load_bytes)
    }
}

/// Everything in the reports `<module>.<target>.txt` of a directory whose machine code is there too.
pub(super) fn read(dir: &Path) -> anyhow::Result<Vec<Usage>> {
    let mut usages = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some((module, target)) = name.strip_suffix(".txt").and_then(|name| name.rsplit_once('.')) else {
            continue;
        };
        if !path.with_extension("cubin").is_file() {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        usages.extend(parse(module, target, &text).with_context(|| path.display().to_string())?);
    }
    let key = |usage: &Usage| (usage.module.clone(), usage.kernel.clone(), usage.target.clone());
    usages.sort_by_key(key);
    Ok(usages)
}

/// A report reads, for every kernel: `Compiling entry function 'f' for 'sm_80'`, then a line with the bytes of stack and spills,
/// then `Used 10 registers, ..., 64 bytes smem, ...`.
fn parse(module: &str, target: &str, text: &str) -> anyhow::Result<Vec<Usage>> {
    let mut usages: Vec<Usage> = Vec::new();
    let mut open: Option<Usage> = None;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            anyhow::ensure!(open.is_none(), "no registers before `{line}`");
            open = Some(Usage {
                module: module.to_owned(),
                kernel: rest.split('\'').next().unwrap_or_default().to_owned(),
                target: target.to_owned(),
                registers: 0,
                static_shared_bytes: 0,
                dynamic_shared_bytes: None,
                stack_bytes: 0,
                spill_store_bytes: 0,
                spill_load_bytes: 0,
            });
        }
        let Some(usage) = &mut open else { continue };
        if line.contains(" bytes stack frame") {
            usage.stack_bytes = before(line, " bytes stack frame").context("no bytes of stack")?;
            usage.spill_store_bytes = before(line, " bytes spill stores").context("no bytes of stores")?;
            usage.spill_load_bytes = before(line, " bytes spill loads").context("no bytes of loads")?;
        } else if line.contains(" registers") {
            usage.registers = before(line, " registers").context("no number of registers")?;
            usage.static_shared_bytes = before(line, " bytes smem").unwrap_or(0);
            usages.extend(open.take());
        }
    }
    anyhow::ensure!(open.is_none(), "the report ends within a kernel");
    Ok(usages)
}

/// The number that stands before some words.
fn before(line: &str, words: &str) -> Option<u32> {
    let (head, _) = line.split_once(words)?;
    head.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_takes_is_in_the_report() {
        let text = "ptxas info    : 0 bytes gmem\n\
                    ptxas info    : Compiling entry function 'pool' for 'sm_80'\n\
                    ptxas info    : Function properties for pool\n\
                    \x20   16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n\
                    ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 536 bytes cmem[0]\n\
                    ptxas info    : Compile time = 2.578 ms\n\
                    ptxas info    : Compiling entry function 'sum' for 'sm_80'\n\
                    ptxas info    : Function properties for sum\n\
                    \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                    ptxas info    : Used 18 registers, used 0 barriers\n";
        let usages = parse("m", "sm_80", text).unwrap();
        assert_eq!(usages.len(), 2);
        let pool = &usages[0];
        assert_eq!(
            (pool.registers, pool.static_shared_bytes, pool.stack_bytes, pool.spill_bytes()),
            (255, 1024, 16, 20)
        );
        assert_eq!((usages[1].kernel.as_str(), usages[1].registers, usages[1].spill_bytes()), ("sum", 18, 0));
        assert!(parse("m", "sm_80", "Compiling entry function 'cut'").is_err());
    }
}
