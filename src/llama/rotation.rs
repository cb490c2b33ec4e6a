//! The door through which queries and keys are rotated by us, not by ggml.

use std::ffi::{CStr, c_void};

use llama_cpp_sys_2 as sys;

use super::stream::Stream;
use crate::ggml::{OpCounts, WatchFn, is_weight_product, op_name, show};

/// Makes ggml's own rotation the identity in f32 (every angle is below 1e-25), without the 0 that means "default".
///
/// The exact rotation is done by the callback instead: ggml multiplies angles up iteratively in f32, which drifts by
/// 1e-4 at positions in the thousands, and its `qwen` graph has neither dynamic NTK nor logn attention.
pub(super) const NO_ROTATION: f32 = 1e-30;

/// Which rows a rotation callback sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotated {
    /// Queries.
    Queries,
    /// Keys, before they enter the cache.
    Keys,
}

/// Rows of one layer that want their rotary positions: `rows` is `[tokens][n_head][d_head]`, row-major f32.
pub struct RotatedRows<'a> {
    /// Queries or keys.
    pub which: Rotated,
    /// Position of each token.
    pub positions: &'a [i32],
    /// The values, rotated in place.
    pub rows: &'a mut [f32],
}

type RotateFn = dyn FnMut(RotatedRows<'_>);

/// What the callback holds between nodes.
pub(super) struct Hook {
    pub(super) rotate: Box<RotateFn>,
    /// Sees what weights are multiplied with, if anybody asked for that.
    pub(super) watch: Option<Box<WatchFn>>,
    /// Counts which device runs what, if anybody asked for that.
    pub(super) ops: Option<OpCounts>,
    /// The model's, which outlives the context.
    pub(super) stream: *const Stream,
    positions: Vec<i32>,
    copy: Vec<f32>,
    /// Rotary nodes since it was set to 0.
    pub(super) n_seen: usize,
}

impl Hook {
    pub(super) fn new(stream: *const Stream, rotate: impl FnMut(RotatedRows<'_>) + 'static) -> Self {
        Hook {
            rotate: Box::new(rotate),
            watch: None,
            ops: None,
            stream,
            positions: Vec::new(),
            copy: Vec::new(),
            n_seen: 0,
        }
    }
}

/// The scheduler's evaluation callback: asks to see each rotary node and rotates its rows once they are computed; and each
/// product with a weight where its input is watched.
///
/// # Safety
/// Called by ggml's scheduler with a valid node and the `Hook` that was installed.
pub(super) unsafe extern "C" fn at_node(node: *mut sys::ggml_tensor, ask: bool, hook: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    let node_ref = unsafe { &*node };
    if ask {
        // SAFETY: the hook is ours, and nothing else uses it while a computation runs.
        let hook = unsafe { &mut *hook.cast::<Hook>() };
        if let Some(ops) = &mut hook.ops {
            count(node_ref, ops);
        }
    }
    if node_ref.op != sys::GGML_OP_ROPE {
        // SAFETY: the hook is ours, and nothing else uses it while a computation runs.
        let Hook { watch, copy, .. } = unsafe { &mut *hook.cast::<Hook>() };
        return match watch {
            Some(watch) if is_weight_product(node_ref) => {
                if !ask {
                    show(node_ref, copy, watch.as_mut());
                }
                true
            }
            _ => !ask,
        };
    }
    if ask {
        return true;
    }
    // SAFETY: node names are terminated strings inside the node.
    let name = unsafe { CStr::from_ptr(node_ref.name.as_ptr()) }.to_bytes();
    let which = match name {
        _ if name.starts_with(b"Qcur-") => Rotated::Queries,
        _ if name.starts_with(b"Kcur-") => Rotated::Keys,
        _ => return true,
    };
    // SAFETY: the hook is ours, and nothing else uses it while a computation runs.
    let hook = unsafe { &mut *hook.cast::<Hook>() };
    // SAFETY: null, or of the model that the context borrows.
    if let Some(stream) = unsafe { hook.stream.as_ref() }
        && let Some(il) = name.strip_prefix(b"Qcur-").and_then(number)
    {
        stream.begins(il);
    }
    let n_values = node_ref.ne.iter().product::<i64>() as usize;
    // SAFETY: src[1] of a rotary node is its i32 positions; the node is f32 and, as the result of an operation,
    // contiguous; both are computed. Host memory is rotated where it lies, other memory through a copy.
    unsafe {
        let positions = node_ref.src[1];
        hook.positions.resize(sys::ggml_nelements(positions) as usize, 0);
        let n_bytes = size_of_val(&hook.positions[..]);
        sys::ggml_backend_tensor_get(positions, hook.positions.as_mut_ptr().cast(), 0, n_bytes);
        hook.n_seen += 1;
        let Hook { rotate, positions, copy, .. } = hook;
        if sys::ggml_backend_buffer_is_host(node_ref.buffer) {
            let rows = std::slice::from_raw_parts_mut(node_ref.data.cast::<f32>(), n_values);
            rotate(RotatedRows { which, positions, rows });
        } else {
            copy.resize(n_values, 0.0);
            sys::ggml_backend_tensor_get(node, copy.as_mut_ptr().cast(), 0, n_values * size_of::<f32>());
            rotate(RotatedRows { which, positions, rows: copy });
            sys::ggml_backend_tensor_set(node, copy.as_ptr().cast(), 0, n_values * size_of::<f32>());
        }
    }
    true
}

/// Counts a node for the device in whose memory its result lies.
fn count(node: &sys::ggml_tensor, ops: &mut OpCounts) {
    let Some(op) = op_name(node).filter(|_| !node.buffer.is_null()) else { return };
    // SAFETY: nodes that run have a valid buffer, whose type has a name that is a terminated string, and a device or none.
    let place = unsafe {
        let ty = sys::ggml_backend_buffer_get_type(node.buffer);
        match sys::ggml_backend_buft_get_device(ty) {
            device if device.is_null() => CStr::from_ptr(sys::ggml_backend_buft_name(ty)),
            device => CStr::from_ptr(sys::ggml_backend_dev_name(device)),
        }
    };
    *ops.entry((op, place.to_string_lossy().into_owned())).or_default() += 1;
}

/// The layer at the end of a node's name.
fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
