//! What stands before ggml's own way to compute a node: products of quantised weights with one column, with a few, or with many, are
//! ours.
//!
//! ggml asks the extra kinds of buffers that it has for the CPU, before it plans a node how much room it wants, and then on every thread
//! whether it computes it. They are C++ objects in a list, to which [`install`] adds one: no weight is ever in such a buffer. List and
//! objects are internal to ggml, so the crate's version is pinned; `tests/it/rows.rs` fails where nothing is asked any more.
//!
//! The list and what the kernels call are in the program, or, in builds with `dynamic-backends`, in the library that was chosen.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use llama_cpp_sys_2 as sys;

use super::{few, many, prompt_attention, row};
use crate::quant::GgmlType;

/// ggml's `ggml_compute_params`; a test would fail if it were another one.
#[repr(C)]
pub struct Params {
    pub ith: c_int,
    pub nth: c_int,
    pub wsize: usize,
    pub wdata: *mut c_void,
    threadpool: *mut c_void,
    use_ref: bool,
}

/// What ggml's code for the CPU has and gives no other program.
struct Ggml {
    kinds: unsafe extern "C" fn() -> *mut List,
    traits: unsafe extern "C" fn(sys::ggml_type) -> *const sys::ggml_type_traits_cpu,
    barrier: unsafe extern "C" fn(*mut c_void),
    chunk_set: unsafe extern "C" fn(*mut c_void, c_int),
    chunk_add: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
}

static GGML: OnceLock<Option<Ggml>> = OnceLock::new();

/// A `std::vector` of pointers.
#[repr(C)]
struct List {
    begin: *mut *const BufferType,
    end: *mut *const BufferType,
    capacity: *mut *const BufferType,
}

/// ggml's `ggml_backend_buffer_type`: eight functions, of which none is called where nothing is allocated, and its device.
#[repr(C)]
struct BufferType {
    functions: [*const c_void; 8],
    device: *const c_void,
    context: *const Object<KindMethods>,
}

/// A C++ object without fields, as the Itanium ABI has it.
#[repr(C)]
struct Object<T: 'static> {
    methods: &'static T,
}

/// `ggml::cpu::extra_buffer_type`. Its destructors are never called.
#[repr(C)]
struct KindMethods {
    destructors: [*const c_void; 2],
    supports: unsafe extern "C" fn(*const Object<KindMethods>, *const c_void, *const sys::ggml_tensor) -> bool,
    traits: unsafe extern "C" fn(*const Object<KindMethods>, *const sys::ggml_tensor) -> *const Object<TraitsMethods>,
}

/// `ggml::cpu::tensor_traits`. Its destructors are never called.
#[repr(C)]
struct TraitsMethods {
    destructors: [*const c_void; 2],
    work_size: unsafe extern "C" fn(*const Object<TraitsMethods>, c_int, *const sys::ggml_tensor, *mut usize) -> bool,
    compute: unsafe extern "C" fn(*const Object<TraitsMethods>, *mut Params, *mut sys::ggml_tensor) -> bool,
}

// SAFETY: constants, which nothing writes.
unsafe impl Sync for BufferType {}
// SAFETY: as above.
unsafe impl Sync for KindMethods {}
// SAFETY: as above.
unsafe impl Sync for TraitsMethods {}

static TRAITS: Object<TraitsMethods> =
    Object { methods: &TraitsMethods { destructors: [ptr::null(); 2], work_size, compute } };
static KIND: Object<KindMethods> = Object { methods: &KindMethods { destructors: [ptr::null(); 2], supports, traits } };
static BUFFER_TYPE: BufferType =
    BufferType { functions: [ptr::null(); 8], device: ptr::null(), context: &raw const KIND };

/// Whether ggml asks us.
pub fn is_installed() -> bool {
    GGML.get().is_some_and(Option::is_some)
}

/// Lets ggml ask us from now on. `of_kinds` is a function of ggml's that lists its kinds of buffers, and with it where its code is.
///
/// # Safety
/// ggml is loaded, and nothing computes a graph yet.
pub unsafe fn install(of_kinds: *mut c_void) {
    GGML.get_or_init(|| {
        // SAFETY: what it lists from now on, for those who choose buffers, is what it listed when it was called first.
        unsafe {
            let of_kinds: unsafe extern "C" fn(*mut c_void) -> *mut c_void = std::mem::transmute(of_kinds);
            of_kinds(ptr::null_mut());
            let ggml = Ggml::find(of_kinds as *const c_void)?;
            add(&mut *(ggml.kinds)()).then_some(ggml)
        }
    });
}

/// Adds ours to the list, behind those that are there: repacked weights, whose rows are no rows, come first. False where there is no
/// memory.
///
/// # Safety
/// No other thread has the list.
unsafe fn add(list: &mut List) -> bool {
    // SAFETY: between begin and end are as many pointers. The vector frees its memory at the program's end by C's `free`, which is what
    // the system's allocator is for memory of such alignment; what it had before, a pointer or two, stays where it is.
    unsafe {
        let n = list.end.offset_from_unsigned(list.begin);
        let begin: *mut *const BufferType = libc::calloc(n + 1, size_of::<*const BufferType>()).cast();
        if begin.is_null() {
            return false;
        }
        if n > 0 {
            begin.copy_from_nonoverlapping(list.begin, n);
        }
        begin.add(n).write(&raw const BUFFER_TYPE);
        let end = begin.add(n + 1);
        *list = List { begin, end, capacity: end };
    }
    true
}

#[cfg(not(feature = "dynamic-backends"))]
impl Ggml {
    /// Those of the program.
    ///
    /// # Safety
    /// Any argument will do; the functions are of these types in the version that this is written for.
    unsafe fn find(_: *const c_void) -> Option<Self> {
        unsafe extern "C" {
            #[link_name = "_Z39ggml_backend_cpu_get_extra_buffer_typesv"]
            fn kinds() -> *mut List;
            fn ggml_barrier(threadpool: *mut c_void);
            fn ggml_threadpool_chunk_set(threadpool: *mut c_void, value: c_int);
            fn ggml_threadpool_chunk_add(threadpool: *mut c_void, value: c_int) -> c_int;
        }
        Some(Ggml {
            kinds,
            traits: sys::ggml_get_type_traits_cpu,
            barrier: ggml_barrier,
            chunk_set: ggml_threadpool_chunk_set,
            chunk_add: ggml_threadpool_chunk_add,
        })
    }
}

#[cfg(feature = "dynamic-backends")]
impl Ggml {
    /// Those of the library that has `function`; none where it lacks one of them.
    ///
    /// # Safety
    /// It is a function of ggml's code for the CPU, of the version that this is written for.
    unsafe fn find(function: *const c_void) -> Option<Self> {
        // SAFETY: names are terminated strings, and the functions are of these types in this version. The library stays loaded.
        unsafe {
            let mut info = std::mem::zeroed::<libc::Dl_info>();
            if libc::dladdr(function, &raw mut info) == 0 {
                return None;
            }
            let library = libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD);
            if library.is_null() {
                return None;
            }
            let symbol = |name: &std::ffi::CStr| {
                let symbol = libc::dlsym(library, name.as_ptr());
                (!symbol.is_null()).then_some(symbol)
            };
            Some(Ggml {
                kinds: std::mem::transmute::<*mut c_void, _>(symbol(c"_Z39ggml_backend_cpu_get_extra_buffer_typesv")?),
                traits: std::mem::transmute::<*mut c_void, _>(symbol(c"ggml_get_type_traits_cpu")?),
                barrier: std::mem::transmute::<*mut c_void, _>(symbol(c"ggml_barrier")?),
                chunk_set: std::mem::transmute::<*mut c_void, _>(symbol(c"ggml_threadpool_chunk_set")?),
                chunk_add: std::mem::transmute::<*mut c_void, _>(symbol(c"ggml_threadpool_chunk_add")?),
            })
        }
    }
}

/// That of an installed hook, which all that is computed here has behind it.
fn ggml() -> &'static Ggml {
    let Some(Some(ggml)) = GGML.get() else { unreachable!("ggml asks only where it was found") };
    ggml
}

/// Rounds `n` values to a type that columns have: one that ggml itself rounds them to.
///
/// # Safety
/// `from` has n values of f32 and `to` room for as many of the type, whole blocks.
pub unsafe fn round(ty: sys::ggml_type, from: *const f32, to: *mut c_void, n: usize) {
    // SAFETY: by this function's contract; a constant table, which has every type.
    unsafe {
        let Some(round) = (*(ggml().traits)(ty)).from_float else { unreachable!("ggml rounds columns by it, too") };
        round(from, to, n as i64);
    }
}

/// No weight is to be in such a buffer.
unsafe extern "C" fn supports(_: *const Object<KindMethods>, _: *const c_void, _: *const sys::ggml_tensor) -> bool {
    false
}

/// Any node may be ours; the two answers tell.
unsafe extern "C" fn traits(_: *const Object<KindMethods>, _: *const sys::ggml_tensor) -> *const Object<TraitsMethods> {
    &raw const TRAITS
}

/// What ggml calls before it plans the room of a node. For one column and for a few its own plan has room enough.
unsafe extern "C" fn work_size(
    _: *const Object<TraitsMethods>,
    _n_threads: c_int,
    op: *const sys::ggml_tensor,
    size: *mut usize,
) -> bool {
    // SAFETY: called by ggml with a node of a graph that it plans, and its size. ggml promises not to change the node; the parameter that is
    // set here belongs to no operation of its own.
    unsafe {
        let mark = |mark| (&raw mut (*op.cast_mut()).op_params[MARK]).write(mark);
        if (*op).op == sys::GGML_OP_FLASH_ATTN_EXT {
            mark(if prompt_attention::is_planned(&*op) { prompt_attention::MARK } else { 0 });
            // Ours has room of its own.
            return false;
        }
        let Some(node) = Node::of(&*op) else { return false };
        let plan = many::plan(&node);
        mark(plan.as_ref().map_or(0, |plan| plan.mark));
        plan.is_some_and(|plan| {
            *size = plan.n_bytes;
            true
        })
    }
}

/// Where a node is marked that is planned to be ours, a product with many columns or an attention: ggml uses the first ones.
const MARK: usize = 15;

/// What ggml calls before it computes a node itself, on every thread.
unsafe extern "C" fn compute(_: *const Object<TraitsMethods>, params: *mut Params, op: *mut sys::ggml_tensor) -> bool {
    // SAFETY: called by ggml with a node of the graph that it computes.
    unsafe {
        let params = &*params;
        if params.use_ref {
            return false;
        }
        if (*op).op == sys::GGML_OP_FLASH_ATTN_EXT {
            return (*op).op_params[MARK] == prompt_attention::MARK && prompt_attention::compute(&*op, params);
        }
        let Some(node) = Node::of(&*op) else { return false };
        if let Some(product) = row::Product::of(&node, params) {
            product.compute(params);
            return true;
        }
        if let Some(product) = few::Product::of(&node, params) {
            product.compute(params);
            return true;
        }
        many::compute(&node, params, (*op).op_params[MARK])
    }
}

/// A product of a matrix of quantised weights with columns of f32.
pub struct Node {
    pub ty: GgmlType,
    /// Values of a row, and of a column.
    pub k: usize,
    /// Rows of whole blocks, `w_stride` bytes apart.
    pub w: *const u8,
    pub w_stride: usize,
    pub n_rows: usize,
    /// Columns of f32, `x_stride` bytes apart.
    pub x: *const u8,
    pub x_stride: usize,
    pub n_columns: usize,
    /// Sums in f32 are asked for, on every device: our own graphs do, which choose their kernels themselves.
    pub is_exact: bool,
    /// The result's columns of f32.
    pub out: *mut u8,
    pub out_stride: usize,
}

impl Node {
    /// None if it is another kind of node, a product with more than one matrix, or one whose shapes do not go together.
    ///
    /// # Safety
    /// `op` is a node of a graph.
    unsafe fn of(op: &sys::ggml_tensor) -> Option<Self> {
        if op.op != sys::GGML_OP_MUL_MAT || op.op_params[1] != 0 {
            return None;
        }
        // SAFETY: a product has two sources.
        let (w, x) = unsafe { (&*op.src[0], &*op.src[1]) };
        let ty = GgmlType::from_id(w.type_)?;
        let [k, n_columns, ..] = x.ne.map(|n| n as usize);
        let is_flat = |t: &sys::ggml_tensor| t.ne[2] == 1 && t.ne[3] == 1;
        let has_floats = |t: &sys::ggml_tensor| t.type_ == sys::GGML_TYPE_F32 && t.nb[0] == size_of::<f32>();
        let has_rows = w.nb[0] as u64 == ty.block_bytes();
        // ggml has proven what its own functions make; a worker's graphs come from another machine.
        let fits = k > 0 && w.ne[0] == x.ne[0] && w.ne[1] > 0 && op.ne == [w.ne[1], x.ne[1], 1, 1];
        let is_ours = fits && has_rows && is_flat(w) && is_flat(x) && has_floats(x) && has_floats(op);
        is_ours.then_some(Node {
            ty,
            k,
            w: w.data.cast(),
            w_stride: w.nb[1],
            n_rows: w.ne[1] as usize,
            x: x.data.cast(),
            x_stride: x.nb[1],
            n_columns,
            is_exact: op.op_params[0] == sys::GGML_PREC_F32 as i32,
            out: op.data.cast(),
            out_stride: op.nb[1],
        })
    }
}

impl Params {
    /// Waits until all threads are here, and begins to count for [`share`](Self::share).
    ///
    /// # Safety
    /// ggml has given these parameters; all threads call it, once before they share.
    pub unsafe fn wait(&self) {
        let ggml = ggml();
        // SAFETY: by this function's contract. The counter is set before the threads meet; each begins with its own number.
        unsafe {
            if self.ith == 0 {
                (ggml.chunk_set)(self.threadpool, self.nth);
            }
            (ggml.barrier)(self.threadpool);
        }
    }

    /// Numbers below `n` that no other thread gets.
    ///
    /// # Safety
    /// After [`wait`](Self::wait), once.
    pub unsafe fn share(&self, n: usize) -> impl Iterator<Item = usize> {
        let (ggml, mut next) = (ggml(), self.ith as usize);
        std::iter::from_fn(move || {
            let i = next;
            if i >= n {
                return None;
            }
            // SAFETY: by this function's contract, the threads' pool is at work.
            next = unsafe { (ggml.chunk_add)(self.threadpool, 1) } as usize;
            Some(i)
        })
    }
}

/// Products that were computed by kernels of ours.
pub struct Count(AtomicUsize);

impl Count {
    pub const fn new() -> Self {
        Count(AtomicUsize::new(0))
    }

    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
