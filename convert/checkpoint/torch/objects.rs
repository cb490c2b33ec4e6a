//! The few classes and functions of a state dict's pickle: storages, tensors, parameters, ordered dicts.
//!
//! Source: what each takes is in PyTorch's `torch/_utils.py`, persistent ids in `torch/serialization.py`.

use qvl::error::{Error, Result};

use super::machine::{Machine, Value};
use crate::checkpoint::DType;

/// More axes than any weight has.
const MAX_AXES: usize = 8;
/// More arguments than any of the known functions takes.
const MAX_ARGUMENTS: usize = 8;
/// Longest key of a storage (bytes), and longest part of a refused name that is shown (characters).
const MAX_KEY: usize = 64;

/// A class or function that a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`, also with attributes.
    RebuildParameter,
    /// A storage's class.
    Storage(Kind),
}

/// What a storage's class says of its values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kind {
    /// Type of its values.
    pub dtype: DType,
    /// Bytes a value.
    pub n_bytes: u64,
}

/// The storage classes of module `torch`.
const STORAGES: [(&str, DType, u64); 13] = [
    ("FloatStorage", DType::F32, 4),
    ("HalfStorage", DType::F16, 2),
    ("BFloat16Storage", DType::BF16, 2),
    ("IntStorage", DType::I32, 4),
    ("DoubleStorage", DType::Other("float64"), 8),
    ("LongStorage", DType::Other("int64"), 8),
    ("ShortStorage", DType::Other("int16"), 2),
    ("CharStorage", DType::Other("int8"), 1),
    ("ByteStorage", DType::Other("uint8"), 1),
    ("BoolStorage", DType::Other("bool"), 1),
    ("ComplexFloatStorage", DType::Other("complex64"), 8),
    ("ComplexDoubleStorage", DType::Other("complex128"), 16),
    ("QInt8Storage", DType::Other("qint8"), 1),
];

impl Global {
    /// The one of this name. Errors (kind model): any name that a state dict does not need.
    pub fn named(module: &str, name: &str) -> Result<Self> {
        let storage = STORAGES.iter().find(|row| module == "torch" && row.0 == name);
        match (module, name, storage) {
            (_, _, Some((_, dtype, n_bytes))) => Ok(Global::Storage(Kind { dtype: *dtype, n_bytes: *n_bytes })),
            ("collections", "OrderedDict", _) => Ok(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2", _) => Ok(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", _) => Ok(Global::RebuildParameter),
            _ => {
                let shown: String = format!("{module}.{name}").chars().take(MAX_KEY).collect();
                Err(Error::model(format!(
                    "it asks for {shown}, which no state dict of weights needs; refused, and nothing was executed"
                )))
            }
        }
    }
}

/// Values of one type in a row, which tensors look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Name of its entry in the archive, below `data/`.
    pub key: String,
    /// Its class.
    pub kind: Kind,
    /// Its values.
    pub n_values: u64,
}

/// A tensor: which values of a storage it has, in which order. They are inside the storage.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Index into [`Machine::storages`].
    pub storage: usize,
    /// First value.
    pub first: u64,
    /// Shape.
    pub shape: Vec<u64>,
    /// Values from one index of an axis to the next.
    pub strides: Vec<u64>,
}

/// The storage of a persistent id: ("storage", class, key, device, number of values).
pub fn storage(machine: &mut Machine, id: Value) -> Result<Value> {
    let wrong = || Error::model("a persistent id is not that of a storage");
    let &[tag, Value::Global(Global::Storage(kind)), key, _device, Value::Int(n_values)] =
        machine.tuple(id).ok_or_else(wrong)?
    else {
        return Err(wrong());
    };
    let key = machine.text(key).filter(|key| key.len() <= MAX_KEY).ok_or_else(wrong)?.to_owned();
    let n_values = u64::try_from(n_values).map_err(|_| wrong())?;
    if machine.text(tag) != Some("storage") {
        return Err(wrong());
    }
    machine.storages.push(Storage { key, kind, n_values });
    Ok(Value::Storage(machine.storages.len() - 1))
}

/// What a call of one of the known functions makes.
pub fn reduce(machine: &mut Machine, function: Value, arguments: Value) -> Result<Value> {
    let Value::Global(global) = function else {
        return Err(Error::model(format!("it calls {}", function.kind())));
    };
    let others = || Error::model("a call has other arguments than those of a state dict");
    let arguments = machine.tuple(arguments).filter(|a| a.len() <= MAX_ARGUMENTS).ok_or_else(others)?.to_vec();
    match (global, arguments.as_slice()) {
        (Global::OrderedDict, []) => Ok(machine.new_dict()),
        // What follows says whether it is trained, and which attributes it has beside.
        (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(*tensor),
        (Global::RebuildTensor, [Value::Storage(storage), Value::Int(first), size, stride, _, _, rest @ ..]) => {
            refuse_lazy_signs(machine, rest)?;
            let view = view(machine, *storage, *first, *size, *stride)?;
            machine.views.push(view);
            Ok(Value::Tensor(machine.views.len() - 1))
        }
        _ => Err(others()),
    }
}

/// A tensor may be marked as the negative or the conjugate of its storage, in a last argument that usually is absent.
fn refuse_lazy_signs(machine: &Machine, rest: &[Value]) -> Result<()> {
    match rest {
        [] | [Value::None] => Ok(()),
        [Value::Dict(i)] if machine.dicts[*i].is_empty() => Ok(()),
        _ => Err(Error::model("a tensor is stored with metadata (such as neg); call .resolve_neg() before saving")),
    }
}

/// Proves that a tensor's values are inside its storage.
fn view(machine: &Machine, storage: usize, first: i64, size: Value, stride: Value) -> Result<View> {
    let counts = |value: Value| {
        let items = machine.tuple(value).filter(|items| items.len() <= MAX_AXES)?;
        let count = |item: &Value| if let Value::Int(n) = item { u64::try_from(*n).ok() } else { None };
        items.iter().map(count).collect::<Option<Vec<u64>>>()
    };
    let proven = || {
        let (shape, strides) = (counts(size)?, counts(stride)?);
        let first = u64::try_from(first).ok()?;
        // The number of values, and of their bytes in f32, must be one.
        shape.iter().try_fold(4u64, |n, axis| n.checked_mul((*axis).max(1)))?;
        let is_empty = shape.contains(&0);
        let steps = shape.iter().zip(&strides).map(|(n, stride)| n.saturating_sub(1).checked_mul(*stride));
        let last = steps.into_iter().try_fold(first, |sum, step| sum.checked_add(step?))?;
        let inside = is_empty || last < machine.storages[storage].n_values;
        let first = if is_empty { 0 } else { first };
        (shape.len() == strides.len() && inside).then_some(View { storage, first, shape, strides })
    };
    proven().ok_or_else(|| {
        let n = machine.storages[storage].n_values;
        Error::model(format!("a tensor's shape and strides do not fit its storage of {n} values"))
    })
}
