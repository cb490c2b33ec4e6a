//! The printable alphabet in which GGUF files spell byte-level tokens: one character for each byte.
//!
//! Source: GPT-2's byte-to-unicode table (openai/gpt-2, `encoder.py`), which the field has kept. The printable
//! characters of Latin-1 stand for themselves; the other 68 bytes take U+0100, U+0101, .. in order.

/// The first character that stands for a byte which is not printable.
const FIRST_SUBSTITUTE: u32 = 0x100;

/// Whether the character of Latin-1 with this code stands for itself.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The bytes that need a substitute, in the order of their substitutes.
fn unprintable() -> impl Iterator<Item = u8> {
    (0..=u8::MAX).filter(|&byte| !is_printable(byte))
}

/// Both directions of the table. Built in a few hundred steps; 1.8 KiB.
#[derive(Clone, Debug)]
pub struct Alphabet {
    /// `[256]`, byte → character.
    chars: [char; 256],
    /// `[0x100 + 68]`, code point → byte.
    bytes: Vec<Option<u8>>,
}

impl Default for Alphabet {
    fn default() -> Self {
        Self::new()
    }
}

impl Alphabet {
    /// The table; there is only one.
    pub fn new() -> Self {
        let mut chars: [char; 256] = std::array::from_fn(|byte| char::from(byte as u8));
        let substitutes = unprintable().zip(FIRST_SUBSTITUTE..);
        for (byte, character) in substitutes.filter_map(|(byte, code)| Some((byte, char::from_u32(code)?))) {
            chars[usize::from(byte)] = character;
        }
        let mut bytes = vec![None; FIRST_SUBSTITUTE as usize + unprintable().count()];
        for byte in 0..=u8::MAX {
            bytes[chars[usize::from(byte)] as usize] = Some(byte);
        }
        Alphabet { chars, bytes }
    }

    /// The spelling of a token's bytes. Allocates the string.
    pub fn spell(&self, token: &[u8]) -> String {
        token.iter().map(|&byte| self.chars[usize::from(byte)]).collect()
    }

    /// Appends the bytes that `spelling` stands for to `out`; `None` (with `out` half-extended) if it holds a
    /// character that stands for no byte.
    pub fn read_into(&self, spelling: &str, out: &mut Vec<u8>) -> Option<()> {
        for character in spelling.chars() {
            out.push((*self.bytes.get(character as usize)?)?);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_as_gpt_2_does() {
        let alphabet = Alphabet::new();
        assert_eq!(alphabet.spell(b"A b\n\0\x7f\xad\xff"), "A\u{120}b\u{10a}\u{100}\u{121}\u{143}\u{ff}");
    }

    #[test]
    fn reads_back_what_it_spells_and_nothing_else() {
        let alphabet = Alphabet::new();
        let all: Vec<u8> = (0..=255).collect();
        let mut back = Vec::new();
        assert_eq!(alphabet.read_into(&alphabet.spell(&all), &mut back), Some(()));
        assert_eq!(back, all);
        for stranger in ["a b", "\u{ad}", "\u{144}", "图", "\n"] {
            assert_eq!(alphabet.read_into(stranger, &mut Vec::new()), None, "{stranger:?}");
        }
    }
}
