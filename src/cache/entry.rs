//! The file of an embedding: everything in it is proven when it is read.
//!
//! Little-endian: `QVLEMBED`, version (u32), n_queries (u32), d_out (u32), the key (32 bytes), the values (f16, row-major),
//! SHA-256 over all of that.

use byteorder::{ByteOrder, LittleEndian as LE};
use half::f16;
use sha2::{Digest, Sha256};

use super::Key;
use crate::vision::ImageEmbedding;

const MAGIC: &[u8; 8] = b"QVLEMBED";
const VERSION: u32 = 1;
/// Bytes before the values.
pub const N_HEAD: usize = 52;
/// Bytes behind them.
const N_CHECKSUM: usize = 32;

/// Bytes of an entry of this shape.
pub fn n_bytes(n_queries: usize, d_out: usize) -> Option<u64> {
    let n_values = (n_queries as u64).checked_mul(d_out as u64)?;
    n_values.checked_mul(2)?.checked_add((N_HEAD + N_CHECKSUM) as u64)
}

/// `fresh` as f16 holds it; `None` if a value is beyond f16 (±65504).
pub fn round(fresh: &ImageEmbedding) -> Option<ImageEmbedding> {
    let data: Vec<f32> = fresh.data.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    data.iter().all(|x| x.is_finite()).then_some(ImageEmbedding { data, ..*fresh })
}

/// The bytes of an entry. Lossless if the values were [`round`]ed before. Cost: allocates 2 bytes a value.
pub fn encode(key: &Key, embedding: &ImageEmbedding) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(N_HEAD + 2 * embedding.data.len() + N_CHECKSUM);
    bytes.extend_from_slice(MAGIC);
    for n in [VERSION, embedding.n_queries as u32, embedding.d_out as u32] {
        bytes.extend_from_slice(&n.to_le_bytes());
    }
    bytes.extend_from_slice(key.as_bytes());
    bytes.extend(embedding.data.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

/// (n_queries, d_out) of an entry for `key`, from its first [`N_HEAD`] bytes; `None` if they are of anything else.
pub fn shape(key: &Key, head: &[u8; N_HEAD]) -> Option<(usize, usize)> {
    let ours = head.starts_with(MAGIC) && LE::read_u32(&head[8..]) == VERSION && head[20..] == *key.as_bytes();
    ours.then(|| (LE::read_u32(&head[12..]) as usize, LE::read_u32(&head[16..]) as usize))
}

/// Reads an entry back; `None` if it is not, bit for bit, what [`encode`] made for `key`.
pub fn decode(key: &Key, bytes: &[u8]) -> Option<ImageEmbedding> {
    let (n_queries, d_out) = shape(key, bytes.first_chunk()?)?;
    if n_bytes(n_queries, d_out)? != bytes.len() as u64 {
        return None;
    }
    let (body, checksum) = bytes.split_at(bytes.len() - N_CHECKSUM);
    if Sha256::digest(body)[..] != *checksum {
        return None;
    }
    let values = body[N_HEAD..].chunks_exact(2);
    let data = values.map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    Some(ImageEmbedding { n_queries, d_out, data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_and_every_length_is_proven() {
        let data = (0..6).map(|i| i as f32 * 0.37 - 1.0).collect();
        let embedding = round(&ImageEmbedding { n_queries: 3, d_out: 2, data }).unwrap();
        let key = Key::of_bytes(b"a");
        let bytes = encode(&key, &embedding);
        assert_eq!(n_bytes(3, 2), Some(bytes.len() as u64));
        assert_eq!(decode(&key, &bytes), Some(embedding));
        assert!(decode(&Key::of_bytes(b"b"), &bytes).is_none(), "under another name");
        // Miri takes a second for each.
        let step = if cfg!(miri) { 97 } else { 1 };
        for bit in (0..8 * bytes.len()).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&key, &flipped).is_none(), "bit {bit}");
        }
        for n in (0..bytes.len()).step_by(step) {
            assert!(decode(&key, &bytes[..n]).is_none(), "{n} bytes");
        }
        assert!(decode(&key, &[&bytes[..], &[0]].concat()).is_none());
        assert!(decode(&key, &[0; 200]).is_none());
    }
}
