//! The part of pickle that files of weights need, as data: nothing a pickle names is ever looked up or called.
//!
//! Understood are the opcodes that `torch.save` writes (protocols 2 to 5) for tensors in dicts, lists and tuples, and
//! the few names of [`Known`]. Any other opcode or name is an error with its place.
//!
//! Every opcode makes at most one object, and what is taken from the memo is the same object, not a copy: memory is a
//! small multiple of the pickle's length whatever it holds. Ours rather than `candle_core::pickle` because that one
//! copies what it takes from the memo (so that a few hundred bytes can fill any memory), reserves what lengths claim,
//! and skips nested dicts without a word.
//!
//! Source: opcodes from CPython's `Lib/pickletools.py`, names and argument order from `torch/_utils.py`.

use super::WeightsError;
use super::elements::{ElementType, can_be_counted};
use super::error::shown;
use std::collections::{BTreeMap, HashMap};

/// Most objects in one pickle; a checkpoint of 1000 tensors with its optimizer needs some 50 000.
const MAX_OBJECTS: usize = 1 << 20;
/// Deepest nesting of dicts, lists and tuples around a tensor.
const MAX_DEPTH: usize = 32;
/// Longest name of a tensor, dots included.
const MAX_NAME_BYTES: usize = 1024;
/// Names of tensors together take at most this many bytes for each byte of the pickle; in files of torch it is less
/// than one, and only a dict that holds another many times over needs more.
const MAX_NAMES_TO_PICKLE: usize = 16;
/// Most dimensions of a tensor.
const MAX_DIMS: usize = 16;
/// Longest name of a module or class.
const MAX_GLOBAL_BYTES: usize = 256;

/// A run of numbers in a file of its own inside the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    /// Name of the file below `data/`.
    pub(super) key: String,
    pub(super) element: ElementType,
    pub(super) count: usize,
}

/// Where the numbers of a tensor lie in a storage. Every index it reaches is inside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct View {
    pub(super) storage: usize,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl View {
    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the numbers follow each other, rows first.
    pub(super) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected *= size;
            fits
        })
    }
}

/// What a pickle says.
#[derive(Debug)]
pub(super) struct Pickled {
    pub(super) storages: Vec<Storage>,
    pub(super) views: Vec<View>,
    /// Names joined by dots, in the order of the file, each with its place in `views`.
    pub(super) tensors: Vec<(String, usize)>,
}

/// Reads a whole pickle.
pub(super) fn read(pickle: &[u8]) -> Result<Pickled, WeightsError> {
    let mut machine = Machine::new(pickle);
    let root = machine.run()?;
    machine.collect(root)
}

/// Place of an object in the arena.
type Id = usize;

#[derive(Debug)]
enum Object<'a> {
    /// A value that is no part of a tensor: None, a float, the hooks of a tensor.
    Other,
    Bool,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Known(Known),
    Storage(usize),
    /// Place in `views`.
    Tensor(usize),
}

impl Object<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Other => "a value without meaning here",
            Self::Bool => "a bool",
            Self::Int(_) => "an int",
            Self::Text(_) => "a str",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Known(_) => "a name",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// The names a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(ElementType),
}

fn known(module: &str, name: &str) -> Option<Known> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Known::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Known::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Known::RebuildParameter,
        ("torch", "DoubleStorage") => Known::Storage(ElementType::F64),
        ("torch", "FloatStorage") => Known::Storage(ElementType::F32),
        ("torch", "HalfStorage") => Known::Storage(ElementType::F16),
        ("torch", "BFloat16Storage") => Known::Storage(ElementType::BF16),
        ("torch", "LongStorage") => Known::Storage(ElementType::I64),
        ("torch", "IntStorage") => Known::Storage(ElementType::I32),
        ("torch", "ShortStorage") => Known::Storage(ElementType::I16),
        ("torch", "CharStorage") => Known::Storage(ElementType::I8),
        ("torch", "ByteStorage" | "BoolStorage") => Known::Storage(ElementType::U8),
        _ => return None,
    })
}

/// A problem without its place.
struct Problem(String);

impl From<&str> for Problem {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    storages: Vec<Storage>,
    storage_of_key: BTreeMap<String, usize>,
    views: Vec<View>,
}

/// Pickle's opcodes under the names of `pickletools`.
mod op {
    pub(super) const MARK: u8 = b'(';
    pub(super) const STOP: u8 = b'.';
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const NONE: u8 = b'N';
    pub(super) const BINPERSID: u8 = b'Q';
    pub(super) const REDUCE: u8 = b'R';
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const BUILD: u8 = b'b';
    pub(super) const GLOBAL: u8 = b'c';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const BINUNICODE8: u8 = 0x8d;
    pub(super) const STACK_GLOBAL: u8 = 0x93;
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const FRAME: u8 = 0x95;
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            storages: Vec::new(),
            storage_of_key: BTreeMap::new(),
            views: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<Id, WeightsError> {
        loop {
            let at = self.at;
            match self.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(root),
                Err(Stopped::Problem(problem)) => return Err(WeightsError::Pickle { at, problem }),
                Err(Stopped::Global(name)) => return Err(WeightsError::Global { at, name }),
            }
        }
    }

    /// Does one opcode; the last one gives the root.
    fn step(&mut self) -> Result<Option<Id>, Stopped> {
        let opcode = self.number::<1>()? as u8;
        match opcode {
            op::PROTO => {
                let protocol = self.number::<1>()?;
                if !(2..=5).contains(&protocol) {
                    return Err(Problem(format!("protocol {protocol}, known are 2 to 5")).into());
                }
            }
            op::FRAME => {
                self.take(8)?;
            }
            op::STOP => return Ok(Some(self.pop()?)),
            op::MARK => self.marks.push(self.stack.len()),
            op::NONE => self.push(Object::Other)?,
            op::NEWTRUE | op::NEWFALSE => self.push(Object::Bool)?,
            op::BININT => {
                let value = self.number::<4>()? as u32;
                self.push(Object::Int(value.cast_signed().into()))?;
            }
            op::BININT1 => {
                let value = self.number::<1>()?;
                self.push(Object::Int(value.cast_signed()))?;
            }
            op::BININT2 => {
                let value = self.number::<2>()?;
                self.push(Object::Int(value.cast_signed()))?;
            }
            op::LONG1 => {
                let value = self.long()?;
                self.push(Object::Int(value))?;
            }
            op::BINFLOAT => {
                self.take(8)?;
                self.push(Object::Other)?;
            }
            op::SHORT_BINUNICODE => {
                let length = self.number::<1>()?;
                self.text(length)?;
            }
            op::BINUNICODE => {
                let length = self.number::<4>()?;
                self.text(length)?;
            }
            op::BINUNICODE8 => {
                let length = self.number::<8>()?;
                self.text(length)?;
            }
            op::EMPTY_TUPLE => self.push(Object::Tuple(Vec::new()))?,
            op::EMPTY_LIST => self.push(Object::List(Vec::new()))?,
            op::EMPTY_DICT => self.push(Object::Dict(Vec::new()))?,
            op::TUPLE1 => self.tuple_of(1)?,
            op::TUPLE2 => self.tuple_of(2)?,
            op::TUPLE3 => self.tuple_of(3)?,
            op::TUPLE => {
                let items = self.pop_to_mark()?;
                self.push(Object::Tuple(items))?;
            }
            op::APPEND => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            op::APPENDS => {
                let items = self.pop_to_mark()?;
                self.extend_list(&items)?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])?;
            }
            op::SETITEMS => {
                let items = self.pop_to_mark()?;
                self.extend_dict(&items)?;
            }
            op::BINPUT => {
                let place = self.number::<1>()?;
                self.memoize(place)?;
            }
            op::LONG_BINPUT => {
                let place = self.number::<4>()?;
                self.memoize(place)?;
            }
            op::MEMOIZE => self.memoize(self.memo.len() as u64)?,
            op::BINGET => {
                let place = self.number::<1>()?;
                self.recall(place)?;
            }
            op::LONG_BINGET => {
                let place = self.number::<4>()?;
                self.recall(place)?;
            }
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Object::Text(module), Object::Text(name)) = (&self.objects[module], &self.objects[name])
                else {
                    return Err(Problem::from("a name that is not made of two strings").into());
                };
                self.global(module, name)?;
            }
            op::BINPERSID => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Object::Storage(storage))?;
            }
            op::REDUCE => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let made = self.rebuild(callable, arguments)?;
                self.push(made)?;
            }
            op::BUILD => {
                // Attributes of a state dict: the versions of its modules.
                self.pop()?;
                let object = &self.objects[self.top()?];
                if !matches!(object, Object::Dict(_)) {
                    return Err(Problem(format!("attributes for {}", object.kind())).into());
                }
            }
            other => return Err(Problem(format!("opcode {other:#04x} is not known")).into()),
        }
        Ok(None)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let bytes = self.bytes[self.at..].get(..count).ok_or("ends too early")?;
        self.at += count;
        Ok(bytes)
    }

    /// An unsigned little-endian number of `N` bytes, at most 8.
    fn number<const N: usize>(&mut self) -> Result<u64, Problem> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// A signed number with its length before it.
    fn long(&mut self) -> Result<i64, Problem> {
        let length = self.number::<1>()? as usize;
        if length > 8 {
            return Err(format!("an int of {length} bytes, at most 8 are read").as_str().into());
        }
        let bytes = self.take(length)?;
        let is_negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut wide = [if is_negative { 0xff } else { 0 }; 8];
        wide[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }

    fn text(&mut self, length: u64) -> Result<(), Problem> {
        let length = usize::try_from(length).map_err(|_| Problem::from("ends too early"))?;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Problem::from("a string that is not UTF-8"))?;
        self.push(Object::Text(text))
    }

    fn line(&mut self) -> Result<&'a str, Problem> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take(MAX_GLOBAL_BYTES + 1).position(|byte| *byte == b'\n');
        let bytes = self.take(length.ok_or("a name that does not end")?)?;
        self.take(1)?;
        std::str::from_utf8(bytes).map_err(|_| "a name that is not UTF-8".into())
    }

    fn push(&mut self, object: Object<'a>) -> Result<(), Problem> {
        if self.objects.len() == MAX_OBJECTS {
            return Err(Problem(format!("more than {MAX_OBJECTS} objects")));
        }
        self.stack.push(self.objects.len());
        self.objects.push(object);
        Ok(())
    }

    /// What lies below the last open mark cannot be reached.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, Problem> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn top(&self) -> Result<Id, Problem> {
        self.stack[self.floor()..].last().copied().ok_or_else(|| "nothing is there to take".into())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Problem> {
        let height = self.marks.pop().ok_or("an end without its beginning")?;
        Ok(self.stack.split_off(height))
    }

    fn tuple_of(&mut self, count: usize) -> Result<(), Problem> {
        let mut items = vec![0; count];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        self.push(Object::Tuple(items))
    }

    fn extend_list(&mut self, items: &[Id]) -> Result<(), Problem> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::List(list) => list.extend(items),
            other => return Err(Problem(format!("items for {}", other.kind()))),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), Problem> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a key without its value".into());
        }
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::Dict(dict) => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            other => return Err(Problem(format!("keys for {}", other.kind()))),
        }
        Ok(())
    }

    fn memoize(&mut self, place: u64) -> Result<(), Problem> {
        let id = self.top()?;
        self.memo.insert(place, id);
        Ok(())
    }

    fn recall(&mut self, place: u64) -> Result<(), Problem> {
        let id = self.memo.get(&place).ok_or_else(|| Problem(format!("nothing is remembered as {place}")))?;
        self.stack.push(*id);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Stopped> {
        let known = known(module, name).ok_or_else(|| Stopped::Global(shown(&format!("{module}.{name}"))))?;
        Ok(self.push(Object::Known(known))?)
    }

    fn items(&self, id: Id) -> Result<&[Id], Problem> {
        match &self.objects[id] {
            Object::Tuple(items) => Ok(items),
            other => Err(Problem(format!("{} where a tuple is expected", other.kind()))),
        }
    }

    /// An int of at least 0.
    fn size(&self, id: Id) -> Result<usize, Problem> {
        match self.objects[id] {
            Object::Int(value) => usize::try_from(value).map_err(|_| Problem(format!("{value} is negative"))),
            ref other => Err(Problem(format!("{} where an int is expected", other.kind()))),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, Problem> {
        let items = self.items(id)?;
        if items.len() > MAX_DIMS {
            return Err(Problem(format!("{} dimensions, at most {MAX_DIMS} are read", items.len())));
        }
        items.iter().map(|item| self.size(*item)).collect()
    }

    /// `("storage", type, key, device, number of elements)`.
    fn storage(&mut self, id: Id) -> Result<usize, Problem> {
        let &[kind, of, key, _device, count] = self.items(id)? else {
            return Err("a reference that does not have five parts".into());
        };
        let (Object::Text("storage"), Object::Known(Known::Storage(element)), Object::Text(key)) =
            (&self.objects[kind], &self.objects[of], &self.objects[key])
        else {
            return Err("a reference to something else than a storage".into());
        };
        let storage = Storage { key: (*key).to_owned(), element: *element, count: self.size(count)? };
        if storage.key.len() > MAX_NAME_BYTES {
            return Err("a storage with an endless name".into());
        }
        match self.storage_of_key.get(*key) {
            Some(&known) if self.storages[known] == storage => Ok(known),
            Some(_) => Err(Problem(format!("storage `{}` is described in two ways", shown(key)))),
            None => {
                self.storage_of_key.insert(storage.key.clone(), self.storages.len());
                self.storages.push(storage);
                Ok(self.storages.len() - 1)
            }
        }
    }

    /// What a call of a known name would make.
    fn rebuild(&mut self, callable: Id, arguments: Id) -> Result<Object<'a>, Problem> {
        let Object::Known(known) = self.objects[callable] else {
            return Err(Problem(format!("a call of {}", self.objects[callable].kind())));
        };
        let arguments = self.items(arguments)?;
        match known {
            Known::OrderedDict if arguments.is_empty() => Ok(Object::Dict(Vec::new())),
            Known::RebuildTensor => {
                let (&[storage, offset, shape, strides, _, _] | &[storage, offset, shape, strides, _, _, _]) =
                    arguments
                else {
                    return Err("a tensor that does not have six or seven parts".into());
                };
                let Object::Storage(storage) = self.objects[storage] else {
                    return Err("a tensor without a storage".into());
                };
                let view = View {
                    storage,
                    offset: self.size(offset)?,
                    shape: self.sizes(shape)?,
                    strides: self.sizes(strides)?,
                };
                self.check(&view)?;
                self.views.push(view);
                Ok(Object::Tensor(self.views.len() - 1))
            }
            Known::RebuildParameter => match arguments {
                &[data, _, _] => match self.objects[data] {
                    Object::Tensor(view) => Ok(Object::Tensor(view)),
                    ref other => Err(Problem(format!("a parameter made of {}", other.kind()))),
                },
                _ => Err("a parameter that does not have three parts".into()),
            },
            Known::OrderedDict | Known::Storage(_) => Err("a call with arguments that are not known".into()),
        }
    }

    /// That every number of a tensor lies in its storage.
    fn check(&self, view: &View) -> Result<(), Problem> {
        let (shape, strides) = (&view.shape, &view.strides);
        if shape.len() != strides.len() {
            return Err(Problem(format!("a tensor of shape {shape:?} with strides {strides:?}")));
        }
        let count = self.storages[view.storage].count;
        let mut last = Some(view.offset);
        for (size, stride) in shape.iter().zip(strides) {
            let step = size.saturating_sub(1).checked_mul(*stride);
            last = last.zip(step).and_then(|(last, step)| last.checked_add(step));
        }
        let is_inside = match shape.contains(&0) {
            true => view.offset <= count,
            false => last.is_some_and(|last| last < count),
        };
        if is_inside && can_be_counted(shape) {
            return Ok(());
        }
        let offset = view.offset;
        Err(Problem(format!(
            "a tensor of shape {shape:?}, strides {strides:?}, offset {offset} in a storage of {count} elements"
        )))
    }

    /// The tensors below the root, by name.
    fn collect(self, root: Id) -> Result<Pickled, WeightsError> {
        let mut walk = Walk { machine: &self, tensors: Vec::new(), num_visits: 0, name_bytes: 0 };
        let at = self.at;
        walk.visit(root, &mut String::new(), 0)
            .map_err(|Problem(problem)| WeightsError::Pickle { at, problem })?;
        let tensors = walk.tensors;
        Ok(Pickled { storages: self.storages, views: self.views, tensors })
    }
}

/// Why an opcode cannot be done.
enum Stopped {
    Problem(String),
    Global(String),
}

impl From<Problem> for Stopped {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem.0)
    }
}

/// Goes through the objects from the root. They may form a circle, or hold each other many times over.
struct Walk<'m, 'a> {
    machine: &'m Machine<'a>,
    tensors: Vec<(String, usize)>,
    num_visits: usize,
    name_bytes: usize,
}

impl Walk<'_, '_> {
    fn visit(&mut self, id: Id, name: &mut String, depth: usize) -> Result<(), Problem> {
        self.num_visits += 1;
        if depth > MAX_DEPTH {
            return Err(Problem(format!("more than {MAX_DEPTH} dicts or lists in each other")));
        }
        let machine = self.machine;
        // It takes a byte at least to put a value into a dict: more visits than that come from going in circles.
        if self.num_visits > machine.bytes.len() {
            return Err("dicts or lists that hold each other again and again".into());
        }
        match &machine.objects[id] {
            Object::Dict(pairs) => {
                for (key, value) in pairs {
                    match &machine.objects[*key] {
                        Object::Text(key) => self.visit_below(*value, key, name, depth)?,
                        Object::Int(key) => self.visit_below(*value, &key.to_string(), name, depth)?,
                        other => return Err(Problem(format!("{} as the key of a dict", other.kind()))),
                    }
                }
            }
            Object::List(items) | Object::Tuple(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.visit_below(*item, &index.to_string(), name, depth)?;
                }
            }
            Object::Tensor(_) if depth == 0 => return Err("a single tensor, which has no name".into()),
            Object::Tensor(view) => {
                self.name_bytes += name.len();
                if self.name_bytes > MAX_NAMES_TO_PICKLE * machine.bytes.len() {
                    return Err("names of tensors that are far longer than the file".into());
                }
                self.tensors.push((name.clone(), *view));
            }
            Object::Other | Object::Bool | Object::Int(_) | Object::Text(_) => {}
            Object::Known(_) | Object::Storage(_) => {
                return Err(Problem(format!("{} beside the tensors", machine.objects[id].kind())));
            }
        }
        Ok(())
    }

    fn visit_below(&mut self, id: Id, key: &str, name: &mut String, depth: usize) -> Result<(), Problem> {
        let length = name.len();
        if depth > 0 {
            name.push('.');
        }
        if name.len() + key.len() > MAX_NAME_BYTES {
            return Err(Problem(format!("a name of more than {MAX_NAME_BYTES} bytes")));
        }
        name.push_str(key);
        self.visit(id, name, depth + 1)?;
        name.truncate(length);
        Ok(())
    }
}
