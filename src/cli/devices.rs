//! Which devices compute what.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use qvl::error::{Error, Result};
use qvl::ggml::{Device, DeviceKind};
use qvl::memory::{Kind, Phase, Placement, Wanted, place};
use qvl::session::{SessionSettings, TextFile};

use super::args::{ContextArgs, GpuLayers};

/// How long a worker may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// What of a device stays free: its driver, other programs' windows, what ggml takes for its kernels.
const RESERVE_BYTES: u64 = 256 << 20;

/// Devices that may have layers, and the one that looks at pictures.
pub struct Devices {
    offload: Vec<Offload>,
    vision: Device,
}

/// A device beside the CPU, and what was free on it before anything was loaded.
struct Offload {
    device: Device,
    free: u64,
}

/// Whether a device has failed, and everything is left to the CPU.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// From now on the CPU computes everything.
pub fn give_up() {
    GIVEN_UP.store(true, Ordering::Relaxed);
}

/// What the flags mean on this machine, found out once. Errors (kind usage): a device that is not there, a worker that does
/// not answer.
pub fn chosen(args: &ContextArgs) -> Result<&'static Devices> {
    static CHOSEN: OnceLock<Devices> = OnceLock::new();
    if let Some(chosen) = CHOSEN.get() {
        return Ok(chosen);
    }
    let devices = choose(args)?;
    Ok(CHOSEN.get_or_init(|| devices))
}

fn choose(args: &ContextArgs) -> Result<Devices> {
    let mut workers = Vec::new();
    for endpoint in &args.rpc {
        answers(endpoint)?;
        workers.extend(Device::add_worker(endpoint)?);
    }
    let all = Device::all();
    let there: Vec<Device> = all.iter().copied().filter(Device::is_offload).collect();
    let cpu = Device::cpu()?;
    let offload = match &args.device[..] {
        // Who names workers wants them used.
        [auto] if auto == "auto" && !workers.is_empty() => workers.clone(),
        [auto] if auto == "auto" => there.clone(),
        names => {
            let devices = names.iter().map(|name| named(name, &all)).collect::<Result<Vec<_>>>()?;
            devices.into_iter().filter(Device::is_offload).collect()
        }
    };
    check_list(&offload)?;
    let vision = match args.vision_device.as_str() {
        // Weights are copied there for each look: not over a network unless that is asked for.
        "auto" => offload.iter().copied().find(|device| !workers.contains(device)).unwrap_or(cpu),
        name => named(name, &all)?,
    };
    let offload = if args.gpu_layers == GpuLayers::Exactly(0) { Vec::new() } else { offload };
    let with_room = |device: Device| Offload { device, free: device.memory().free };
    Ok(Devices { offload: offload.into_iter().map(with_room).collect(), vision })
}

/// The device of `all` that `qvl doctor` names so. Errors (kind usage): none.
pub fn named(name: &str, all: &[Device]) -> Result<Device> {
    let found = all.iter().find(|device| device.name().eq_ignore_ascii_case(name));
    found.copied().ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|device| device.name().to_lowercase()).collect();
        Error::usage(format!("device {name:?} is not there (there are: {})", names.join(", ")))
    })
}

/// Errors (kind usage): a device twice, or more than ggml's scheduler takes beside the CPU: both would stop the process there.
fn check_list(devices: &[Device]) -> Result<()> {
    const MOST: usize = 15;
    if let Some((_, twice)) = devices.iter().enumerate().find(|(i, device)| devices[..*i].contains(device)) {
        return Err(Error::usage(format!("device {} is named twice", twice.name().to_lowercase())));
    }
    if devices.len() > MOST {
        return Err(Error::usage(format!("{} devices for layers (expected up to {MOST})", devices.len())));
    }
    Ok(())
}

/// Errors (kind usage): nobody listens at `HOST:PORT`. ggml would stop the process for that.
fn answers(endpoint: &str) -> Result<()> {
    if !cfg!(feature = "rpc") {
        return Err(Error::usage("--rpc: this build talks to no other machine (it lacks the feature rpc)"));
    }
    let failed = |why: String| Error::usage(format!("--rpc {endpoint}: {why}; start one there with: qvl worker"));
    let addresses = endpoint.to_socket_addrs().map_err(|e| failed(e.to_string()))?;
    let mut why = "no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(mut stream) => match Device::greet_worker(&mut stream, PATIENCE) {
                Ok(true) => return Ok(()),
                Ok(false) => why = "what listens there is no qvl worker".to_owned(),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    why = format!("no answer within {} s; a worker serves one qvl after the other", PATIENCE.as_secs());
                }
                Err(e) => why = e.to_string(),
            },
            Err(e) => why = e.to_string(),
        }
    }
    Err(failed(why))
}

impl Devices {
    /// What looks at pictures.
    pub fn vision(&self) -> Result<Device> {
        if GIVEN_UP.load(Ordering::Relaxed) { Device::cpu() } else { Ok(self.vision) }
    }

    /// Whether any device may have layers.
    pub fn have_layers(&self) -> bool {
        !GIVEN_UP.load(Ordering::Relaxed) && !self.offload.is_empty()
    }

    /// Layers of `text` on devices, as many as are wanted and fit with their part of the cache.
    pub fn place(&self, text: &TextFile, args: &ContextArgs, settings: &SessionSettings) -> Vec<Placed> {
        if !self.have_layers() {
            return Vec::new();
        }
        let h = text.hparams();
        let cache = settings.kv_bytes(h) / h.n_layer.max(1) as u64;
        let layers: Vec<u64> =
            text.layers().iter().map(|layer| layer.end - layer.start + cache).chain([text.output_bytes()]).collect();
        let compute = settings.compute_bytes(h);
        let rooms: Vec<u64> =
            self.offload.iter().map(|o| o.free.saturating_sub(compute).saturating_sub(RESERVE_BYTES)).collect();
        let wanted = match args.gpu_layers {
            GpuLayers::Auto => Wanted::Auto,
            GpuLayers::All => Wanted::Exactly(layers.len()),
            GpuLayers::Exactly(n) => Wanted::Exactly(n.into()),
        };
        let Placement { n_layers, bytes } = place(&layers, &rooms, wanted);
        let placed = self.offload.iter().zip(n_layers.into_iter().zip(bytes)).filter(|(_, (n, _))| *n > 0);
        placed
            .map(|(o, (n_layers, bytes))| Placed {
                device: o.device,
                n_layers,
                bytes: bytes + compute,
                cache_bytes: cache * n_layers as u64,
            })
            .collect()
    }

    /// What the user should know of it: layers that were asked for by their number and do not fit.
    pub fn note(&self, text: &TextFile, args: &ContextArgs, placed: &[Placed]) -> Option<String> {
        let n_placed: usize = placed.iter().map(|p| p.n_layers).sum();
        let n_most = text.layers().len() + 1;
        let n_wanted = match args.gpu_layers {
            GpuLayers::Auto => return None,
            GpuLayers::All => n_most,
            GpuLayers::Exactly(n) => n_most.min(n.into()),
        };
        if GIVEN_UP.load(Ordering::Relaxed) || n_placed >= n_wanted {
            return None;
        }
        if self.offload.is_empty() {
            return Some(
                "there is no device for layers in this build or on this machine; the CPU computes all of them"
                    .to_owned(),
            );
        }
        Some(format!("{n_placed} of {n_wanted} layers fit on devices; the CPU computes the others"))
    }
}

/// Layers on a device.
#[derive(Clone, Copy)]
pub struct Placed {
    pub device: Device,
    /// The output matrix counts as one.
    pub n_layers: usize,
    /// What they take there, cache and compute buffers included.
    pub bytes: u64,
    /// The cache's part of it.
    cache_bytes: u64,
}

impl Placed {
    fn weight_bytes(&self, compute: u64) -> u64 {
        self.bytes - self.cache_bytes - compute
    }
}

/// `phase`, in which the machine has all of `weights` and `cache`, with what devices have of them instead.
pub fn moved(phase: Phase, placed: &[Placed], compute: u64) -> Phase {
    let mut phase = phase;
    for item in &mut phase.items {
        let gone: u64 = match item.name.as_ref() {
            "weights" => placed.iter().map(|p| p.weight_bytes(compute)).sum(),
            "KV cache" => placed.iter().map(|p| p.cache_bytes).sum(),
            _ => 0,
        };
        item.bytes = item.bytes.saturating_sub(gone);
    }
    placed.iter().fold(phase, |phase, p| {
        // What shares the machine's memory takes it from there.
        let kind = if p.device.kind() == DeviceKind::Integrated { Kind::Private } else { Kind::Device };
        phase.with(format!("on {}", p.device.name()), p.bytes, kind)
    })
}
