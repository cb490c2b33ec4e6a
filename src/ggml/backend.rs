//! Computing a graph.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::device::load_backends;
use super::{Context, Device, DeviceKind, Graph, Tensor};
use crate::error::{Error, ErrorKind, Result};

/// Something that computes graphs: the CPU, or another device with the CPU for what that one cannot.
pub struct Backend<'a> {
    /// In the order in which they are asked; the CPU is the last one, as ggml's scheduler wants it.
    backends: Vec<NonNull<sys::ggml_backend>>,
    device: Device,
    stop: PhantomData<&'a AtomicBool>,
}

/// Widest head that any fused attention of ggml takes.
const MAX_HEAD: usize = 256;

impl<'a> Backend<'a> {
    /// The CPU with `n_threads` threads; a computation ends early once `stop` is set.
    pub fn cpu(n_threads: usize, stop: &'a AtomicBool) -> Result<Self> {
        Self::on(Device::cpu()?, n_threads, stop)
    }

    /// `device`, and the CPU with `n_threads` threads for operations that it lacks. Only the CPU looks at `stop`. Errors: the device
    /// does not start (kind memory where it has none left).
    pub fn on(device: Device, n_threads: usize, stop: &'a AtomicBool) -> Result<Self> {
        let cpu = Device::cpu()?;
        let mut backend = Backend { backends: Vec::new(), device, stop: PhantomData };
        if device.kind() != DeviceKind::Cpu {
            backend.start(device)?;
        }
        backend.start(cpu)?;
        let last = backend.backends[backend.backends.len() - 1].as_ptr();
        type SetThreads = unsafe extern "C" fn(sys::ggml_backend_t, c_int);
        type SetAbort = unsafe extern "C" fn(sys::ggml_backend_t, sys::ggml_abort_callback, *mut c_void);
        // SAFETY: the CPU's registration gives functions of these types under these names; the backend is the CPU's. `stop`
        // outlives it ('a) and the callback only reads it.
        unsafe {
            let set_threads = std::mem::transmute::<*mut c_void, SetThreads>(of_cpu(c"ggml_backend_set_n_threads")?);
            let set_abort = std::mem::transmute::<*mut c_void, SetAbort>(of_cpu(c"ggml_backend_set_abort_callback")?);
            set_threads(last, n_threads.clamp(1, 512) as i32);
            set_abort(last, Some(is_set), std::ptr::from_ref(stop).cast_mut().cast());
        }
        Ok(backend)
    }

    fn start(&mut self, device: Device) -> Result<()> {
        // SAFETY: the device is valid; null parameters are its defaults; a null result is handled.
        let ptr = NonNull::new(unsafe { sys::ggml_backend_dev_init(device.c(), std::ptr::null()) });
        self.backends.push(ptr.ok_or_else(|| Error::memory(format!("cannot start the device {}", device.name())))?);
        Ok(())
    }

    /// What it computes on.
    pub fn device(&self) -> Device {
        self.device
    }

    pub(super) fn is_cpu(&self) -> bool {
        self.backends.len() == 1
    }

    /// The first one.
    pub(super) fn c(&self) -> sys::ggml_backend_t {
        self.backends[0].as_ptr()
    }

    /// The least width, from `d` on, for which it has fused attention over heads of `d` values with zeros behind them; `None` if it
    /// has none.
    pub fn flash_width(&self, d: usize) -> Option<usize> {
        if self.is_cpu() {
            return Some(d);
        }
        let widths = (d..=d).chain((d / 8 * 8 + 8..=MAX_HEAD).step_by(8));
        widths.into_iter().find(|d| self.has_flash(*d).unwrap_or(false))
    }

    fn has_flash(&self, d: usize) -> Result<bool> {
        let c = Context::new(8)?;
        let [q, k, v] = [(); 3].map(|()| c.input(&[d, 64, 2]));
        let [k, v] = [k, v].map(|t| c.cast(t, crate::quant::GgmlType::F16));
        let attention = c.flash_attn(q, k, v, 1.0);
        // SAFETY: backend and tensor are valid; the device only reads types and extents.
        Ok(unsafe { sys::ggml_backend_supports_op(self.c(), attention.ptr.as_ptr()) })
    }

    /// Bytes that [`allocate`](Self::allocate) would take, on the device and on the CPU. Allocates nothing of that size.
    pub fn measure(&self, graph: &Graph<'_>) -> Result<usize> {
        let scheduler = Scheduler::new(self, graph)?;
        let mut sizes = vec![0; self.backends.len()];
        // SAFETY: scheduler and graph are valid; a size is written for each backend.
        unsafe {
            sys::ggml_backend_sched_reserve_size(scheduler.ptr.as_ptr(), graph.ptr.as_ptr(), sizes.as_mut_ptr());
        }
        Ok(sizes.into_iter().sum())
    }

    /// Allocates what `graph` needs between its inputs and outputs. Errors (kind memory): it does not fit.
    pub fn allocate<'c>(&self, graph: Graph<'c>) -> Result<Allocated<'_, 'c>> {
        let scheduler = Scheduler::new(self, &graph)?;
        // SAFETY: scheduler and graph are valid and stay together.
        if !unsafe { sys::ggml_backend_sched_alloc_graph(scheduler.ptr.as_ptr(), graph.ptr.as_ptr()) } {
            return Err(Error::memory("cannot allocate the compute buffer"));
        }
        Ok(Allocated { scheduler, graph })
    }
}

impl Drop for Backend<'_> {
    fn drop(&mut self) {
        // SAFETY: made by us, not used again.
        self.backends.iter().for_each(|backend| unsafe { sys::ggml_backend_free(backend.as_ptr()) });
    }
}

/// A function of the CPU's registration, whose library may have been loaded at run time.
fn of_cpu(name: &CStr) -> Result<*mut c_void> {
    load_backends();
    super::device::function_of(c"CPU", name)
}

/// ggml's abort callback over an `AtomicBool`; also handed to llama.cpp.
///
/// # Safety
/// `data` points to an `AtomicBool` that lives as long as the callback is installed.
pub(crate) unsafe extern "C" fn is_set(data: *mut c_void) -> bool {
    // SAFETY: by this function's contract.
    unsafe { (*data.cast::<AtomicBool>()).load(Ordering::Relaxed) }
}

/// ggml's scheduler: cuts a graph where another backend goes on, and copies there what it needs.
pub(super) struct Scheduler<'b> {
    pub(super) ptr: NonNull<sys::ggml_backend_sched>,
    backends: PhantomData<&'b ()>,
}

impl<'b> Scheduler<'b> {
    pub(super) fn new(backend: &'b Backend<'_>, graph: &Graph<'_>) -> Result<Self> {
        let mut backends: Vec<_> = backend.backends.iter().map(|backend| backend.as_ptr()).collect();
        // SAFETY: the backends outlive the scheduler ('b), and the last one is the CPU. Room for the nodes and for as many leaves: a
        // graph holds no more of either than its size. Null buffer types are the backends' own.
        let ptr = unsafe {
            let (size, n) = (2 * sys::ggml_graph_size(graph.ptr.as_ptr()) as usize, backends.len() as i32);
            sys::ggml_backend_sched_new(backends.as_mut_ptr(), std::ptr::null_mut(), n, size, false, false)
        };
        let ptr = NonNull::new(ptr).ok_or_else(|| Error::memory("cannot make a ggml scheduler"))?;
        Ok(Scheduler { ptr, backends: PhantomData })
    }
}

impl Drop for Scheduler<'_> {
    fn drop(&mut self) {
        // SAFETY: made by us, not used again.
        unsafe { sys::ggml_backend_sched_free(self.ptr.as_ptr()) }
    }
}

/// A graph with memory for its tensors.
pub struct Allocated<'b, 'c> {
    pub(super) scheduler: Scheduler<'b>,
    graph: Graph<'c>,
}

/// How often each operation runs on each device: (operation, device) → nodes.
pub type OpCounts = BTreeMap<(String, String), usize>;

impl Allocated<'_, '_> {
    /// Fills an input of this graph.
    pub fn set(&mut self, input: Tensor<'_>, values: &[f32]) {
        assert_eq!(input.dims().iter().product::<usize>(), values.len(), "values of the input");
        // SAFETY: the tensor is f32 (inputs are), allocated, and holds as many values (asserted).
        unsafe {
            sys::ggml_backend_tensor_set(input.ptr.as_ptr(), values.as_ptr().cast(), 0, size_of_val(values));
        }
    }

    /// Runs the graph. Errors: stopped (kind interrupted), or failed.
    pub fn compute(&mut self) -> Result<()> {
        // SAFETY: scheduler and graph are valid, every tensor is allocated.
        match unsafe { sys::ggml_backend_sched_graph_compute(self.scheduler.ptr.as_ptr(), self.graph.ptr.as_ptr()) } {
            sys::GGML_STATUS_SUCCESS => Ok(()),
            sys::GGML_STATUS_ABORTED => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
            sys::GGML_STATUS_ALLOC_FAILED => Err(Error::memory("ggml could not allocate its work buffer")),
            status => Err(Error::other(format!("ggml could not compute the graph (status {status})"))),
        }
    }

    /// Copies an f32 output.
    pub fn get(&self, output: Tensor<'_>) -> Vec<f32> {
        let mut values = vec![0.0f32; output.dims().iter().product()];
        // SAFETY: the tensor is f32 and contiguous (checked), allocated, and holds as many values.
        unsafe {
            let t = output.ptr.as_ptr();
            assert!((*t).type_ == sys::GGML_TYPE_F32 && sys::ggml_is_contiguous(t), "a contiguous f32 output");
            sys::ggml_backend_tensor_get(t, values.as_mut_ptr().cast(), 0, size_of_val(&values[..]));
        }
        values
    }

    /// In how many parts it runs: 1 if all of it stays on one backend.
    pub fn n_splits(&self) -> usize {
        // SAFETY: the scheduler is valid.
        unsafe { sys::ggml_backend_sched_get_n_splits(self.scheduler.ptr.as_ptr()) as usize }
    }

    /// Which device runs which operation. Views, which compute nothing, are left out.
    pub fn ops(&self) -> OpCounts {
        let mut counts = OpCounts::new();
        // SAFETY: indices below the count; nodes of an allocated graph have a backend, and that a device
        // whose name is a terminated string.
        unsafe {
            let graph = self.graph.ptr.as_ptr();
            for i in 0..sys::ggml_graph_n_nodes(graph) {
                let node = sys::ggml_graph_node(graph, i);
                let backend = sys::ggml_backend_sched_get_tensor_backend(self.scheduler.ptr.as_ptr(), node);
                if let Some(op) = op_name(&*node).filter(|_| !backend.is_null()) {
                    let device = CStr::from_ptr(sys::ggml_backend_dev_name(sys::ggml_backend_get_device(backend)));
                    *counts.entry((op, device.to_string_lossy().into_owned())).or_default() += 1;
                }
            }
        }
        counts
    }
}

/// What a node computes; `None` for a view or a leaf.
pub(crate) fn op_name(node: &sys::ggml_tensor) -> Option<String> {
    use sys::{GGML_OP_NONE, GGML_OP_PERMUTE, GGML_OP_RESHAPE, GGML_OP_TRANSPOSE, GGML_OP_VIEW};
    match node.op {
        GGML_OP_NONE | GGML_OP_PERMUTE | GGML_OP_RESHAPE | GGML_OP_TRANSPOSE | GGML_OP_VIEW => None,
        // SAFETY: a terminated string for every valid node.
        _ => Some(unsafe { CStr::from_ptr(sys::ggml_op_desc(node)) }.to_string_lossy().into_owned()),
    }
}
