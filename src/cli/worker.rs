//! `qvl worker`: computes layers for a `qvl` on another machine.

use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{fs, thread};

use qvl::error::{Error, ErrorKind, Result};
use qvl::ggml::Device;

use super::args::WorkerArgs;
use super::{STOP, devices, print_error};

/// Runs it until Ctrl-C. Errors: it cannot listen; interrupted, in the end.
pub fn run(args: &WorkerArgs, quiet: bool) -> Result<()> {
    let all = Device::all();
    let devices: Vec<Device> = match &args.device[..] {
        [auto] if auto == "auto" => {
            let offload: Vec<_> = all.iter().copied().filter(Device::is_offload).collect();
            if offload.is_empty() { vec![Device::cpu()?] } else { offload }
        }
        names => names.iter().map(|name| devices::named(name, &all)).collect::<Result<_>>()?,
    };
    if let Some(dir) = &args.weights_cache {
        fs::create_dir_all(dir).map_err(|e| Error::other("cannot make the directory").because(e).at(dir))?;
    }
    let endpoint = format!("{}:{}", args.host, args.port);
    // ggml says only that it failed; this says why.
    TcpListener::bind(&endpoint).map_err(|e| Error::other(format!("cannot listen at {endpoint}")).because(e))?;
    if !quiet {
        let names: Vec<_> = devices.iter().map(Device::name).collect();
        print_error(&format!(
            "serving {} at {endpoint}, one qvl after the other; Ctrl-C ends it\n\
             Whoever can connect can use this machine's memory and stop this program, without a password and in the open: \
             let only machines that you trust reach the port.\n",
            names.join(", ")
        ));
    }
    let n_threads = args.threads.map_or_else(num_cpus::get_physical, usize::from);
    let cache = args.weights_cache.clone();
    // ggml's loop never looks whether it should end.
    let server = thread::Builder::new()
        .spawn(move || Device::serve(&devices, &endpoint, cache.as_deref(), n_threads))
        .map_err(|e| Error::memory("cannot start a thread").because(e))?;
    loop {
        if STOP.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        if server.is_finished() {
            return server.join().unwrap_or_else(|_| Err(Error::other("the worker panicked")));
        }
        thread::sleep(Duration::from_millis(50));
    }
}
