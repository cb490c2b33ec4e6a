//! One picture through the whole tower.

use crate::error::{Error, Result};
use crate::ggml::{Backend, Context, Tensor, WatchFn};
use crate::gguf::{Gguf, TensorInfo};
use crate::image::PixelValues;
use crate::kernels::Kernels;

use super::weights::Weights;
use super::{VisionHparams, resampler, vit};

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Matrix products and softmax in f32. Needs n_head · n_patches² · 4 bytes.
    Exact,
    /// Fused: ggml's kernel with keys and values rounded to f16, or ours with all of it rounded to bf16 where the weights are
    /// quantised.
    Flash,
}

/// A picture as the language model sees it: `n_queries` rows of `d_out` values, f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageEmbedding {
    /// Rows, one a slot of the prompt.
    pub n_queries: usize,
    /// Values a row.
    pub d_out: usize,
    /// `n_queries × d_out` values.
    pub data: Vec<f32>,
}

/// Values from inside the tower, for `trace`; each row-major in the reference's token order.
#[derive(Clone, Debug, Default)]
pub struct Taps {
    /// (name, rows, columns, values): `ln_pre`, `block.0`, the last block, `resampler`.
    pub tensors: Vec<(String, usize, usize, Vec<f32>)>,
}

/// What of the graph is looked at.
struct Nodes<'c> {
    /// The input.
    patches: Tensor<'c>,
    /// Values for `trace`.
    named: Vec<(String, Tensor<'c>)>,
    /// The embedding.
    output: Tensor<'c>,
}

/// A vision tower over a mapped mmproj: proven header entries, no weight copied.
pub struct VisionModel<'d> {
    file: &'d [u8],
    hparams: VisionHparams,
    weights: Weights<TensorInfo>,
    kernels: Kernels,
}

impl<'d> VisionModel<'d> {
    /// Proves the header `gguf` of the mapped `file`. Errors (kind model) name the key or tensor. Touches no weight.
    pub fn new(file: &'d [u8], gguf: &Gguf) -> Result<Self> {
        let hparams = VisionHparams::read(gguf)?;
        let weights = Weights::find(gguf, &hparams)?;
        if !gguf.alignment().is_multiple_of(32) {
            return Err(Error::model(format!(
                "tensor data is aligned to {} bytes (expected a multiple of 32); convert the mmproj again",
                gguf.alignment()
            )));
        }
        Ok(VisionModel { file, hparams, weights, kernels: Kernels::Ggml })
    }

    /// Computed by `kernels` where they multiply the transformer's type of weights; by ggml's where they do not, and without
    /// this.
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        let is_theirs = self.weights.layers.first().is_some_and(|layer| kernels.multiply(layer.qkv[0].ty));
        VisionModel { kernels: if is_theirs { kernels } else { Kernels::Ggml }, ..self }
    }

    /// What computes it.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Its dimensions.
    pub fn hparams(&self) -> &VisionHparams {
        &self.hparams
    }

    /// Encodes one picture on `backend`. Errors: kind memory when the compute buffer does not fit, kind model when the
    /// result is not finite. Cost: one pass over the vision weights; allocates the compute buffer anew.
    pub fn encode(&self, backend: &Backend<'_>, pixels: &PixelValues, kind: Attention) -> Result<ImageEmbedding> {
        self.run(backend, pixels, kind, None)
    }

    /// As [`encode`](Self::encode), keeping values from inside.
    pub fn trace(
        &self,
        backend: &Backend<'_>,
        pixels: &PixelValues,
        kind: Attention,
    ) -> Result<(ImageEmbedding, Taps)> {
        let mut taps = Taps::default();
        let embedding = self.run(backend, pixels, kind, Some(&mut taps))?;
        Ok((embedding, taps))
    }

    /// As [`encode`](Self::encode), showing what each weight is multiplied with to `watch`. The patch embedding, which is never
    /// quantised, is not among them.
    pub fn watch(
        &self,
        backend: &Backend<'_>,
        pixels: &PixelValues,
        kind: Attention,
        watch: &mut WatchFn,
    ) -> Result<ImageEmbedding> {
        let c = self.context()?;
        // What is watched are ggml's products.
        let Nodes { patches, output, .. } = self.build(&c, kind, Kernels::Ggml)?;
        let values = to_patches(pixels, self.hparams.patch_size);
        self.embedding(backend.compute_watched(c.graph(&[output]), (patches, &values), output, watch)?)
    }

    /// Bytes of the compute buffer that [`encode`](Self::encode) allocates. Touches no weight.
    pub fn compute_bytes(&self, backend: &Backend<'_>, kind: Attention) -> Result<u64> {
        let c = self.context()?;
        let nodes = self.build(&c, kind, self.kernels)?;
        Ok(backend.measure(&c.graph(&[nodes.output])) as u64)
    }

    /// Memory for the graph's description.
    fn context(&self) -> Result<Context<'d>> {
        // A layer has 12 weights and takes fewer than 40 operations.
        Context::new(64 * (self.hparams.n_layer + 2))
    }

    /// The graph, weights bound to the file.
    fn build<'c>(&self, c: &'c Context<'d>, kind: Attention, how: Kernels) -> Result<Nodes<'c>> {
        let h = &self.hparams;
        let w = self.weights.bind(c, self.file)?;
        let patches = c.input(&[3 * h.patch_size * h.patch_size, h.n_patches]);
        let mut x = vit::embed(c, h, &w, patches);
        let mut named: Vec<(String, Tensor<'c>)> = vec![("ln_pre".into(), x)];
        for (il, layer) in w.layers.iter().enumerate() {
            x = vit::layer(c, h, layer, x, kind, how);
            if il == 0 || il + 1 == h.n_layer {
                named.push((format!("block.{il}"), x));
            }
        }
        let x = resampler::cross_attention(c, h, &w, x, kind, how);
        named.push(("resampler".into(), x));
        let output = resampler::project(c, h, &w, x, how);
        Ok(Nodes { patches, named, output })
    }

    fn run(
        &self,
        backend: &Backend<'_>,
        pixels: &PixelValues,
        kind: Attention,
        taps: Option<&mut Taps>,
    ) -> Result<ImageEmbedding> {
        let h = &self.hparams;
        let c = self.context()?;
        let Nodes { patches, named, output } = self.build(&c, kind, self.kernels)?;
        let mut outputs = vec![output];
        if taps.is_some() {
            outputs.extend(named.iter().map(|(_, t)| *t));
        }
        let mut graph = backend.allocate(c.graph(&outputs))?;
        graph.set(patches, &to_patches(pixels, h.patch_size));
        graph.compute()?;
        if let Some(taps) = taps {
            let values = |(name, t): (String, Tensor<'_>)| (name, t.dims()[1], t.dims()[0], graph.get(t));
            taps.tensors = named.into_iter().map(values).collect();
        }
        self.embedding(graph.get(output))
    }

    /// Errors (kind model): the values are not finite.
    fn embedding(&self, data: Vec<f32>) -> Result<ImageEmbedding> {
        if !data.iter().all(|x| x.is_finite()) {
            return Err(Error::model(
                "the embedding of the picture is not finite: the mmproj's weights are damaged or too large \
                 (see qvl inspect --verify)",
            ));
        }
        Ok(ImageEmbedding { n_queries: self.hparams.n_queries, d_out: self.hparams.d_out, data })
    }
}

/// `[3, size, size]` pixels to one row a patch, row-major over the grid; a row is (channel, y, x) as a kernel's is.
fn to_patches(pixels: &PixelValues, patch: usize) -> Vec<f32> {
    let size = pixels.size() as usize;
    let grid = size / patch;
    let mut rows = Vec::with_capacity(3 * size * size);
    for (py, px) in (0..grid * grid).map(|i| (i / grid, i % grid)) {
        for (channel, y) in (0..3 * patch).map(|i| (i / patch, i % patch)) {
            let start = (channel * size + py * patch + y) * size + px * patch;
            rows.extend_from_slice(&pixels.data()[start..start + patch]);
        }
    }
    rows
}
