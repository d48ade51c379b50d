//! The device: checks a launch as CUDA would, and runs it.

use crate::buffer::Buffer;
use crate::compiler::{Compiler, Loaded, Mode, is_sanitizer_loaded, kernels_root, load, sources_below};
use candle_core::{Result, bail};
use half::bf16;
use oqvl_kernels::backend::Products;
use oqvl_kernels::device::{Device, Grid, Kernel, Memory, Number, Params, Slice, SliceMut};
use oqvl_kernels::gemm::{self, Gemm, GemmOutput};
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Dynamic shared memory of a block on the GPUs that kernels are written for with the most of it, 9.0.
const MAX_SHARED_MEMORY: u32 = 227 << 10;
const WARP_SIZE: u32 = 32;
const MAX_THREADS: u32 = 1024;
/// Bytes for the text of an error.
const ERROR_SIZE: usize = 8 << 10;

/// The order in which the blocks of a launch run, one after the other. On a GPU there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOrder {
    /// From the first to the last.
    Forward,
    /// From the last to the first.
    Reverse,
    /// By steps of more than half of the grid, from a block that the seed says.
    Shuffled(u32),
}

impl BlockOrder {
    fn from_env() -> Result<Self> {
        let Some(value) = std::env::var_os("OQVL_EMULATION_BLOCKS") else { return Ok(Self::Forward) };
        match value.to_str() {
            Some("forward") => Ok(Self::Forward),
            Some("reverse") => Ok(Self::Reverse),
            Some("shuffled") => Ok(Self::Shuffled(7)),
            _ => bail!("OQVL_EMULATION_BLOCKS is {value:?}, and not forward, reverse or shuffled"),
        }
    }

    /// The first of so many blocks, and the step to the next, coprime to their number.
    fn walk(self, blocks: u64) -> (u64, u64) {
        match self {
            Self::Forward => (0, 1),
            Self::Reverse => (blocks - 1, blocks - 1),
            Self::Shuffled(seed) => {
                // The golden ratio spreads the steps.
                let near = (blocks as f64 * 0.618) as u64;
                let step = (near..).find(|step| greatest_common_divisor(*step, blocks) == 1);
                (u64::from(seed) % blocks, step.expect("the number plus one is coprime to it"))
            }
        }
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// A CPU that runs kernels as a GPU would, one launch at a time per thread that launches.
#[derive(Debug)]
pub struct Emulation {
    compiler: &'static Compiler,
    mode: Mode,
    order: BlockOrder,
    roots: Vec<PathBuf>,
}

/// A launch as `emulation.cpp` takes it.
#[repr(C)]
struct Request {
    kernel: unsafe extern "C" fn(*const c_void),
    name: *const c_char,
    params: *const c_void,
    threads: c_uint,
    shared_memory: usize,
    grid: [c_uint; 3],
    first_block: u64,
    block_stride: u64,
    error: *mut c_char,
    error_size: usize,
}

/// A launch in words: which kernel of which file, and how many threads with how much shared memory.
#[derive(Debug, Clone, Copy)]
struct Launch<'a> {
    module: &'a str,
    kernel: &'a str,
    threads: u32,
    shared_memory: u32,
    grid: Grid,
}

impl Emulation {
    /// An emulation as the environment says. `None`, after a line that begins with `skipped: `, where no C++ compiler is.
    ///
    /// # Errors
    /// As [`Emulation::new`], or if the environment says what is not known.
    pub fn from_env() -> Result<Option<Self>> {
        let order = BlockOrder::from_env()?;
        Ok(Self::new(Mode::from_env()?)?.map(|emulation| emulation.with_order(order)))
    }

    /// An emulation that compiles kernels in this mode. `None`, after a line that begins with `skipped: `, where no C++
    /// compiler is.
    ///
    /// # Errors
    /// If the mode is [`Mode::Address`] and the process runs without its sanitizer.
    pub fn new(mode: Mode) -> Result<Option<Self>> {
        let Some(compiler) = Compiler::find_or_skip() else { return Ok(None) };
        if mode == Mode::Address && !is_sanitizer_loaded() {
            let needed = crate::address_environment()?.map(|(name, value)| format!("{name}={value}"));
            bail!(
                "OQVL_EMULATION=address needs the sanitizer in this process: start it with {}",
                needed.join(" ")
            );
        }
        let roots = vec![kernels_root()];
        Ok(Some(Self { compiler, mode, order: BlockOrder::Forward, roots }))
    }

    /// The same with another order of blocks.
    #[must_use]
    pub fn with_order(mut self, order: BlockOrder) -> Self {
        self.order = order;
        self
    }

    /// The same with the `.cu` files of one more directory.
    #[must_use]
    pub fn with_sources(mut self, root: impl AsRef<Path>) -> Self {
        self.roots.push(root.as_ref().to_owned());
        self
    }

    /// How it compiles.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Elements for a kernel to read.
    #[must_use]
    pub fn read<'a, T: Number>(&self, elements: &'a [T]) -> Slice<'a, Self, T> {
        // SAFETY: a slice of this process's memory, which is the device's, borrowed as long.
        unsafe { Slice::from_raw(elements.as_ptr().expose_provenance() as u64, elements.len()) }
    }

    /// Elements for a kernel to write.
    #[must_use]
    pub fn write<'a, T: Number>(&self, elements: &'a mut [T]) -> SliceMut<'a, Self, T> {
        // SAFETY: a slice of this process's memory, which is the device's, borrowed mutably as long; a kernel may leave any
        // bytes there.
        unsafe { SliceMut::from_raw(elements.as_mut_ptr().expose_provenance() as u64, elements.len()) }
    }

    /// Runs a kernel that is known by name alone. [`Device::launch`] is the way for those of `oqvl-kernels`.
    ///
    /// # Errors
    /// If there is no such kernel, if CUDA would refuse the launch, or if the emulation finds a fault in it.
    ///
    /// # Safety
    /// Every address in `params` is valid for what the kernel reads and writes there.
    pub unsafe fn run<P: Params>(
        &self,
        (module, kernel): (&str, &str),
        (threads, shared_memory): (u32, u32),
        grid: Grid,
        params: &P,
    ) -> Result<()> {
        let launch = Launch { module, kernel, threads, shared_memory, grid };
        // SAFETY: the caller vouches for the addresses.
        unsafe { self.run_launch(&launch, params) }
    }

    fn load(&self, module: &str) -> Result<std::sync::Arc<Loaded>> {
        let mut sources = Vec::new();
        for root in &self.roots {
            sources.extend(sources_below(root)?);
        }
        sources.retain(|source| source.file_stem().is_some_and(|stem| stem == module));
        match sources.as_slice() {
            [source] => load(self.compiler, self.mode, source),
            [] => bail!("no {module}.cu below {:?}", self.roots),
            _ => bail!("{module}.cu is there more than once: {sources:?}"),
        }
    }

    /// # Safety
    /// As [`Emulation::run`].
    unsafe fn run_launch<P: Params>(&self, launch: &Launch<'_>, params: &P) -> Result<()> {
        let loaded = self.load(launch.module)?;
        let kernel = Entry::find(&loaded, launch.kernel)?;
        launch.check(kernel.threads)?;
        if kernel.params_size as usize != size_of::<P>() {
            let Entry { params_size, .. } = kernel;
            bail!(
                "kernel {}: its parameters have {params_size} bytes in the source and {} in Rust",
                launch.kernel,
                size_of::<P>()
            );
        }
        let Grid { x, y, z } = launch.grid;
        let (first_block, block_stride) = self.order.walk(u64::from(x) * u64::from(y) * u64::from(z));
        let name = CString::new(launch.kernel).map_err(candle_core::Error::wrap)?;
        let mut error = vec![0u8; ERROR_SIZE];
        let request = Request {
            kernel: kernel.function,
            name: name.as_ptr(),
            params: std::ptr::from_ref(params).cast(),
            threads: launch.threads,
            shared_memory: launch.shared_memory as usize,
            grid: [x, y, z],
            first_block,
            block_stride,
            error: error.as_mut_ptr().cast(),
            error_size: error.len(),
        };
        // SAFETY: the request is laid out as in `emulation.cpp`, which keeps nothing of it; the parameters have the size
        // that the kernel's have, and the caller vouches for the addresses in them.
        let status = unsafe { (kernel.run)(&raw const request) };
        if status != 0 {
            let text = CStr::from_bytes_until_nul(&error).map_err(candle_core::Error::wrap)?;
            bail!("{}", with_line(&loaded.path, &text.to_string_lossy()));
        }
        launch.record()
    }
}

impl Launch<'_> {
    /// Names the kernel in the file of [`LAUNCHES_VARIABLE`], once in a process.
    fn record(&self) -> Result<()> {
        static RECORDED: Mutex<BTreeSet<(String, u32)>> = Mutex::new(BTreeSet::new());
        let Some(path) = std::env::var_os(LAUNCHES_VARIABLE) else { return Ok(()) };
        let mut recorded = RECORDED.lock().expect("nothing panics while it holds this");
        if recorded.insert((self.kernel.to_owned(), self.shared_memory)) {
            let mut file = File::options().append(true).create(true).open(path)?;
            file.write_all(format!("{} {}\n", self.kernel, self.shared_memory).as_bytes())?;
        }
        Ok(())
    }

    /// What CUDA would refuse.
    fn check(&self, launch_bounds: u32) -> Result<()> {
        let Self { kernel, threads, shared_memory, grid: Grid { x, y, z }, .. } = *self;
        if threads == 0 || threads > MAX_THREADS || !threads.is_multiple_of(WARP_SIZE) {
            bail!("kernel {kernel}: {threads} threads are not between one and 32 whole warps");
        }
        if threads != launch_bounds {
            bail!("kernel {kernel}: launched with {threads} threads, but made for {launch_bounds}");
        }
        if shared_memory > MAX_SHARED_MEMORY {
            bail!(
                "kernel {kernel}: {shared_memory} bytes of shared memory, and a block has {MAX_SHARED_MEMORY}"
            );
        }
        let (max_x, max_yz) = (i32::MAX as u32, u32::from(u16::MAX));
        if x == 0 || y == 0 || z == 0 || x > max_x || y > max_yz || z > max_yz {
            bail!("kernel {kernel}: CUDA has no grid of {x} x {y} x {z} blocks");
        }
        Ok(())
    }
}

impl Memory for Emulation {
    type Half = bf16;
    type Full = f32;
    type Buffer<T: Number> = Buffer<T>;

    fn poisoned<T: Number>(&self, len: usize) -> Result<Buffer<T>> {
        Ok(Buffer::poisoned(len))
    }

    fn copy_from_host<T: Number>(&self, from: &[T], to: SliceMut<'_, Self, T>) -> Result<()> {
        if from.len() != to.len() {
            bail!("{} elements cannot be copied to {}", from.len(), to.len());
        }
        elements_mut(to).copy_from_slice(from);
        Ok(())
    }

    fn download<T: Number>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        Ok(buffer.to_vec())
    }

    fn slice<'a, T: Number>(&self, buffer: &'a Buffer<T>) -> Slice<'a, Self, T> {
        self.read(buffer)
    }

    fn slice_mut<'a, T: Number>(&self, buffer: &'a mut Buffer<T>) -> SliceMut<'a, Self, T> {
        self.write(buffer)
    }
}

/// By the reference in f32, rounded once, as a library's products would be.
impl Products for Emulation {
    fn product<O: GemmOutput>(
        &self,
        gemm: &Gemm,
        (a, b): (Slice<'_, Self, bf16>, Slice<'_, Self, bf16>),
        bias: Option<Slice<'_, Self, O>>,
        d: SliceMut<'_, Self, O>,
    ) -> Result<()> {
        let (a, b, bias) = (wide(a), wide(b), bias.map(wide));
        let mut sums = wide(d.as_slice());
        gemm::reference(gemm, &a, &b, bias.as_deref(), &mut sums)?;
        elements_mut(d).iter_mut().zip(sums).for_each(|(d, sum)| *d = O::from_f64(sum.into()));
        Ok(())
    }
}

/// Elements that nothing else reaches.
fn elements_mut<T: Number>(slice: SliceMut<'_, Emulation, T>) -> &mut [T] {
    if slice.is_empty() {
        return &mut [];
    }
    let address = std::ptr::with_exposed_provenance_mut(slice.address() as usize);
    // SAFETY: a slice of this process's memory, which `from_raw` was promised to be the only way to.
    unsafe { std::slice::from_raw_parts_mut(address, slice.len()) }
}

/// The same numbers in f32.
fn wide<T: GemmOutput>(elements: Slice<'_, Emulation, T>) -> Vec<f32> {
    if elements.is_empty() {
        return Vec::new();
    }
    // SAFETY: a slice of this process's memory, which nothing writes while it is borrowed.
    let elements = unsafe {
        std::slice::from_raw_parts(
            std::ptr::with_exposed_provenance::<T>(elements.address() as usize),
            elements.len(),
        )
    };
    elements.iter().map(|element| element.to_f64() as f32).collect()
}

// SAFETY: a launch has ended when it returns, and runs the kernel of that name with the very parameters, whose size is
// compared.
unsafe impl Device for Emulation {
    unsafe fn launch<P: Params>(&self, kernel: &Kernel<P>, grid: Grid, params: &P) -> Result<()> {
        let launch = Launch {
            module: kernel.module.name,
            kernel: kernel.name,
            threads: kernel.threads,
            shared_memory: kernel.shared_memory,
            grid,
        };
        // SAFETY: the caller vouches for the addresses.
        unsafe { self.run_launch(&launch, params) }
    }
}

/// A file in which every kernel that ran is named, with the bytes of dynamic shared memory of its blocks.
const LAUNCHES_VARIABLE: &str = "OQVL_EMULATION_LAUNCHES";

/// What a library says of a kernel. It lives as long as the process: libraries are never unloaded.
struct Entry {
    function: unsafe extern "C" fn(*const c_void),
    params_size: c_uint,
    threads: c_uint,
    run: unsafe extern "C" fn(*const Request) -> c_int,
}

impl Entry {
    fn find(loaded: &Loaded, kernel: &str) -> Result<Self> {
        let Loaded { library, .. } = loaded;
        let symbol = |prefix: &str| format!("{prefix}{kernel}\0");
        let find = || -> std::result::Result<Self, libloading::Error> {
            // SAFETY: `KERNEL` of `emulation.h` and `emulation.cpp` define these with these types.
            unsafe {
                Ok(Self {
                    function: *library.get(symbol("emulated_").as_bytes())?,
                    params_size: **library.get::<*const c_uint>(symbol("params_size_").as_bytes())?,
                    threads: **library.get::<*const c_uint>(symbol("threads_").as_bytes())?,
                    run: *library.get(b"emulation_launch\0")?,
                })
            }
        };
        match find() {
            Ok(entry) => Ok(entry),
            Err(error) => bail!("no kernel {kernel} in {}: {error}", loaded.path.display()),
        }
    }
}

/// The text with its address of code, if it has one, as a line of the source.
fn with_line(library: &Path, text: &str) -> String {
    let Some((before, rest)) = text.split_once(" [code +") else { return text.to_owned() };
    let (offset, after) = rest.split_once(']').unwrap_or((rest, ""));
    let output =
        Command::new("addr2line").env_remove("LD_PRELOAD").arg("-e").arg(library).arg(offset).output();
    let line = output.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match line.filter(|line| !line.is_empty() && !line.starts_with('?')) {
        Some(line) => format!("{before} ({}){after}", line.rsplit('/').next().unwrap_or(&line)),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_visits_every_block_once() {
        for blocks in [1, 2, 3, 4, 6, 97, 100] {
            for order in [BlockOrder::Forward, BlockOrder::Reverse, BlockOrder::Shuffled(12)] {
                let (first, stride) = order.walk(blocks);
                let mut visited: Vec<u64> = (0..blocks).map(|n| (first + n * stride) % blocks).collect();
                visited.sort_unstable();
                assert_eq!(visited, Vec::from_iter(0..blocks), "{order:?}");
            }
        }
    }
}
