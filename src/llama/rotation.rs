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

/// How queries and keys get their positions.
pub struct Rotation {
    /// Exactly, by the CPU: called for the queries and the keys of each layer.
    pub rows: Box<dyn FnMut(RotatedRows<'_>)>,
    /// What a device that has a layer does itself; where there is nothing, the CPU rotates its rows, too: a stop and three copies,
    /// twice a layer.
    pub on_device: Option<Formula>,
}

/// A rotation in the terms of ggml: queries and keys at position p are turned by p · base^(−2i/d), in f32 and with the device's own
/// sine and cosine; queries are multiplied with a factor then.
pub struct Formula {
    /// Base of the angles.
    pub base: f32,
    /// The factor of queries at a position.
    pub factor: Box<dyn Fn(i32) -> f32>,
}

/// Where a rotary node has what it computes with, as indices of its `op_params`, in 4 bytes each (ggml's `ggml_rope_impl`; a test
/// asks).
const BASE: usize = 5;
const SCALE: usize = 6;
const FACTOR: usize = 8;

/// What the callback holds between nodes.
pub(super) struct Hook {
    pub(super) rotation: Rotation,
    /// What devices multiply the queries of the batch that is read with; `None` where they do not rotate these: the positions have
    /// different factors.
    factor: Option<f32>,
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
    pub(super) fn new(stream: *const Stream, rotation: Rotation) -> Self {
        Hook {
            rotation,
            factor: None,
            watch: None,
            ops: None,
            stream,
            positions: Vec::new(),
            copy: Vec::new(),
            n_seen: 0,
        }
    }

    /// To be called before a batch at `positions` is read.
    pub(super) fn expect(&mut self, positions: impl Iterator<Item = i32>) {
        self.n_seen = 0;
        self.factor = self.rotation.on_device.as_ref().and_then(|formula| common(positions.map(&formula.factor)));
    }

    /// Lets the device that computes `node` rotate, where it can. Whether it does.
    fn leave_to_device(&self, node: &mut sys::ggml_tensor, which: Rotated) -> bool {
        // SAFETY: a buffer that is not null is valid while its node runs. What lies in the machine's memory, the CPU computes.
        let is_on_device = !node.buffer.is_null() && unsafe { !sys::ggml_backend_buffer_is_host(node.buffer) };
        let Some(formula) = self.rotation.on_device.as_ref().filter(|_| is_on_device) else { return false };
        let factor = if which == Rotated::Queries { self.factor } else { Some(1.0) };
        // In either case: nodes are computed again for the next token, with what they were given.
        let (scale, by) = factor.map_or((NO_ROTATION, 1.0), |factor| (1.0, factor));
        for (at, value) in [(BASE, formula.base), (SCALE, scale), (FACTOR, by)] {
            node.op_params[at] = value.to_bits().cast_signed();
        }
        factor.is_some()
    }
}

/// The value that all of them have.
fn common(mut values: impl Iterator<Item = f32>) -> Option<f32> {
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// What a rotary node rotates, by its name.
fn rotated(node: &sys::ggml_tensor) -> Option<Rotated> {
    match name(node).split(|c| *c == b'-').next() {
        Some(b"Qcur") => Some(Rotated::Queries),
        Some(b"Kcur") => Some(Rotated::Keys),
        _ => None,
    }
}

fn name(node: &sys::ggml_tensor) -> &[u8] {
    // SAFETY: node names are terminated strings inside the node.
    unsafe { CStr::from_ptr(node.name.as_ptr()) }.to_bytes()
}

/// The scheduler's evaluation callback: asks to see each rotary node that no device rotates itself, and rotates its rows once they
/// are computed; and each product with a weight where its input is watched.
///
/// # Safety
/// Called by ggml's scheduler with a valid node and the `Hook` that was installed.
pub(super) unsafe extern "C" fn at_node(node: *mut sys::ggml_tensor, ask: bool, hook: *mut c_void) -> bool {
    // SAFETY: the node is the scheduler's, the hook ours, and nothing else uses either meanwhile.
    let (node, hook) = unsafe { (&mut *node, &mut *hook.cast::<Hook>()) };
    if ask && let Some(ops) = &mut hook.ops {
        count(node, ops);
    }
    if node.op != sys::GGML_OP_ROPE {
        let Hook { watch, copy, .. } = hook;
        return match watch {
            Some(watch) if is_weight_product(node) => {
                if !ask {
                    show(node, copy, watch.as_mut());
                }
                true
            }
            _ => !ask,
        };
    }
    let Some(which) = rotated(node) else { return true };
    if ask {
        let is_left = hook.leave_to_device(node, which);
        hook.n_seen += usize::from(is_left);
        return !is_left;
    }
    // SAFETY: null, or of the model that the context borrows.
    if let Some(stream) = unsafe { hook.stream.as_ref() }
        && which == Rotated::Queries
        && let Some(il) = number(name(node))
    {
        stream.begins(il);
    }
    let n_values = node.ne.iter().product::<i64>() as usize;
    // SAFETY: src[1] of a rotary node is its i32 positions; the node is f32 and, as the result of an operation,
    // contiguous; both are computed. Host memory is rotated where it lies, other memory through a copy.
    unsafe {
        let positions = node.src[1];
        hook.positions.resize(sys::ggml_nelements(positions) as usize, 0);
        let n_bytes = size_of_val(&hook.positions[..]);
        sys::ggml_backend_tensor_get(positions, hook.positions.as_mut_ptr().cast(), 0, n_bytes);
        hook.n_seen += 1;
        let Hook { rotation, positions, copy, .. } = hook;
        if sys::ggml_backend_buffer_is_host(node.buffer) {
            let rows = std::slice::from_raw_parts_mut(node.data.cast::<f32>(), n_values);
            (rotation.rows)(RotatedRows { which, positions, rows });
        } else {
            copy.resize(n_values, 0.0);
            let n_bytes = n_values * size_of::<f32>();
            sys::ggml_backend_tensor_get(node, copy.as_mut_ptr().cast(), 0, n_bytes);
            (rotation.rows)(RotatedRows { which, positions, rows: copy });
            sys::ggml_backend_tensor_set(node, copy.as_ptr().cast(), 0, n_bytes);
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
fn number(name: &[u8]) -> Option<usize> {
    let digits = name.rsplit(|c| *c == b'-').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written into nodes is where this ggml looks for it.
    #[test]
    fn parameters_are_where_ggml_has_them() {
        let (base, scale, factor) = (10000.5f32, 0.25f32, 1.5f32);
        let params = sys::ggml_init_params { mem_size: 1 << 16, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        // SAFETY: the context has room for three tensors without data; the node is read before it is freed.
        let op_params = unsafe {
            let c = sys::ggml_init(params);
            let rows = sys::ggml_new_tensor_3d(c, sys::GGML_TYPE_F32, 8, 2, 3);
            let positions = sys::ggml_new_tensor_1d(c, sys::GGML_TYPE_I32, 3);
            let none = std::ptr::null_mut();
            let node = sys::ggml_rope_ext(c, rows, positions, none, 8, 2, 0, base, scale, 0.0, factor, 32.0, 1.0);
            let op_params = (*node).op_params;
            sys::ggml_free(c);
            op_params
        };
        assert_eq!(
            [BASE, SCALE, FACTOR].map(|at| op_params[at]),
            [base, scale, factor].map(|x| x.to_bits().cast_signed())
        );
    }

    #[test]
    fn a_factor_is_common_or_not() {
        assert_eq!(common([1.0, 1.0, 1.0].into_iter()), Some(1.0));
        assert_eq!(common([1.0, 1.25].into_iter()), None);
        assert_eq!(common([].into_iter()), None);
    }
}
