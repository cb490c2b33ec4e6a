//! Dimensions of the vision tower, read once from the metadata and proven.

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::names::{general, vision as key};

/// Dimensions of a vision tower. Having one says: all are within sane caps and divide each other as the graph needs.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionHparams {
    /// Height and width of the input in pixels.
    pub image_size: usize,
    /// Height and width of a patch in pixels.
    pub patch_size: usize,
    /// Patches a picture, (image_size / patch_size)².
    pub n_patches: usize,
    /// Width of the transformer.
    pub n_embd: usize,
    /// Rows of the first feed-forward matrix.
    pub n_ff: usize,
    /// Layers.
    pub n_layer: usize,
    /// Attention heads of the transformer.
    pub n_head: usize,
    /// LayerNorm epsilon everywhere.
    pub eps: f32,
    /// Width of the adapter and of an embedding.
    pub d_out: usize,
    /// Embeddings a picture.
    pub n_queries: usize,
    /// Attention heads of the adapter.
    pub n_head_resampler: usize,
    /// Mean of each channel (RGB).
    pub mean: [f32; 3],
    /// Standard deviation of each channel (RGB).
    pub std: [f32; 3],
}

impl VisionHparams {
    /// Reads and proves them. Errors (kind model) name the key.
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let architecture = gguf.str(general::ARCHITECTURE)?;
        if architecture != key::ARCHITECTURE {
            return Err(Error::model(format!(
                "this is not an mmproj: general.architecture is {architecture:?} (expected \"{}\")",
                key::ARCHITECTURE
            )));
        }
        let projector = gguf.str(key::PROJECTOR_TYPE)?;
        if projector != key::PROJECTOR {
            return Err(Error::model(format!(
                "this mmproj has the projector {projector:?} (expected {:?}): it was made for another model",
                key::PROJECTOR
            )));
        }
        if gguf.opt_bool(key::USE_GELU)? == Some(false) {
            return Err(Error::model(format!("{} is false (expected true)", key::USE_GELU)));
        }
        let three = |key: &str| gguf.f32s(key, 3).map(|v| [v[0], v[1], v[2]]);
        let h = VisionHparams {
            image_size: gguf.count(key::IMAGE_SIZE, 1..=4096)?,
            patch_size: gguf.count(key::PATCH_SIZE, 1..=256)?,
            n_patches: 0,
            n_embd: gguf.count(key::EMBEDDING_LENGTH, 1..=1 << 16)?,
            n_ff: gguf.count(key::FEED_FORWARD_LENGTH, 1..=1 << 18)?,
            n_layer: gguf.count(key::BLOCK_COUNT, 1..=512)?,
            n_head: gguf.count(key::HEAD_COUNT, 1..=1024)?,
            eps: gguf.f32(key::LAYER_NORM_EPS)?,
            d_out: gguf.count(key::PROJECTION_DIM, 1..=1 << 16)?,
            n_queries: gguf.count(key::N_QUERIES, 1..=1 << 14)?,
            n_head_resampler: gguf.count(key::RESAMPLER_HEAD_COUNT, 1..=1024)?,
            mean: three(key::IMAGE_MEAN)?,
            std: three(key::IMAGE_STD)?,
        };
        let divides = |what: &str, n: usize, by: usize| {
            let fits = n.is_multiple_of(by);
            fits.then_some(()).ok_or_else(|| Error::model(format!("{what}: {n} is not a multiple of {by}")))
        };
        divides("picture and patch size", h.image_size, h.patch_size)?;
        divides("width and heads of the vision transformer", h.n_embd, h.n_head)?;
        divides("width and heads of the adapter", h.d_out, h.n_head_resampler)?;
        if !(h.eps > 0.0 && h.eps < 1.0) || h.std.iter().any(|s| *s <= 0.0) {
            return Err(Error::model("LayerNorm epsilon and channel deviations must be positive"));
        }
        let n_patches = (h.image_size / h.patch_size).pow(2);
        if n_patches > 1 << 14 {
            return Err(Error::model(format!("{n_patches} patches a picture (at most 16384 are accepted)")));
        }
        Ok(VisionHparams { n_patches, ..h })
    }
}
