//! The language model's side of a text GGUF: dimensions and defaults, proofs of its header, exact rotary positions.

mod check;
mod hparams;
mod rotary;

pub use check::check;
pub use hparams::{ChatFormat, TextHparams};
pub use rotary::{Rotary, alpha};
