//! Tensor element types of GGUF: id, name, block size. Knows nothing of how values are packed (that is ggml's business).

use std::fmt;

/// An element type that this project reads and writes.
///
/// A row of a tensor is stored as whole blocks of [`block_size`](GgmlType::block_size) values, each taking
/// [`block_bytes`](GgmlType::block_bytes) bytes. Source: `ggml.h` (ids) and `ggml-common.h` (block layouts).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
}

use GgmlType::*;

/// (type, id in the file, name, values a block, bytes a block)
const TABLE: [(GgmlType, u32, &str, u64, u64); 20] = [
    (F32, 0, "f32", 1, 4),
    (F16, 1, "f16", 1, 2),
    (Q4_0, 2, "q4_0", 32, 18),
    (Q4_1, 3, "q4_1", 32, 20),
    (Q5_0, 6, "q5_0", 32, 22),
    (Q5_1, 7, "q5_1", 32, 24),
    (Q8_0, 8, "q8_0", 32, 34),
    (Q2_K, 10, "q2_k", 256, 84),
    (Q3_K, 11, "q3_k", 256, 110),
    (Q4_K, 12, "q4_k", 256, 144),
    (Q5_K, 13, "q5_k", 256, 176),
    (Q6_K, 14, "q6_k", 256, 210),
    (IQ4_NL, 20, "iq4_nl", 32, 18),
    (IQ4_XS, 23, "iq4_xs", 256, 136),
    (I8, 24, "i8", 1, 1),
    (I16, 25, "i16", 1, 2),
    (I32, 26, "i32", 1, 4),
    (I64, 27, "i64", 1, 8),
    (F64, 28, "f64", 1, 8),
    (BF16, 30, "bf16", 1, 2),
];

impl GgmlType {
    fn row(self) -> (GgmlType, u32, &'static str, u64, u64) {
        // The table has a row for every variant (a test says so), so the fallback is never taken.
        TABLE.into_iter().find(|row| row.0 == self).unwrap_or(TABLE[0])
    }

    /// The type with this id in a GGUF file.
    pub fn from_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// The type with this lower-case name (`q4_k`, `f16`, ..).
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// Its id in a GGUF file, equal to ggml's `enum ggml_type`.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// Its lower-case name.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Values a block.
    pub fn block_size(self) -> u64 {
        self.row().3
    }

    /// Bytes a block.
    pub fn block_bytes(self) -> u64 {
        self.row().4
    }

    /// Bytes of a row of `n` values; `None` when `n` is not a whole number of blocks or the product overflows.
    pub fn row_bytes(self, n: u64) -> Option<u64> {
        if !n.is_multiple_of(self.block_size()) {
            return None;
        }
        (n / self.block_size()).checked_mul(self.block_bytes())
    }

    /// Values of a row of `n` once zeros behind it fill its last block; `n` itself where rows are whole blocks.
    pub fn padded(self, n: u64) -> u64 {
        n.next_multiple_of(self.block_size())
    }

    /// Whether rows of `n` values can be stored in this type.
    pub fn holds_rows_of(self, n: u64) -> bool {
        n.is_multiple_of(self.block_size())
    }

    /// Whether values are stored in blocks with shared scales.
    pub fn is_quantised(self) -> bool {
        self.block_size() > 1
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_own_row() {
        for (ty, id, name, size, bytes) in TABLE {
            assert_eq!((ty.id(), ty.name(), ty.block_size(), ty.block_bytes()), (id, name, size, bytes));
            assert_eq!((GgmlType::from_id(id), GgmlType::from_name(name)), (Some(ty), Some(ty)));
        }
        assert_eq!(GgmlType::from_id(4), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(Q4_K.row_bytes(4096), Some(2304));
        assert_eq!(Q4_K.row_bytes(1664), None);
        assert_eq!(Q8_0.row_bytes(1664), Some(1768));
        assert_eq!(F64.row_bytes(u64::MAX), None);
    }
}
