//! What weights are multiplied with, seen while a graph is computed.

use std::ffi::{CStr, c_void};

use llama_cpp_sys_2 as sys;

use super::{Backend, Graph, Tensor};
use crate::error::Result;

/// The rows that a weight is about to be multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct WeightInput<'a> {
    /// The weight's name in its file.
    pub name: &'a str,
    /// `[n][n_columns]`, row-major f32.
    pub rows: &'a [f32],
    /// Values a row: ne0 of the weight.
    pub n_columns: usize,
}

/// Sees the input of every weight of a graph, in computing order.
pub type WatchFn = dyn FnMut(WeightInput<'_>);

/// Whether a node multiplies a matrix that was read from a file: one that no operation made. Attention multiplies views of
/// what was computed.
pub(crate) fn is_weight_product(node: &sys::ggml_tensor) -> bool {
    if node.op != sys::GGML_OP_MUL_MAT {
        return false;
    }
    // SAFETY: both operands of a matrix product are there, and live as long as the node.
    let (weight, input) = unsafe { (&*node.src[0], &*node.src[1]) };
    weight.op == sys::GGML_OP_NONE && weight.view_src.is_null() && input.type_ == sys::GGML_TYPE_F32
}

/// Hands the input of a computed [weight product](is_weight_product) to `watch`. `copy` is room for it where it cannot be
/// looked at in place. Weights without a name that is text are passed over.
pub(crate) fn show(node: &sys::ggml_tensor, copy: &mut Vec<f32>, watch: &mut WatchFn) {
    // SAFETY: as in is_weight_product; names are terminated strings inside their tensors.
    let (input, name) = unsafe { (&*node.src[1], CStr::from_ptr((*node.src[0]).name.as_ptr())) };
    let Ok(name) = name.to_str() else { return };
    let n_columns = input.ne[0] as usize;
    let n_values = input.ne.iter().product::<i64>() as usize;
    // SAFETY: the input is f32, computed, and (checked) without gaps, so its values are these many floats in a row. Its memory
    // is not given to another tensor before the product that reads it is done, and this is called right after that.
    unsafe {
        if !sys::ggml_is_contiguous(input) || input.buffer.is_null() {
            return;
        }
        if sys::ggml_backend_buffer_is_host(input.buffer) {
            let rows = std::slice::from_raw_parts(input.data.cast::<f32>(), n_values);
            watch(WeightInput { name, rows, n_columns });
        } else {
            copy.resize(n_values, 0.0);
            sys::ggml_backend_tensor_get(input, copy.as_mut_ptr().cast(), 0, n_values * size_of::<f32>());
            watch(WeightInput { name, rows: copy, n_columns });
        }
    }
}

impl Backend<'_> {
    /// Computes `graph` once from `values` of its one input, handing what each weight is multiplied with to `watch`, and
    /// returns its one output, f32. Errors: kind memory, or as [`Allocated::compute`](super::Allocated::compute). Cost: as
    /// computing it, a stop at each weight, and one look at its input.
    pub fn compute_watched<'c>(
        &self,
        graph: Graph<'c>,
        (input, values): (Tensor<'c>, &[f32]),
        output: Tensor<'c>,
        watch: &mut WatchFn,
    ) -> Result<Vec<f32>> {
        let mut watcher = Watcher { watch, copy: Vec::new() };
        let mut graph = self.allocate(graph)?;
        graph.set(input, values);
        // SAFETY: the scheduler is valid; the watcher lives until the graph, which is dropped here, has been computed.
        unsafe {
            let scheduler = graph.scheduler.ptr.as_ptr();
            sys::ggml_backend_sched_set_eval_callback(scheduler, Some(at_node), (&raw mut watcher).cast());
        }
        graph.compute()?;
        Ok(graph.get(output))
    }
}

struct Watcher<'w> {
    watch: &'w mut WatchFn,
    copy: Vec<f32>,
}

/// The scheduler's evaluation callback.
///
/// # Safety
/// Called by ggml's scheduler with a valid node and the `Watcher` that was installed.
unsafe extern "C" fn at_node(node: *mut sys::ggml_tensor, ask: bool, watcher: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    let node = unsafe { &*node };
    if ask {
        return is_weight_product(node);
    }
    if is_weight_product(node) {
        // SAFETY: by this function's contract; nothing else uses the watcher meanwhile.
        let watcher = unsafe { &mut *watcher.cast::<Watcher<'_>>() };
        show(node, &mut watcher.copy, watcher.watch);
    }
    true
}
