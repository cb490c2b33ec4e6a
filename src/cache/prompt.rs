//! The file of a prompt's state: all of it is proven when it is read, but what the state says; whoever uses it does that.
//!
//! Little-endian: `QVLPROMP`, version (u32), the key (32 bytes), the state, SHA-256 over all of that.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::Key;

const MAGIC: &[u8; 8] = b"QVLPROMP";
const VERSION: u32 = 1;
/// Bytes before the state.
const N_HEAD: usize = 44;
/// Bytes behind it.
const N_CHECKSUM: usize = 32;

/// Bytes of the file of a state of this length.
pub fn n_bytes(n_state: u64) -> u64 {
    n_state.saturating_add((N_HEAD + N_CHECKSUM) as u64)
}

fn head(key: &Key) -> [u8; N_HEAD] {
    let mut head = [0; N_HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[12..].copy_from_slice(key.as_bytes());
    head
}

/// Writes one. Errors: what the writer says. Cost: a hash over the state, no copy.
pub fn write(mut out: impl Write, key: &Key, state: &[u8]) -> io::Result<()> {
    let head = head(key);
    let checksum = Sha256::new().chain_update(head).chain_update(state).finalize();
    out.write_all(&head)?;
    out.write_all(state)?;
    out.write_all(&checksum)
}

/// The state in a file of `n_file` bytes, itself of at most `max_bytes`; `None` if it is not, bit for bit, what [`write`] wrote
/// for `key`. Errors: what the reader says. Cost: allocates the state, but not before the file is known to be of this key.
pub fn read(mut file: impl Read, n_file: u64, key: &Key, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let n_state = n_file.checked_sub(n_bytes(0)).filter(|n| *n <= max_bytes);
    let Some(n_state) = n_state.and_then(|n| usize::try_from(n).ok()) else { return Ok(None) };
    let (expect, mut found) = (head(key), [0; N_HEAD]);
    file.read_exact(&mut found)?;
    if found != expect {
        return Ok(None);
    }
    let mut state = vec![0; n_state];
    let mut checksum = [0; N_CHECKSUM];
    file.read_exact(&mut state)?;
    file.read_exact(&mut checksum)?;
    let is_sound = Sha256::new().chain_update(expect).chain_update(&state).finalize()[..] == checksum;
    Ok(is_sound.then_some(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_and_every_length_is_proven() {
        let (key, state) = (Key::of_bytes(b"a"), *b"what was read");
        let mut bytes = Vec::new();
        write(&mut bytes, &key, &state).unwrap();
        assert_eq!(bytes.len() as u64, n_bytes(state.len() as u64));
        let found = |bytes: &[u8], name: &[u8], max_bytes| {
            read(bytes, bytes.len() as u64, &Key::of_bytes(name), max_bytes).unwrap()
        };
        assert_eq!(found(&bytes, b"a", 13).as_deref(), Some(&state[..]));
        assert_eq!(found(&bytes, b"a", 12), None, "more than there can be");
        assert_eq!(found(&bytes, b"b", 13), None, "under another name");
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(found(&flipped, b"a", 13), None, "bit {bit}");
        }
        for n in 0..bytes.len() {
            assert_eq!(found(&bytes[..n], b"a", 99), None, "{n} bytes");
        }
        assert_eq!(found(&[&bytes[..], &[0]].concat(), b"a", 99), None);
    }
}
