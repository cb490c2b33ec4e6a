//! What ggml can compute on.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Once;

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};
use crate::kernels;

/// A device: the CPU, a GPU, another machine's. It is there as long as the process; the handle is cheap to copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    pub(super) ptr: NonNull<sys::ggml_backend_device>,
}

// SAFETY: devices are entries of ggml's registry, which stay where they are, and answer from any thread.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// What a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// The machine's processor.
    Cpu,
    /// One with memory of its own.
    Gpu,
    /// One that shares the machine's memory, as in Jetson boards, Apple's computers and most laptops.
    Integrated,
    /// A library that helps the CPU (BLAS, say). Nothing is placed on it.
    Accelerator,
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceMemory {
    /// What is left.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

impl Device {
    /// All that this build knows on this machine, and the workers that were [added](Device::add_worker).
    pub fn all() -> Vec<Device> {
        load_backends();
        // SAFETY: indices below the count; a device is never null.
        let at = |i| NonNull::new(unsafe { sys::ggml_backend_dev_get(i) });
        // SAFETY: no arguments.
        (0..unsafe { sys::ggml_backend_dev_count() }).filter_map(at).map(|ptr| Device { ptr }).collect()
    }

    /// The CPU. Errors: this installation lacks ggml's library for it.
    pub fn cpu() -> Result<Device> {
        Device::all().into_iter().find(|device| device.kind() == DeviceKind::Cpu).ok_or_else(|| {
            Error::other(
                "ggml's library for the CPU (libggml-cpu-*) is missing: it belongs beside the program, or into ../lib/qvl",
            )
        })
    }

    /// Its name in flags: `CPU`, `CUDA0`, `Vulkan1`, `RPC0[host:port]`.
    pub fn name(&self) -> String {
        // SAFETY: the device is valid; ggml returns a terminated string.
        unsafe { string(sys::ggml_backend_dev_name(self.ptr.as_ptr())) }
    }

    /// What its maker calls it.
    pub fn description(&self) -> String {
        // SAFETY: as in `name`.
        unsafe { string(sys::ggml_backend_dev_description(self.ptr.as_ptr())) }
    }

    /// What it is.
    pub fn kind(&self) -> DeviceKind {
        // SAFETY: the device is valid.
        match unsafe { sys::ggml_backend_dev_type(self.ptr.as_ptr()) } {
            sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Cpu,
            sys::GGML_BACKEND_DEVICE_TYPE_GPU => DeviceKind::Gpu,
            sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::Integrated,
            _ => DeviceKind::Accelerator,
        }
    }

    /// Whether layers can be placed on it: any but the CPU and its helpers.
    pub fn is_offload(&self) -> bool {
        matches!(self.kind(), DeviceKind::Gpu | DeviceKind::Integrated)
    }

    /// Its memory now. Cost: a question to its driver, or over the network.
    pub fn memory(&self) -> DeviceMemory {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the device is valid; both numbers are written.
        unsafe { sys::ggml_backend_dev_memory(self.ptr.as_ptr(), &raw mut free, &raw mut total) };
        DeviceMemory { free: free as u64, total: total as u64 }
    }

    /// Whether graphs on it can read memory of the machine in place.
    pub(super) fn maps_memory(&self) -> bool {
        // SAFETY: the device is valid and fills the structure, which is numbers and pointers only.
        unsafe {
            let mut props = std::mem::zeroed::<sys::ggml_backend_dev_props>();
            sys::ggml_backend_dev_get_props(self.ptr.as_ptr(), &raw mut props);
            props.caps.buffer_from_host_ptr
        }
    }

    pub(crate) fn c(&self) -> sys::ggml_backend_dev_t {
        self.ptr.as_ptr()
    }
}

/// A function that a backend gives by name. Errors: this build lacks the backend.
pub(super) fn function_of(backend: &CStr, name: &CStr) -> Result<*mut c_void> {
    // SAFETY: names are terminated strings; null results are handled.
    let function = unsafe {
        match sys::ggml_backend_reg_by_name(backend.as_ptr()) {
            reg if reg.is_null() => std::ptr::null_mut(),
            reg => sys::ggml_backend_reg_get_proc_address(reg, name.as_ptr()),
        }
    };
    if function.is_null() {
        return Err(Error::usage(format!(
            "this build lacks ggml's {} backend; build it as the README says",
            backend.to_string_lossy()
        )));
    }
    Ok(function)
}

/// # Safety
/// A terminated string.
unsafe fn string(text: *const c_char) -> String {
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// In builds with `dynamic-backends`: loads ggml's libraries, for the CPU the one that fits it best, from beside the program or
/// from `../lib/qvl`. Elsewhere they are part of the program. Then lets it ask for kernels of ours.
pub(crate) fn load_backends() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        if cfg!(feature = "dynamic-backends") {
            for dir in library_dirs() {
                if let Ok(dir) = CString::new(dir.as_os_str().as_encoded_bytes()) {
                    // SAFETY: a terminated string that lives during the call; what is not there is passed over.
                    unsafe { sys::ggml_backend_load_all_from_path(dir.as_ptr()) };
                }
                // SAFETY: no arguments.
                if unsafe { sys::ggml_backend_dev_count() } > 0 {
                    break;
                }
            }
        }
        if let Ok(of_kinds) = function_of(c"CPU", c"ggml_backend_dev_get_extra_bufts") {
            // SAFETY: it is that; whatever computes begins here.
            unsafe { kernels::install(of_kinds) };
        }
    });
}

/// Where libraries may lie.
fn library_dirs() -> Vec<PathBuf> {
    let program = std::env::current_exe().and_then(std::fs::canonicalize).unwrap_or_default();
    let beside = program.parent().unwrap_or(Path::new("."));
    let installed = beside.parent().map(|prefix| prefix.join("lib/qvl"));
    installed.into_iter().filter(|dir| dir.is_dir()).chain([beside.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_there() {
        let cpu = Device::cpu().unwrap();
        assert!(Device::all().contains(&cpu) && !cpu.is_offload());
        assert_eq!(cpu.name(), "CPU");
        assert!(cpu.memory().free <= cpu.memory().total && !cpu.description().is_empty());
    }

    #[test]
    fn what_a_build_lacks_is_said() {
        let error = function_of(c"Abacus", c"count").unwrap_err();
        assert!(error.to_string().contains("lacks ggml's Abacus backend"), "{error}");
    }
}
