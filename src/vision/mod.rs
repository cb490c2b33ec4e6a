//! Pictures to embeddings: the vision transformer and its adapter. Opens no file and sees no FFI type.

mod attention;
mod encoder;
mod hparams;
mod linear;
mod resampler;
mod vit;
mod weights;

pub use encoder::{Attention, ImageEmbedding, Taps, Tower, VisionModel};
pub use hparams::VisionHparams;
