//! Calls on a backend: memory around every argument, and what the call did to it.

use crate::calls::Call;
use candle_core::Result;
use oqvl_kernels::backend::{Backend, Full, FullMut, Half, HalfMut};
use oqvl_kernels::device::{Float, Memory, Number, Slice, SliceMut};
use std::collections::BTreeMap;
use std::ops::Range;

/// Elements before and after those of an argument: whole sixteen bytes of every type.
const MARGIN: usize = 16;

/// What the elements of an argument are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Half,
    Full,
    I32,
    I64,
    U8,
}

/// What a call does to an argument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Role {
    /// It is read alone.
    Input,
    /// It is written whole, from what nobody has written.
    Output,
    /// It is read and written.
    InPlace,
    /// It may be written, with what is nobody's business.
    Scratch,
    /// What a call would write, and this one does not.
    Kept,
}

/// Which other lengths are right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Lengths {
    /// None.
    Exact,
    /// Longer ones.
    OrMore,
    /// Some, or nothing is said of them.
    Any,
}

#[derive(Debug, Clone)]
pub(crate) struct Arg {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) role: Role,
    pub(crate) lengths: Lengths,
    /// How far an element may be off beyond the rounding of its type.
    pub(crate) slack: f64,
    pub(crate) len: usize,
    /// None where nothing was written.
    values: Vec<f64>,
}

impl Arg {
    /// An argument that is written, and not read.
    pub(crate) fn written(name: &'static str, kind: Kind, role: Role, len: usize) -> Self {
        let slack = if kind == Kind::Half { 1e-5 } else { 1e-6 };
        Self { name, kind, role, lengths: Lengths::Exact, slack, len, values: Vec::new() }
    }

    /// An argument with these values, which its type holds.
    pub(crate) fn given(name: &'static str, kind: Kind, role: Role, values: Vec<f64>) -> Self {
        Self { len: values.len(), values, ..Self::written(name, kind, role, 0) }
    }

    pub(crate) fn lengths(self, lengths: Lengths) -> Self {
        Self { lengths, ..self }
    }

    pub(crate) fn slack(self, slack: f64) -> Self {
        Self { slack, ..self }
    }
}

enum Stored<B: Memory> {
    Half(B::Buffer<B::Half>),
    Full(B::Buffer<B::Full>),
    I32(B::Buffer<i32>),
    I64(B::Buffer<i64>),
    U8(B::Buffer<u8>),
}

/// Memory with the values of an argument between margins.
fn store<B: Backend, T: Number>(on: &B, arg: &Arg, number: impl Fn(f64) -> T) -> B::Buffer<T> {
    let mut buffer = on.poisoned(arg.len + 2 * MARGIN).unwrap();
    let values: Vec<T> = arg.values.iter().map(|value| number(*value)).collect();
    let to = on.slice_mut(&mut buffer).split_at(MARGIN).1.split_at(values.len()).0;
    on.copy_from_host(&values, to).unwrap();
    buffer
}

impl<B: Backend> Stored<B> {
    fn new(on: &B, arg: &Arg) -> Self {
        match arg.kind {
            Kind::Half => Self::Half(store(on, arg, B::Half::from_f64)),
            Kind::Full => Self::Full(store(on, arg, B::Full::from_f64)),
            Kind::I32 => Self::I32(store(on, arg, |value| value as i32)),
            Kind::I64 => Self::I64(store(on, arg, |value| value as i64)),
            Kind::U8 => Self::U8(store(on, arg, |value| value as u8)),
        }
    }

    fn values(&self, on: &B) -> Vec<f64> {
        fn wide<B: Backend, T: Number>(on: &B, buffer: &B::Buffer<T>, to: impl Fn(T) -> f64) -> Vec<f64> {
            on.download(buffer).unwrap().into_iter().map(to).collect()
        }
        match self {
            Self::Half(buffer) => wide(on, buffer, Float::to_f64),
            Self::Full(buffer) => wide(on, buffer, Float::to_f64),
            Self::I32(buffer) => wide(on, buffer, f64::from),
            Self::I64(buffer) => wide(on, buffer, |value| value as f64),
            Self::U8(buffer) => wide(on, buffer, f64::from),
        }
    }
}

/// The arguments of one call, each to be taken once.
pub(crate) struct Slots<'a, B: Backend> {
    pub(crate) on: &'a B,
    args: BTreeMap<&'static str, (&'a mut Stored<B>, Range<usize>)>,
}

macro_rules! take {
    ($read:ident, $write:ident, $kind:ident, $slice:ty, $slice_mut:ty) => {
        pub(crate) fn $read(&mut self, name: &str) -> $slice {
            match self.args.remove(name) {
                Some((Stored::$kind(buffer), range)) => self.on.slice(&*buffer).range(range),
                _ => panic!("no such argument to read: {name}"),
            }
        }

        pub(crate) fn $write(&mut self, name: &str) -> $slice_mut {
            match self.args.remove(name) {
                Some((Stored::$kind(buffer), range)) => {
                    self.on.slice_mut(buffer).split_at(range.start).1.split_at(range.len()).0
                }
                _ => panic!("no such argument to write: {name}"),
            }
        }
    };
}

impl<'a, B: Backend> Slots<'a, B> {
    take!(half, half_mut, Half, Half<'a, B>, HalfMut<'a, B>);
    take!(full, full_mut, Full, Full<'a, B>, FullMut<'a, B>);
    take!(i32, i32_mut, I32, Slice<'a, B, i32>, SliceMut<'a, B, i32>);

    pub(crate) fn i64(&mut self, name: &str) -> Slice<'a, B, i64> {
        match self.args.remove(name) {
            Some((Stored::I64(buffer), range)) => self.on.slice(&*buffer).range(range),
            _ => panic!("no such argument to read: {name}"),
        }
    }

    pub(crate) fn u8(&mut self, name: &str) -> Slice<'a, B, u8> {
        match self.args.remove(name) {
            Some((Stored::U8(buffer), range)) => self.on.slice(&*buffer).range(range),
            _ => panic!("no such argument to read: {name}"),
        }
    }
}

/// What an argument and its margins held before and after a call.
pub(crate) struct Memories {
    before: Vec<f64>,
    after: Vec<f64>,
}

impl Memories {
    /// The elements of the argument afterwards.
    pub(crate) fn elements(&self) -> &[f64] {
        &self.after[MARGIN..self.after.len() - MARGIN]
    }

    fn changed(&self) -> Vec<usize> {
        let pairs = self.before.iter().zip(&self.after);
        let differs = |(before, after): (&f64, &f64)| before.to_bits() != after.to_bits();
        pairs.enumerate().filter(|(_, pair)| differs(*pair)).map(|(at, _)| at).collect()
    }

    /// Whether every byte is as it was.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.changed().is_empty()
    }

    /// Whether every byte of the margins is.
    pub(crate) fn margins_are_unchanged(&self) -> bool {
        let within = MARGIN..self.after.len() - MARGIN;
        self.changed().iter().all(|at| within.contains(at))
    }
}

/// What is wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// An argument is by so many elements longer than it should be.
    Longer(&'static str, isize),
    /// The last element of an argument is another.
    Last(&'static str, f64),
}

/// Makes a call, with a change.
pub(crate) fn run<B: Backend>(on: &B, call: &Call, change: Change) -> (Result<()>, Vec<Memories>) {
    let mut args = call.args();
    for arg in &mut args {
        if let (Change::Last(name, value), Some(last)) = (change, arg.values.last_mut())
            && name == arg.name
        {
            *last = value;
        }
    }
    let mut stored: Vec<Stored<B>> = args.iter().map(|arg| Stored::new(on, arg)).collect();
    let before: Vec<Vec<f64>> = stored.iter().map(|stored| stored.values(on)).collect();
    let slots = stored.iter_mut().zip(&args).map(|(stored, arg)| {
        let by = match change {
            Change::Longer(name, by) if name == arg.name => by,
            _ => 0,
        };
        let end = (MARGIN + arg.len).checked_add_signed(by).expect("there is a margin");
        (arg.name, (stored, MARGIN..end))
    });
    let result = call.make(Slots { on, args: slots.collect() });
    let after = stored.iter().map(|stored| stored.values(on));
    let memories = before.into_iter().zip(after).map(|(before, after)| Memories { before, after });
    (result, memories.collect())
}
