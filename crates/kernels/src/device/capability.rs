//! Which GPUs and drivers run what is embedded in this program: rules that need no GPU to be tested.

/// Which of the embedded machine codes a GPU runs: code of one major version runs on the later minor ones of the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Code {
    Sm80,
    Sm90a,
}

impl Code {
    /// For a compute capability; the error says why there is none.
    pub(super) fn for_capability(major: i32, minor: i32) -> Result<Self, &'static str> {
        match (major, minor) {
            (8, _) => Ok(Self::Sm80),
            (9, 0) => Ok(Self::Sm90a),
            (..8, _) => Err("too old, the kernels need 8.0 (Ampere) or later"),
            _ => Err("this build has no code for it, only for 8.x and 9.0"),
        }
    }
}

/// Why a driver cannot run what a toolkit made. Both versions of CUDA are 1000 times the major plus 10 times the minor number.
/// Machine code would run on an older minor version, but candle's kernels are PTX, which only a driver as new as it reads.
pub(super) fn driver_is_too_old(of_driver: i32, toolkit: i32) -> Option<String> {
    let shown = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    (of_driver < toolkit).then(|| {
        format!(
            "the NVIDIA driver knows CUDA {}, this program is built with {}: a newer driver, or a build with a toolkit no newer \
             than the driver, is needed",
            shown(of_driver),
            shown(toolkit)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_its_own_major_version() {
        for minor in [0, 6, 7, 9] {
            assert_eq!(Code::for_capability(8, minor), Ok(Code::Sm80));
        }
        assert_eq!(Code::for_capability(9, 0), Ok(Code::Sm90a));
        assert!(Code::for_capability(7, 5).unwrap_err().contains("too old"));
        assert!(Code::for_capability(10, 0).unwrap_err().contains("no code"));
        assert!(Code::for_capability(12, 1).unwrap_err().contains("no code"));
    }

    #[test]
    fn a_driver_runs_what_is_no_newer_than_itself() {
        assert_eq!(driver_is_too_old(13_000, 13_000), None);
        assert_eq!(driver_is_too_old(13_020, 12_090), None);
        assert!(
            driver_is_too_old(12_080, 13_000)
                .unwrap()
                .contains("knows CUDA 12.8, this program is built with 13.0")
        );
        assert!(driver_is_too_old(12_080, 12_090).unwrap().contains("built with 12.9"));
    }
}
