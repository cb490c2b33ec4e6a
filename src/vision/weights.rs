//! Binds tensor names and checks every shape once; no code after this checks one.

use crate::error::{Error, Result};
use crate::ggml::{Backend, Context, Tensor, Upload};
use crate::gguf::{Gguf, TensorInfo};
use crate::names::vision_tensor as name;
use crate::quant::GgmlType;

use super::VisionHparams;

/// The header entries of all weights, of proven shape and type.
pub(super) struct Weights<T> {
    pub patch_embd: T,
    pub position_embd: T,
    pub pre_ln: [T; 2],
    pub layers: Vec<Layer<T>>,
    pub kv_proj: Option<T>,
    pub ln_kv: [T; 2],
    pub query: T,
    pub k: T,
    pub k_position: T,
    pub v: [T; 2],
    pub out: [T; 2],
    pub ln_post: [T; 2],
    pub proj: T,
}

/// Weights of one layer; pairs are (weight, bias).
pub(super) struct Layer<T> {
    pub ln1: [T; 2],
    pub qkv: [T; 2],
    pub out: [T; 2],
    pub ln2: [T; 2],
    pub up: [T; 2],
    pub down: [T; 2],
}

impl Weights<TensorInfo> {
    /// Finds every tensor. Errors (kind model) name the tensor, the shape or type expected and found; a tensor that
    /// the graph does not know is an error too, since it would silently not count.
    pub fn find(gguf: &Gguf, h: &VisionHparams) -> Result<Self> {
        let mut finder = Finder { gguf, n_found: 0 };
        let f = &mut finder;
        let (d, n) = (h.n_embd, h.d_out);
        let mut layers = Vec::new();
        let patch_embd = f.matrix(name::PATCH_EMBD, &[h.patch_size, h.patch_size, 3, d])?;
        let position_embd = f.floats(name::POSITION_EMBD, &[d, h.n_patches])?;
        let pre_ln = [f.floats(name::PRE_LN_W, &[d])?, f.floats(name::PRE_LN_B, &[d])?];
        for il in 0..h.n_layer {
            let mut pair = |part: &str, rows: usize, cols: usize| -> Result<[TensorInfo; 2]> {
                let weight = f.matrix(&name::blk(il, &format!("{part}.weight")), &[cols, rows])?;
                Ok([weight, f.floats(&name::blk(il, &format!("{part}.bias")), &[rows])?])
            };
            let qkv = pair("attn_qkv", 3 * d, d)?;
            let out = pair("attn_out", d, d)?;
            let up = pair("ffn_up", h.n_ff, d)?;
            let down = pair("ffn_down", d, h.n_ff)?;
            let mut ln = |part: &str| -> Result<[TensorInfo; 2]> {
                let [w, b] = ["weight", "bias"].map(|end| name::blk(il, &format!("{part}.{end}")));
                Ok([f.floats(&w, &[d])?, f.floats(&b, &[d])?])
            };
            layers.push(Layer { ln1: ln("ln1")?, qkv, out, ln2: ln("ln2")?, up, down });
        }
        let kv_proj = if d == n { None } else { Some(f.matrix(name::KV_PROJ, &[d, n])?) };
        let weights = Weights {
            patch_embd,
            position_embd,
            pre_ln,
            layers,
            kv_proj,
            ln_kv: [f.floats(name::LN_KV_W, &[n])?, f.floats(name::LN_KV_B, &[n])?],
            query: f.floats(name::ATTN_QUERY, &[n, h.n_queries])?,
            k: f.matrix(name::ATTN_K_W, &[n, n])?,
            k_position: f.floats(name::ATTN_K_POSITION, &[n, h.n_patches])?,
            v: [f.matrix(name::ATTN_V_W, &[n, n])?, f.floats(name::ATTN_V_B, &[n])?],
            out: [f.matrix(name::ATTN_OUT_W, &[n, n])?, f.floats(name::ATTN_OUT_B, &[n])?],
            ln_post: [f.floats(name::LN_POST_W, &[n])?, f.floats(name::LN_POST_B, &[n])?],
            proj: f.matrix(name::PROJ, &[n, n])?,
        };
        if finder.n_found != gguf.tensors().len() {
            let n_more = gguf.tensors().len() - finder.n_found;
            return Err(Error::model(format!("{n_more} tensors are not part of a Qwen-VL vision tower")));
        }
        Ok(weights)
    }

    /// The same weights as tensors of `context`, which holds nothing else, for graphs on `backend`: pointing into the mapped
    /// `file`, or to be copied to the device.
    pub fn bind<'c, 'd, 'b>(
        &self,
        context: &'c Context<'d>,
        file: &'d [u8],
        backend: &'b Backend<'_>,
    ) -> Result<(Weights<Tensor<'c>>, Upload<'c, 'd, 'b>)> {
        let weights = context.weights(file, backend)?;
        let t = |info: &TensorInfo| weights.tensor(info);
        let two = |pair: &[TensorInfo; 2]| [t(&pair[0]), t(&pair[1])];
        let layer = |l: &Layer<TensorInfo>| Layer {
            ln1: two(&l.ln1),
            qkv: two(&l.qkv),
            out: two(&l.out),
            ln2: two(&l.ln2),
            up: two(&l.up),
            down: two(&l.down),
        };
        let tensors = Weights {
            patch_embd: t(&self.patch_embd),
            position_embd: t(&self.position_embd),
            pre_ln: two(&self.pre_ln),
            layers: self.layers.iter().map(layer).collect(),
            kv_proj: self.kv_proj.as_ref().map(t),
            ln_kv: two(&self.ln_kv),
            query: t(&self.query),
            k: t(&self.k),
            k_position: t(&self.k_position),
            v: two(&self.v),
            out: two(&self.out),
            ln_post: two(&self.ln_post),
            proj: t(&self.proj),
        };
        Ok((tensors, weights.upload()))
    }
}

/// Whether `info` is a matrix of the extents `dims` but for zeros that fill the last block of each row.
fn is_padded(info: &TensorInfo, dims: &[usize]) -> bool {
    let &[width, n_rows] = dims else { return false };
    info.dims == [info.ty.padded(width as u64), n_rows as u64]
}

/// Looks tensors up and counts them.
struct Finder<'a> {
    gguf: &'a Gguf,
    n_found: usize,
}

impl Finder<'_> {
    fn find(&mut self, name: &str, dims: &[usize]) -> Result<TensorInfo> {
        let info = self.gguf.tensor(name).ok_or_else(|| Error::model(format!("tensor {name:?} is missing")))?;
        let is_as_expected = info.dims.iter().map(|d| *d as usize).eq(dims.iter().copied());
        if !is_as_expected && !is_padded(info, dims) {
            return Err(Error::model(format!("tensor {name:?} has extents {:?} (expected {dims:?})", info.dims)));
        }
        self.n_found += 1;
        Ok(info.clone())
    }

    /// A weight matrix: any float or quantised type that ggml multiplies with.
    fn matrix(&mut self, name: &str, dims: &[usize]) -> Result<TensorInfo> {
        use GgmlType::*;
        let info = self.find(name, dims)?;
        match info.ty {
            I8 | I16 | I32 | I64 | F64 => Err(Error::model(format!("tensor {name:?} has type {}", info.ty))),
            _ => Ok(info),
        }
    }

    /// A tensor that is added or multiplied element by element: f32.
    fn floats(&mut self, name: &str, dims: &[usize]) -> Result<TensorInfo> {
        let info = self.find(name, dims)?;
        match info.ty {
            GgmlType::F32 => Ok(info),
            other => Err(Error::model(format!("tensor {name:?} has type {other} (expected f32)"))),
        }
    }
}
