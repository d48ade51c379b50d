//! From a `.cu` file to a library of its kernels.

use candle_core::{Context as _, Result, bail};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// How kernels are compiled, and so which of their faults are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Nothing but what every mode has: `ldmatrix` and `cp.async` are checked for alignment and for being in shared memory,
    /// threads that diverge are reported, and memory that nobody wrote is NaN.
    Plain,
    /// With `-fsanitize=address,undefined`: accesses beyond a [`Buffer`](crate::Buffer) or beyond the block's shared memory,
    /// misaligned ones, shifts and signed sums that C++ leaves undefined.
    Address,
    /// Two accesses of one byte by different threads, not both reads or both atomic, that no barrier orders: in shared
    /// memory, and in global memory within a launch, where nothing orders two blocks. Of threads that touch single bytes of one
    /// halfword, and of several atomic additions, the last one is remembered. Patterns of fences and flags are reported
    /// although they may be right.
    Race,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Address, Self::Race];

    /// The value of `OQVL_EMULATION`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Address => "address",
            Self::Race => "race",
        }
    }

    /// What `OQVL_EMULATION` says; without it, [`Mode::Plain`].
    ///
    /// # Errors
    /// If it says something else.
    pub fn from_env() -> Result<Self> {
        let Some(value) = std::env::var_os("OQVL_EMULATION") else { return Ok(Self::Plain) };
        match Self::ALL.into_iter().find(|mode| value == mode.name()) {
            Some(mode) => Ok(mode),
            None => bail!("OQVL_EMULATION is {value:?}, and not plain, address or race"),
        }
    }

    /// Flags for the kernels.
    fn kernel_flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Address => {
                &["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
            }
            // For the calls that it puts before every access; its library is not linked.
            Self::Race => &["-fsanitize=thread"],
        }
    }

    /// Flags for what runs them, which is not itself instrumented.
    fn runtime_flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Address => &["-DEMULATION_ADDRESS"],
            Self::Race => &["-DEMULATION_RACE"],
        }
    }

    fn link_flags(self) -> &'static [&'static str] {
        match self {
            Self::Address => &["-fsanitize=address,undefined"],
            // A function that nobody has is found here and not when it is called.
            Self::Plain | Self::Race if cfg!(target_os = "linux") => &["-Wl,-z,defs"],
            Self::Plain | Self::Race => &[],
        }
    }
}

const WARNINGS: [&str; 5] = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"];
/// No fused multiply-add: the same results on every machine.
const CODE: [&str; 7] =
    ["-x", "c++", "-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"];

/// The C++ compiler of the machine.
#[derive(Debug)]
pub(crate) struct Compiler {
    program: String,
    version: String,
}

impl Compiler {
    /// `$CXX` or g++; `None` if it cannot be run.
    pub(crate) fn find() -> Option<&'static Self> {
        static FOUND: OnceLock<Option<Compiler>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let program = std::env::var("CXX").ok().filter(|program| !program.is_empty());
            let program = program.unwrap_or_else(|| "g++".to_owned());
            let output = command(&program).arg("--version").output().ok()?;
            let version = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some(Self { program, version })
        });
        found.as_ref()
    }

    /// [`Compiler::find`], with a line for the list of skipped tests.
    pub(crate) fn find_or_skip() -> Option<&'static Self> {
        let found = Self::find();
        if found.is_none() {
            eprintln!("skipped: kernels on a CPU need a C++ compiler (g++, or what CXX names)");
        }
        found
    }

    fn is_clang(&self) -> bool {
        self.version.contains("clang")
    }

    /// The library of a `.cu` file.
    fn build(&self, mode: Mode, source: &Path) -> Result<PathBuf> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        // For `emulation.h`, and for the `device.cuh` that asks for it.
        let include =
            [&own, &kernels_root().join("device")].map(|directory| format!("-I{}", directory.display()));
        let mut flags = Vec::from(CODE);
        flags.extend(WARNINGS);
        if !self.is_clang() {
            // Libraries of several kernels in one process share nothing.
            flags.push("-fno-gnu-unique");
        }
        let with = |more: &[&'static str]| [flags.as_slice(), more].concat();

        let runtime = [with(mode.runtime_flags()), vec!["-O3"]].concat();
        let runtime = self.compile(mode, &own.join("emulation.cpp"), &runtime)?;
        let kernel = [with(mode.kernel_flags()), vec!["-O2", &include[0], &include[1]]].concat();
        let kernel = self.compile(mode, source, &kernel)?;

        // Objects are named for their content.
        let mut hash = blake3::Hasher::new();
        hash.update(runtime.as_os_str().as_encoded_bytes()).update(kernel.as_os_str().as_encoded_bytes());
        let name = format!("{}.so", name(source, mode, &hash));
        make_once(&name, |output| {
            let mut command = command(&self.program);
            command.arg("-shared").args(mode.link_flags()).arg(&kernel).arg(&runtime).arg("-o").arg(output);
            // Where the C library has no place of its own for it.
            command.arg("-ldl");
            command
        })
    }

    /// The object of a source file, compiled unless what the compiler sees of it was compiled before.
    fn compile(&self, mode: Mode, source: &Path, flags: &[&str]) -> Result<PathBuf> {
        let seen = run(command(&self.program).args(flags).arg("-E").arg(source))?;
        let mut hash = blake3::Hasher::new();
        hash.update(self.version.as_bytes()).update(&seen);
        flags.iter().for_each(|flag| {
            hash.update(flag.as_bytes()).update(&[0]);
        });
        make_once(&format!("{}.o", name(source, mode, &hash)), |output| {
            let mut command = command(&self.program);
            command.args(flags).arg("-c").arg(source).arg("-o").arg(output);
            command
        })
    }
}

/// The compiler is not to be run under the sanitizer that is loaded for this process.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_remove("LD_PRELOAD").env("LC_ALL", "C");
    command
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

fn name(source: &Path, mode: Mode, hash: &blake3::Hasher) -> String {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    format!("{stem}.{}.{}", mode.name(), &hash.finalize().to_hex()[..16])
}

/// A file of the output directory, made by a command unless it is there. Several processes may do so at once.
fn make_once(name: &str, command: impl Fn(&Path) -> Command) -> Result<PathBuf> {
    let directory = output_directory()?;
    let path = directory.join(name);
    if !path.exists() {
        std::fs::create_dir_all(&directory)?;
        let temporary = tempfile::tempdir_in(&directory)?;
        let made = temporary.path().join(name);
        run(&mut command(&made))?;
        std::fs::rename(&made, &path)?;
    }
    Ok(path)
}

/// `emulation` in the directory that cargo builds in, which is marked as a cache.
fn output_directory() -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let target = executable.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    let target = match (target, std::env::var_os("CARGO_TARGET_DIR")) {
        (Some(target), _) => target.to_owned(),
        (None, Some(target)) => target.into(),
        (None, None) => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    };
    Ok(target.join("emulation"))
}

/// A library, and where it is.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) path: PathBuf,
    pub(crate) library: libloading::Library,
}

type Slot = Arc<OnceLock<std::result::Result<Arc<Loaded>, String>>>;

/// The library of a `.cu` file, compiled and loaded once for the process.
pub(crate) fn load(compiler: &Compiler, mode: Mode, source: &Path) -> Result<Arc<Loaded>> {
    static LOADED: Mutex<Option<HashMap<(Mode, PathBuf), Slot>>> = Mutex::new(None);
    let slot = {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = loaded.get_or_insert_default();
        Arc::clone(slots.entry((mode, source.to_owned())).or_default())
    };
    let load = || {
        let path = compiler.build(mode, source)?;
        // SAFETY: made just now or by the same compiler from the same sources; it has no initialisers of its own.
        let library = unsafe { libloading::Library::new(&path) }.map_err(candle_core::Error::wrap)?;
        Ok(Arc::new(Loaded { path, library }))
    };
    match slot.get_or_init(|| load().map_err(|error: candle_core::Error| error.to_string())) {
        Ok(loaded) => Ok(Arc::clone(loaded)),
        Err(error) => bail!("{error}"),
    }
}

/// Compiles a `.cu` file without loading it: the library, or `None` after a line that begins with `skipped: `, where no C++
/// compiler is.
///
/// # Errors
/// If it does not compile; warnings are errors.
pub fn compile(mode: Mode, source: &Path) -> Result<Option<PathBuf>> {
    Compiler::find_or_skip().map(|compiler| compiler.build(mode, source)).transpose()
}

/// Whether the address sanitizer was loaded with this process.
pub(crate) fn is_sanitizer_loaded() -> bool {
    let process = libloading::os::unix::Library::this();
    // SAFETY: only asked for, never called.
    unsafe { process.get::<*const ()>(b"__asan_init\0") }.is_ok()
}

/// What a test binary needs in its environment to run in [`Mode::Address`], besides `OQVL_EMULATION`. Not for the whole of
/// `cargo test`: cargo and rustc would run under the sanitizer too.
///
/// # Errors
/// If there is no GCC, or it comes without the sanitizer.
pub fn address_environment() -> Result<[(&'static str, String); 2]> {
    let Some(compiler) = Compiler::find() else { bail!("there is no C++ compiler") };
    if compiler.is_clang() {
        bail!("mode address needs GCC, and {} is clang", compiler.program);
    }
    let path = run(command(&compiler.program).arg("-print-file-name=libasan.so"))?;
    let path = String::from_utf8_lossy(&path).trim().to_owned();
    if !Path::new(&path).is_absolute() {
        bail!("{} comes without libasan.so", compiler.program);
    }
    Ok([("LD_PRELOAD", path), ("ASAN_OPTIONS", "detect_leaks=0".to_owned())])
}

/// The directory of the product's kernels.
pub(crate) fn kernels_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/kernels/src")
}

/// Every `.cu` file of `oqvl-kernels`, in order.
///
/// # Errors
/// If the directories cannot be read.
pub fn kernel_sources() -> Result<Vec<PathBuf>> {
    sources_below(&kernels_root())
}

/// The `.cu` files of a directory and of those in it, in order.
pub(crate) fn sources_below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(root).with_context(|| root.display().to_string())? {
        let path = entry?.path();
        let paths = if path.is_dir() {
            std::fs::read_dir(&path)?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<std::io::Result<_>>()?
        } else {
            vec![path]
        };
        sources
            .extend(paths.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "cu")));
    }
    sources.sort();
    Ok(sources)
}
