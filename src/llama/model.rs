//! A text model's weights.

use std::ffi::{CString, c_char};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};

use llama_cpp_sys_2 as sys;

use super::stream::Stream;
use super::{log, start};
use crate::error::{Error, Result};
use crate::ggml::Device;
use crate::names::{text::VOCAB_SIZE, vocab};

/// How weights come into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadMode {
    /// Mapped: pages are shared with the page cache and read when touched.
    Map,
    /// Mapped and locked into memory.
    MapAndLock,
    /// Read into memory of our own.
    Read,
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct ModelParams {
    /// How weights come into memory.
    pub load: LoadMode,
    /// Devices, each with the number of layers that it computes, one after the other: the model's last ones, and its output matrix
    /// as one more. What comes before them is computed on the CPU.
    pub placed: Vec<(Device, usize)>,
    /// Whether ggml may copy weights into layouts that its CPU kernels prefer.
    pub repack: bool,
}

/// A loaded model. Freed when dropped.
pub struct Model {
    pub(super) ptr: NonNull<sys::llama_model>,
    pub(super) stream: Option<Stream>,
    /// Adapters with their scales; every context applies them all.
    pub(super) adapters: Vec<(NonNull<sys::llama_adapter_lora>, f32)>,
}

// SAFETY: a llama_model is immutable after loading; llama.cpp lets several contexts on several threads share one.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// Loads `path`, whose header the caller has proven, for tokens below `n_vocab`: ids are all that llama.cpp is given and
    /// gives, so that it need not read the vocabulary, which would take most of the time. Errors (kind model) carry llama.cpp's
    /// reason.
    pub fn load(path: &Path, n_vocab: usize, params: ModelParams) -> Result<Self> {
        start();
        let c_path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|e| Error::model("the path contains a zero byte").because(e).at(path))?;
        // SAFETY: no arguments.
        let mut c = unsafe { sys::llama_model_default_params() };
        // Ends with a null. Without devices the empty list keeps llama.cpp from taking those that it finds.
        let mut devices: Vec<_> = params.placed.iter().map(|(device, _)| device.c()).chain([ptr::null_mut()]).collect();
        // SAFETY: no arguments.
        let mut split = vec![0.0f32; unsafe { sys::llama_max_devices() }.max(params.placed.len())];
        split.iter_mut().zip(&params.placed).for_each(|(share, (_, n))| *share = *n as f32);
        c.devices = devices.as_mut_ptr();
        c.tensor_split = split.as_ptr();
        c.n_gpu_layers = params.placed.iter().map(|(_, n)| n).sum::<usize>() as i32;
        c.use_extra_bufts = params.repack;
        let ids_only = ids_only(n_vocab);
        c.kv_overrides = ids_only.as_ptr();
        c.load_mode = match params.load {
            LoadMode::Map => sys::LLAMA_LOAD_MODE_MMAP,
            LoadMode::MapAndLock => sys::LLAMA_LOAD_MODE_MMAP_MLOCK,
            LoadMode::Read => sys::LLAMA_LOAD_MODE_NONE,
        };
        log::take_last_error();
        // SAFETY: the path is a terminated string that lives during the call, as do devices, shares and the list of keys, which
        // ends with an empty one; the other parameters come from llama.cpp.
        let ptr = unsafe { sys::llama_model_load_from_file(c_path.as_ptr(), c) };
        let ptr = NonNull::new(ptr).ok_or_else(|| {
            Error::model(format!("llama.cpp cannot load the model: {}", log::take_last_error())).at(path)
        })?;
        Ok(Model { ptr, stream: None, adapters: Vec::new() })
    }

    /// Adds a LoRA adapter, whose file the caller has proven to fit this model, for all contexts that are made later. Several add
    /// up, in an order of llama.cpp's own, so that sums may round differently from run to run. Errors (kind model) carry
    /// llama.cpp's reason. Cost: a copy of the adapter in memory.
    pub fn add_adapter(&mut self, path: &Path, scale: f32) -> Result<()> {
        let c_path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|e| Error::model("the path contains a zero byte").because(e).at(path))?;
        log::take_last_error();
        // SAFETY: the model is valid and, borrowed mutably, in no context; the path is a terminated string that lives during
        // the call, which catches its own exceptions.
        let adapter = unsafe { sys::llama_adapter_lora_init(self.ptr.as_ptr(), c_path.as_ptr()) };
        let adapter = NonNull::new(adapter).ok_or_else(|| {
            Error::model(format!("llama.cpp cannot load the adapter: {}", log::take_last_error())).at(path)
        })?;
        self.adapters.push((adapter, scale));
        Ok(())
    }

    /// Lets the layers from `n_kept` on leave memory whenever they were used, for as long as the model lives. `layers`: bytes of
    /// each in the files of `parts`, which the model was loaded from with [`LoadMode::Map`], each where it is said to begin. Passes take longer by what the disk
    /// needs for them. Errors: the system does not tell where the file is mapped (only Linux does).
    pub fn keep_layers(&mut self, parts: &[(PathBuf, u64)], layers: Vec<Range<u64>>, n_kept: usize) -> Result<()> {
        self.stream = Some(Stream::new(parts, layers, n_kept)?);
        Ok(())
    }
}

/// What stands in the place of a file's keys so that llama.cpp takes its vocabulary for `n_vocab` tokens without texts.
fn ids_only(n_vocab: usize) -> [sys::llama_model_kv_override; 3] {
    fn text(text: &str) -> [c_char; 128] {
        let mut chars = [0; 128];
        chars.iter_mut().zip(text.bytes()).for_each(|(c, byte)| *c = byte as c_char);
        chars
    }
    use sys::llama_model_kv_override__bindgen_ty_1 as Value;
    let key = |key, tag, value| sys::llama_model_kv_override { tag, key: text(key), __bindgen_anon_1: value };
    [
        key(vocab::MODEL, sys::LLAMA_KV_OVERRIDE_TYPE_STR, Value { val_str: text("none") }),
        key(VOCAB_SIZE, sys::LLAMA_KV_OVERRIDE_TYPE_INT, Value { val_i64: n_vocab as i64 }),
        key("", sys::LLAMA_KV_OVERRIDE_TYPE_INT, Value { val_i64: 0 }),
    ]
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: all made by us, not used again; contexts borrow the model, so none is left. Adapters go before the model that
        // they are entered in.
        unsafe {
            self.adapters.iter().for_each(|(adapter, _)| sys::llama_adapter_lora_free(adapter.as_ptr()));
            sys::llama_model_free(self.ptr.as_ptr());
        }
    }
}
