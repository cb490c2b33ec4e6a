//! One picture through the whole tower. Several in one graph would take a compute buffer each and no less time: the columns
//! of one fit into the cache, those of four do not (products with 4096 columns reach 0.8 to 1.0 times the speed of those with
//! 1024, measured with AMX and AVX-512).

use crate::error::{Error, Result};
use crate::ggml::{Backend, Context, OpCounts, Tensor, Upload, WatchFn};
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

/// How the graph computes.
#[derive(Clone, Copy)]
pub(super) struct How<'b> {
    pub attention: Attention,
    pub kernels: Kernels,
    pub backend: &'b Backend<'b>,
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

    /// Hands the tower to `f`, computed by `backend`. Its weights come there when it is first used and stay until `f` is done. Errors:
    /// `f`'s. Cost: nothing on the CPU, which reads them in the mapped file; a copy of the file to another device.
    pub fn on<T>(&self, backend: &Backend<'_>, f: impl FnOnce(&Tower<'_>) -> Result<T>) -> Result<T> {
        let context = self.context()?;
        let (weights, upload) = self.weights.bind(&context, self.file, backend)?;
        f(&Tower { model: self, backend, weights, upload })
    }

    /// Memory for a description of the graph, or of the weights.
    fn context(&self) -> Result<Context<'d>> {
        // A layer has 12 weights and takes fewer than 48 operations.
        Context::new(64 * (self.hparams.n_layer + 2))
    }
}

/// A vision tower where graphs run.
pub struct Tower<'t> {
    model: &'t VisionModel<'t>,
    backend: &'t Backend<'t>,
    weights: Weights<Tensor<'t>>,
    upload: Upload<'t, 't, 't>,
}

impl Tower<'_> {
    /// Its dimensions.
    pub fn hparams(&self) -> &VisionHparams {
        &self.model.hparams
    }

    /// Encodes one picture. Errors: kind memory when the compute buffer does not fit, kind model when the result is not finite.
    /// Cost: one pass over the vision weights; allocates the compute buffer anew.
    pub fn encode(&self, pixels: &PixelValues, kind: Attention) -> Result<ImageEmbedding> {
        self.run(pixels, kind, None)
    }

    /// As [`encode`](Self::encode), keeping values from inside.
    pub fn trace(&self, pixels: &PixelValues, kind: Attention) -> Result<(ImageEmbedding, Taps)> {
        let mut taps = Taps::default();
        let embedding = self.run(pixels, kind, Some(&mut taps))?;
        Ok((embedding, taps))
    }

    /// As [`encode`](Self::encode), showing what each weight is multiplied with to `watch`. The patch embedding, which is never
    /// quantised, is not among them.
    pub fn watch(&self, pixels: &PixelValues, kind: Attention, watch: &mut WatchFn) -> Result<ImageEmbedding> {
        let c = self.model.context()?;
        // What is watched are ggml's products.
        let Nodes { patches, output, .. } = self.build(&c, kind, Kernels::Ggml)?;
        let values = to_patches(pixels, self.hparams().patch_size);
        self.embedding(self.backend.compute_watched(c.graph(&[output]), (patches, &values), output, watch)?)
    }

    /// Bytes of the compute buffer that [`encode`](Self::encode) allocates. Computes nothing.
    pub fn compute_bytes(&self, kind: Attention) -> Result<u64> {
        let c = self.model.context()?;
        let nodes = self.build(&c, kind, self.model.kernels)?;
        Ok(self.backend.measure(&c.graph(&[nodes.output]))? as u64)
    }

    /// Which backend runs which operation of [`encode`](Self::encode), and in how many parts the graph is cut: one if all of it
    /// stays on one device. Allocates the compute buffer, computes nothing.
    pub fn ops(&self, kind: Attention) -> Result<(OpCounts, usize)> {
        let c = self.model.context()?;
        let nodes = self.build(&c, kind, self.model.kernels)?;
        let graph = self.backend.allocate(c.graph(&[nodes.output]))?;
        Ok((graph.ops(), graph.n_splits()))
    }

    /// The graph over the weights, which come to the device for it. Errors (kind memory): they do not fit there.
    fn build<'c>(&'c self, c: &'c Context<'_>, kind: Attention, kernels: Kernels) -> Result<Nodes<'c>> {
        self.upload.once()?;
        let (h, w) = (self.hparams(), &self.weights);
        let how = How { attention: kind, kernels, backend: self.backend };
        let patches = c.input(&[3 * h.patch_size * h.patch_size, h.n_patches]);
        let mut x = vit::embed(c, h, w, patches);
        let mut named: Vec<(String, Tensor<'c>)> = vec![("ln_pre".into(), x)];
        for (il, layer) in w.layers.iter().enumerate() {
            x = vit::layer(c, h, layer, x, how);
            if il == 0 || il + 1 == h.n_layer {
                named.push((format!("block.{il}"), x));
            }
        }
        let x = resampler::cross_attention(c, h, w, x, how);
        named.push(("resampler".into(), x));
        let output = resampler::project(c, h, w, x, how);
        Ok(Nodes { patches, named, output })
    }

    fn run(&self, pixels: &PixelValues, kind: Attention, taps: Option<&mut Taps>) -> Result<ImageEmbedding> {
        let c = self.model.context()?;
        let Nodes { patches, named, output } = self.build(&c, kind, self.model.kernels)?;
        let mut outputs = vec![output];
        if taps.is_some() {
            outputs.extend(named.iter().map(|(_, t)| *t));
        }
        let mut graph = self.backend.allocate(c.graph(&outputs))?;
        graph.set(patches, &to_patches(pixels, self.hparams().patch_size));
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
        let h = self.hparams();
        Ok(ImageEmbedding { n_queries: h.n_queries, d_out: h.d_out, data })
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
