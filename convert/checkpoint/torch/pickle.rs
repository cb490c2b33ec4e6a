//! A machine for the pickles that `torch.save` makes of state dicts. It builds plain values and executes nothing: the few
//! functions that such a pickle names are constructors known to it by name, and every other name is refused.
//!
//! Source: the opcodes' descriptions in Python's `pickletools.py`.

use byteorder::{ByteOrder, LE};
use qvl::error::{Error, Result};

use super::machine::{Machine, Value};
use super::objects::{self, Global};

/// Steps of one pickle; a shard with 1461 tensors takes some 60,000.
const MAX_STEPS: usize = 1 << 20;

/// Runs `pickle` to its end; the value is what it is of. Errors (kind model): it is cut off or damaged, or asks for anything
/// that a state dict does not need. Cost: at most `MAX_STEPS` steps, each of which allocates some 100 bytes at most.
pub fn run(pickle: &[u8]) -> Result<(Machine<'_>, Value)> {
    let mut machine = Machine::new(pickle);
    for _ in 0..MAX_STEPS {
        let start = machine.at();
        if step(&mut machine).map_err(|e| e.of(format!("byte {start} of its pickle")))? == Step::End {
            let top = machine.pop()?;
            return Ok((machine, top));
        }
    }
    Err(Error::model(format!("its pickle has more than {MAX_STEPS} steps, which no state dict needs")))
}

fn step(machine: &mut Machine) -> Result<Step> {
    let opcode = machine.take(1)?[0];
    match opcode {
        b'.' => return Ok(Step::End),
        // PROTO and FRAME say what follows, which is read as it comes.
        0x80 => machine.take(1).map(drop)?,
        0x95 => machine.take(8).map(drop)?,
        b'(' => machine.mark(),
        b'N' => machine.push(Value::None),
        0x88 => machine.push(Value::Bool(true)),
        0x89 => machine.push(Value::Bool(false)),
        b'K' => machine.take_int(1)?,
        b'M' => machine.take_int(2)?,
        b'J' => {
            let n = LE::read_i32(machine.take(4)?);
            machine.push(Value::Int(n.into()));
        }
        0x8a => {
            let n = machine.take(1)?[0];
            machine.take_long(n.into())?;
        }
        b'G' => {
            machine.take(8)?;
            machine.push(Value::Float);
        }
        b'X' => machine.take_text(4)?,
        0x8c => machine.take_text(1)?,
        0x8d => machine.take_text(8)?,
        b'}' => {
            let dict = machine.new_dict();
            machine.push(dict);
        }
        b']' => machine.push_list(Vec::new(), Value::List),
        b')' => machine.push_list(Vec::new(), Value::Tuple),
        b't' => {
            let items = machine.pop_mark()?;
            machine.push_list(items, Value::Tuple);
        }
        0x85..=0x87 => {
            let items = machine.pop_n(usize::from(opcode - 0x84))?;
            machine.push_list(items, Value::Tuple);
        }
        b'a' => {
            let item = machine.pop()?;
            machine.append(&[item])?;
        }
        b'e' => {
            let items = machine.pop_mark()?;
            machine.append(&items)?;
        }
        b's' => {
            let value = machine.pop()?;
            let key = machine.pop()?;
            machine.set_items(&[key, value])?;
        }
        b'u' => {
            let items = machine.pop_mark()?;
            machine.set_items(&items)?;
        }
        b'q' => {
            let key = machine.take(1)?[0];
            machine.memoize(key.into())?;
        }
        b'r' => {
            let key = LE::read_u32(machine.take(4)?);
            machine.memoize(key)?;
        }
        0x94 => {
            let key = machine.n_kept();
            machine.memoize(key)?;
        }
        b'h' => {
            let key = machine.take(1)?[0];
            machine.recall(key.into())?;
        }
        b'j' => {
            let key = LE::read_u32(machine.take(4)?);
            machine.recall(key)?;
        }
        // INST would call what it names at once: its name is all that is read of it.
        b'c' | b'i' => {
            let (module, name) = (machine.take_line()?, machine.take_line()?);
            let global = Global::named(module, name)?;
            if opcode == b'i' {
                return Err(not_needed(opcode));
            }
            machine.push(Value::Global(global));
        }
        0x93 => {
            let (name, module) = (machine.pop()?, machine.pop()?);
            let (Some(module), Some(name)) = (machine.text(module), machine.text(name)) else {
                return Err(Error::model("the name of a class is not a text"));
            };
            machine.push(Value::Global(Global::named(module, name)?));
        }
        b'Q' => {
            let id = machine.pop()?;
            let storage = objects::storage(machine, id)?;
            machine.push(storage);
        }
        b'R' => {
            let (arguments, function) = (machine.pop()?, machine.pop()?);
            let made = objects::reduce(machine, function, arguments)?;
            machine.push(made);
        }
        // Attributes of the dict, such as `_metadata`, are not weights.
        b'b' => {
            let _attributes = machine.pop()?;
            if !matches!(machine.last(), Some(Value::Dict(_))) {
                return Err(Error::model("it sets attributes of something that is not a dict"));
            }
        }
        _ => return Err(not_needed(opcode)),
    }
    Ok(Step::Next)
}

#[derive(PartialEq)]
enum Step {
    Next,
    End,
}

fn not_needed(opcode: u8) -> Error {
    let shown = if opcode.is_ascii_graphic() { format!("'{}'", opcode as char) } else { format!("{opcode:#04x}") };
    Error::model(format!("it has the opcode {shown}, which no state dict needs; refused"))
}
