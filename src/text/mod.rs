//! The language model's side of a text GGUF: dimensions and defaults, proofs of its header and of adapters', exact rotary positions.

mod adapter;
mod check;
mod hparams;
mod rotary;

pub use adapter::{check_adapter, check_adapter_form, is_adapter};
pub use check::check;
pub use hparams::{ChatFormat, TextHparams};
pub use rotary::{Rope, alpha};
