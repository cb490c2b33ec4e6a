//! The types that can be asked for, and which element type each tensor gets from one.
//!
//! The mixes are those of llama.cpp's `llama-quant.cpp` for a dense model without importance matrix, fused q/k/v as its branch for
//! them has it. Newer versions of it take the branch for values first, and mix 4 and 6 bits there instead of 5 throughout.

use std::fmt;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use qvl::quant::GgmlType::{self, *};

/// A type of the command line: an element type, or a mix of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum FileType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_K_S,
    Q5_1,
    Q5_0,
    Q4_K_M,
    Q4_K_S,
    Q4_1,
    Q4_0,
    IQ4_NL,
    IQ4_XS,
}

/// (type, name, element type of most tensors, number in llama.cpp's `enum llama_ftype`)
const TABLE: [(FileType, &str, GgmlType, u32); 15] = [
    (FileType::F32, "f32", F32, 0),
    (FileType::F16, "f16", F16, 1),
    (FileType::BF16, "bf16", BF16, 32),
    (FileType::Q8_0, "q8_0", Q8_0, 7),
    (FileType::Q6_K, "q6_k", Q6_K, 18),
    (FileType::Q5_K_M, "q5_k_m", Q5_K, 17),
    (FileType::Q5_K_S, "q5_k_s", Q5_K, 16),
    (FileType::Q5_1, "q5_1", Q5_1, 9),
    (FileType::Q5_0, "q5_0", Q5_0, 8),
    (FileType::Q4_K_M, "q4_k_m", Q4_K, 15),
    (FileType::Q4_K_S, "q4_k_s", Q4_K, 14),
    (FileType::Q4_1, "q4_1", Q4_1, 3),
    (FileType::Q4_0, "q4_0", Q4_0, 2),
    (FileType::IQ4_NL, "iq4_nl", IQ4_NL, 25),
    (FileType::IQ4_XS, "iq4_xs", IQ4_XS, 30),
];

impl FileType {
    fn row(self) -> (FileType, &'static str, GgmlType, u32) {
        // Every variant has a row (a test says so), so the fallback is never taken.
        TABLE.into_iter().find(|row| row.0 == self).unwrap_or(TABLE[0])
    }

    /// Its lower-case name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The element type of most matrices.
    pub fn base(self) -> GgmlType {
        self.row().2
    }

    /// Its number in `general.file_type`.
    pub fn llama_ftype(self) -> u32 {
        self.row().3
    }
}

impl ValueEnum for FileType {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [FileType; 15] = {
            let mut all = [FileType::F32; 15];
            let mut i = 0;
            while i < 15 {
                all[i] = TABLE[i].0;
                i += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An element type that can be written, by its name or by that of a mix (`q4_k_m` is `q4_k` here), in any case.
pub fn element_type(name: &str) -> Option<GgmlType> {
    let name = name.to_ascii_lowercase();
    let from_table = TABLE.iter().find(|row| row.1 == name || row.2.name() == name);
    from_table.map(|row| row.2)
}

/// What a tensor is, as far as its type depends on it. `il` counts layers from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Norms, biases, positions and folded tables: always f32.
    Table,
    /// The patch embedding: f32, or the 16-bit type that was asked for.
    Patch,
    /// `output.weight`
    Output,
    /// `attn_qkv.weight` of the text
    AttnQkv,
    /// `ffn_down.weight` of the text
    FfnDown {
        /// Layer.
        il: u64,
        /// Layers in all.
        n_layer: u64,
    },
    /// Every other matrix.
    Matrix,
}

impl Role {
    /// Whether `--tensor-type` may choose another type.
    pub fn is_free(self) -> bool {
        !matches!(self, Role::Table | Role::Patch)
    }
}

/// The type that a tensor of this role and row length gets when `asked` is asked for, before
/// [`fallback`](fallback).
pub fn mixed(asked: FileType, role: Role, row_length: u64) -> GgmlType {
    let base = asked.base();
    match role {
        Role::Table => F32,
        Role::Patch if matches!(base, F16 | BF16) => base,
        Role::Patch => F32,
        _ if !base.is_quantised() => base,
        Role::Output if !base.holds_rows_of(row_length) || base == Q8_0 => Q8_0,
        Role::Output => Q6_K,
        Role::AttnQkv => match asked {
            FileType::Q4_K_M => Q5_K,
            FileType::Q5_K_M => Q6_K,
            _ => base,
        },
        Role::FfnDown { il, n_layer } => match asked {
            FileType::Q4_K_M | FileType::Q5_K_M if has_more_bits(il, n_layer) => Q6_K,
            FileType::Q4_K_S | FileType::IQ4_NL | FileType::IQ4_XS if il < n_layer / 8 => Q5_K,
            _ => base,
        },
        Role::Matrix => base,
    }
}

/// llama.cpp's choice of the layers whose `ffn_down` is worth more bits: the first and last eighth, every third between.
fn has_more_bits(il: u64, n_layer: u64) -> bool {
    il < n_layer / 8 || il >= 7 * n_layer / 8 || (il - n_layer / 8) % 3 == 2
}

/// How many zeros behind each row of `row_length` values let `wanted` hold it, where that takes hardly more bytes than the
/// [`fallback`] if not fewer: rows of 1664 become 1792, 7 blocks of 256. Exact, for inputs that are padded as well. 0 where
/// rows fit. A fiftieth more is worth it: ggml multiplies types with blocks of 256 about twice as fast.
pub fn padding(wanted: GgmlType, row_length: u64) -> u64 {
    let padded = wanted.padded(row_length);
    match (wanted.row_bytes(padded), fallback(wanted, row_length).row_bytes(row_length)) {
        (Some(with), Some(without)) if with <= without + without / 50 => padded - row_length,
        _ => 0,
    }
}

/// The type that stores rows of `row_length` values in place of `wanted`, which may be `wanted` itself: a type with
/// blocks of 32 for one with blocks of 256, and f16 for rows that are not whole blocks of 32 either.
pub fn fallback(wanted: GgmlType, row_length: u64) -> GgmlType {
    if wanted.holds_rows_of(row_length) {
        return wanted;
    }
    let smaller = match wanted {
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        IQ4_XS => IQ4_NL,
        other => other,
    };
    if smaller.holds_rows_of(row_length) { smaller } else { F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (ty, name, base, ftype) in TABLE {
            assert_eq!((ty.name(), ty.base(), ty.llama_ftype()), (name, base, ftype));
            assert_eq!(FileType::from_str(&name.to_uppercase(), true), Ok(ty));
        }
        assert_eq!(element_type("Q4_K"), Some(Q4_K));
        assert_eq!(element_type("q4_k_m"), Some(Q4_K));
        assert_eq!(element_type("q2_k"), None);
    }

    /// `ffn_down` of 32 layers, `+` where the mix spends more than its base type.
    fn check_down(asked: FileType, expect: &str) {
        let down = |il| mixed(asked, Role::FfnDown { il, n_layer: 32 }, 11008);
        let found: String = (0..32).map(|il| if down(il) == asked.base() { '.' } else { '+' }).collect();
        assert_eq!(found, expect, "{asked}");
    }

    #[test]
    fn mixes_are_those_of_llama_cpp() {
        check_down(FileType::Q4_K_M, "++++..+..+..+..+..+..+..+..+++++");
        check_down(FileType::Q5_K_M, "++++..+..+..+..+..+..+..+..+++++");
        check_down(FileType::Q4_K_S, "++++............................");
        check_down(FileType::IQ4_XS, "++++............................");
        check_down(FileType::Q4_0, "................................");
        let of = |asked, role| mixed(asked, role, 4096);
        assert_eq!(of(FileType::Q4_K_M, Role::AttnQkv), Q5_K);
        assert_eq!(of(FileType::Q5_K_M, Role::AttnQkv), Q6_K);
        assert_eq!(of(FileType::Q4_K_S, Role::AttnQkv), Q4_K);
        assert_eq!(of(FileType::Q4_0, Role::Output), Q6_K);
        assert_eq!(of(FileType::Q8_0, Role::Output), Q8_0);
        assert_eq!(of(FileType::BF16, Role::Output), BF16);
        assert_eq!(mixed(FileType::Q4_K_M, Role::Output, 128), Q8_0);
        assert_eq!(of(FileType::Q4_0, Role::Patch), F32);
        assert_eq!(of(FileType::F16, Role::Patch), F16);
        assert_eq!(of(FileType::F16, Role::Table), F32);
    }

    #[test]
    fn rows_that_do_not_fit_fall_back() {
        assert_eq!(fallback(Q4_K, 4096), Q4_K);
        assert_eq!([Q4_K, Q5_K, Q6_K, IQ4_XS].map(|t| fallback(t, 1664)), [Q5_0, Q5_1, Q8_0, IQ4_NL]);
        assert_eq!([Q4_K, Q8_0, F32].map(|t| fallback(t, 315)), [F16, F16, F32]);
    }

    #[test]
    fn rows_are_padded_where_that_is_hardly_larger() {
        assert_eq!([Q4_K, Q5_K, Q6_K, IQ4_XS].map(|t| padding(t, 1664)), [128; 4]);
        assert_eq!([Q8_0, Q4_0, F16].map(|t| padding(t, 1664)), [0; 3]);
        assert_eq!([Q4_K, Q6_K].map(|t| padding(t, 4096)), [0; 2]);
        // A third of a row more is worse than the fallback.
        assert_eq!([Q4_K, Q5_K, Q6_K].map(|t| padding(t, 192)), [0; 3]);
        // Against f16 it is not.
        assert_eq!([Q4_K, Q8_0].map(|t| padding(t, 315)), [197, 5]);
    }
}
