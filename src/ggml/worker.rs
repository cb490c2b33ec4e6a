//! Other machines as devices, through ggml's RPC backend.

use std::ffi::{CString, c_char, c_void};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::ptr::NonNull;
use std::time::Duration;

use llama_cpp_sys_2 as sys;

use super::connections;
use super::device::{Device, function_of, load_backends};
use crate::error::{Error, Result};

impl Device {
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
        connections::notice_losses();
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
        connections::notice_losses();
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
}
