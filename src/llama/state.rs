//! What llama.cpp writes of a sequence's cache, read far enough to prove it before it is given back: bytes that come from a
//! file may say anything.
//!
//! The layout is that of `llama_kv_cache::state_write` and `state_seq_get_data` in the pinned llama.cpp, little-endian. A test
//! that saves and restores guards it.

use crate::error::{Error, Result};
use crate::ggml::c_type;
use crate::quant::GgmlType;

const MAGIC: u32 = 0xaf14_3cd8;

/// What a state must be of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub n_layer: usize,
    /// Values of a key, and of a value, of one position and layer.
    pub n_embd: usize,
    pub type_k: GgmlType,
    pub type_v: GgmlType,
    /// Whether values lie transposed, as they do without flash attention.
    pub is_transposed: bool,
}

/// Proves that `state` holds positions 0 to `n_positions`, each once, of one sequence in this shape, and nothing else. What the
/// numbers are is not looked at. Errors: what differs.
pub(super) fn prove(state: &[u8], n_positions: usize, shape: &Shape) -> Result<()> {
    let mut rest = Reader(state);
    rest.expect("magic", MAGIC)?;
    rest.u32()?; // the sequence that it was of
    rest.expect("streams", 1)?;
    rest.expect("positions", n_positions as u32)?;
    if n_positions == 0 {
        return rest.end();
    }
    let mut seen = vec![false; n_positions];
    for _ in 0..n_positions {
        let position = rest.u32()? as usize;
        match seen.get_mut(position) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(Error::other(format!("position {position} of {n_positions} is there twice or beyond"))),
        }
        rest.expect("sequences of a position", 1)?;
        rest.u32()?;
    }
    rest.expect("transposition", shape.is_transposed.into())?;
    rest.expect("layers", shape.n_layer as u32)?;
    // Whether llama.cpp rotates what it quantises: it compares these itself.
    rest.skip(8)?;
    for _ in 0..shape.n_layer {
        rest.rows(shape.type_k, shape.n_embd, n_positions)?;
    }
    for _ in 0..shape.n_layer {
        if shape.is_transposed {
            rest.expect("type of values", c_type(shape.type_v))?;
            rest.expect("bytes of a value", shape.type_v.block_bytes() as u32)?;
            rest.expect("width of values", shape.n_embd as u32)?;
            rest.skip(shape.type_v.block_bytes() as usize * shape.n_embd * n_positions)?;
        } else {
            rest.rows(shape.type_v, shape.n_embd, n_positions)?;
        }
    }
    rest.end()
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, n: usize) -> Result<&[u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or_else(|| Error::other("it is cut short"))?;
        self.0 = tail;
        Ok(head)
    }

    fn skip(&mut self, n: usize) -> Result<()> {
        self.take(n).map(drop)
    }

    fn u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(bytes))
    }

    fn expect(&mut self, what: &str, expected: u32) -> Result<()> {
        match self.u32()? {
            found if found == expected => Ok(()),
            found => Err(Error::other(format!("{what}: expected {expected}, found {found}"))),
        }
    }

    /// A type, the bytes of a row, and rows.
    fn rows(&mut self, ty: GgmlType, n_embd: usize, n: usize) -> Result<()> {
        let row_bytes = ty.row_bytes(n_embd as u64).unwrap_or(0);
        self.expect("type of a layer", c_type(ty))?;
        self.expect("bytes of a row", row_bytes as u32)?;
        self.expect("bytes of a row (upper half)", 0)?;
        self.skip(row_bytes as usize * n)
    }

    fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::other(format!("{} bytes too many", self.0.len()))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { n_layer: 2, n_embd: 4, type_k: GgmlType::F16, type_v: GgmlType::F32, is_transposed: false };

    /// Words of a sound state of two positions: the second one first.
    fn words() -> Vec<u32> {
        let rows = |ty: GgmlType, bytes: u32| [vec![c_type(ty), bytes, 0], vec![7; 2 * bytes as usize / 4]].concat();
        let head = vec![MAGIC, 5, 1, 2, 1, 1, 5, 0, 1, 5, 0, 2, 0, 0];
        let (k, v) = (rows(GgmlType::F16, 8), rows(GgmlType::F32, 16));
        [head, k.clone(), k, v.clone(), v].concat()
    }

    fn proven(words: &[u32]) -> Result<()> {
        prove(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>(), 2, &SHAPE)
    }

    #[test]
    fn a_sound_state_is_proven() {
        proven(&words()).unwrap();
    }

    /// Every word but sequence ids, rotations and numbers counts.
    #[test]
    fn what_differs_is_found() {
        let free = |k: usize| [1, 6, 9, 12, 13].contains(&k) || words()[k] == 7;
        for k in (0..words().len()).filter(|k| !free(*k)) {
            let mut changed = words();
            changed[k] ^= 0x4000_0001;
            assert!(proven(&changed).is_err(), "word {k}");
        }
        let mut twice = words();
        twice[4] = 0;
        assert!(proven(&twice).is_err());
        for n in 0..words().len() {
            assert!(proven(&words()[..n]).is_err(), "cut after {n} words");
        }
        assert!(proven(&[words(), vec![0]].concat()).is_err());
    }
}
