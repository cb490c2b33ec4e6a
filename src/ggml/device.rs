//! What ggml can compute on.

use std::ffi::{CStr, CString, c_char, c_void};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Once;
use std::time::Duration;

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};
use crate::kernels;

/// A device: the CPU, a GPU, another machine's. It is there as long as the process; the handle is cheap to copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    ptr: NonNull<sys::ggml_backend_device>,
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

    /// Whether a worker greets back, of whatever version: ggml itself waits for ever for one that does not. Errors: nothing within
    /// `patience`, or the connection ended.
    pub fn greet_worker(stream: &mut TcpStream, patience: Duration) -> io::Result<bool> {
        /// ggml's `RPC_CMD_HELLO`, which is the same in all versions, and the bytes that follow it.
        const HELLO: (u8, u64) = (14, 24);
        /// No answer to it is longer.
        const LONGEST: u64 = 4096;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut greeting = vec![HELLO.0];
        greeting.extend(HELLO.1.to_le_bytes());
        greeting.extend([0; HELLO.1 as usize]);
        stream.write_all(&greeting)?;
        let mut n_bytes = [0; 8];
        stream.read_exact(&mut n_bytes)?;
        Ok(u64::from_le_bytes(n_bytes) <= LONGEST)
    }

    /// Connects to a `qvl worker` at `HOST:PORT`; its devices. Errors: nobody answers there, or not as a worker of this
    /// version does; this build cannot.
    pub fn add_worker(endpoint: &str) -> Result<Vec<Device>> {
        type AddServer = unsafe extern "C" fn(*const c_char) -> sys::ggml_backend_reg_t;
        load_backends();
        let c_endpoint = CString::new(endpoint).map_err(|e| Error::usage("an address with a zero byte").because(e))?;
        // SAFETY: ggml's RPC backend gives this function under this name; the endpoint is a terminated string that lives during
        // the call, which returns null when it cannot connect.
        let reg = unsafe {
            let add =
                std::mem::transmute::<*mut c_void, AddServer>(function_of(c"RPC", c"ggml_backend_rpc_add_server")?);
            let reg = add(c_endpoint.as_ptr());
            if reg.is_null() {
                return Err(Error::usage(format!("{endpoint}: no worker of this version answers there")));
            }
            sys::ggml_backend_register(reg);
            reg
        };
        // SAFETY: the registration is valid, indices are below its count.
        let devices =
            unsafe { (0..sys::ggml_backend_reg_dev_count(reg)).map(|i| sys::ggml_backend_reg_dev_get(reg, i)) };
        Ok(devices.filter_map(NonNull::new).map(|ptr| Device { ptr }).collect())
    }

    /// Serves `devices` to other machines at `HOST:PORT`, one after the other, until the process ends. Weights that were sent once are
    /// kept in the directory `cache`, if given. Errors: it cannot listen there; this build cannot.
    pub fn serve(devices: &[Device], endpoint: &str, cache: Option<&Path>, n_threads: usize) -> Result<()> {
        type StartServer =
            unsafe extern "C" fn(*const c_char, *const c_char, usize, usize, *mut sys::ggml_backend_dev_t);
        let text = |text: &[u8]| CString::new(text).map_err(|e| Error::usage("a zero byte").because(e));
        let endpoint = text(endpoint.as_bytes())?;
        let cache = cache.map(|dir| text(dir.as_os_str().as_encoded_bytes())).transpose()?;
        let mut devices: Vec<_> = devices.iter().map(|device| device.ptr.as_ptr()).collect();
        // SAFETY: as in `add_worker`; strings and devices live during the call; a null cache means none.
        unsafe {
            let start =
                std::mem::transmute::<*mut c_void, StartServer>(function_of(c"RPC", c"ggml_backend_rpc_start_server")?);
            let cache = cache.as_ref().map_or(std::ptr::null(), |dir| dir.as_ptr());
            start(endpoint.as_ptr(), cache, n_threads, devices.len(), devices.as_mut_ptr());
        }
        Err(Error::other("the worker cannot listen there, or go on doing so"))
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
