//! The machine and the model files that a result is about.

use std::fs;
use std::path::Path;

use qvl::error::Result;
use qvl::ggml::{SimdFeature, simd_features};
use qvl::gguf::Gguf;
use qvl::gguf_file::GgufFile;
use qvl::memory::total_bytes;
use qvl::names::{general, text};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::counters::load_average;

/// A computer, as far as it decides how fast models are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name; on boards that do not tell, the board's.
    pub cpu: String,
    /// As Rust calls it.
    pub arch: String,
    /// As Rust calls it.
    pub os: String,
    /// Cores that compute.
    pub physical_cores: usize,
    /// Cores that the system sees.
    pub logical_cores: usize,
    /// All of it; `None` where the system does not tell.
    pub memory_bytes: Option<u64>,
    /// What ggml was built to use and the CPU has.
    pub simd: Vec<String>,
    /// What the CPU has and ggml was not built to use.
    pub simd_unused: Vec<String>,
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        let features = simd_features();
        let names = |keep: fn(&&SimdFeature) -> bool| features.iter().filter(keep).map(|f| f.name.to_owned()).collect();
        Machine {
            cpu: cpu_name().unwrap_or_else(|| "an unknown CPU".to_owned()),
            arch: std::env::consts::ARCH.to_owned(),
            os: std::env::consts::OS.to_owned(),
            physical_cores: num_cpus::get_physical(),
            logical_cores: num_cpus::get(),
            memory_bytes: total_bytes(),
            simd: names(|f| f.built && f.present),
            simd_unused: names(|f| !f.built && f.present),
        }
    }
}

fn cpu_name() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |name: &str| {
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
        value.map(|v| v.trim().to_owned())
    };
    // ARM's kernels name no processor, but boards have a name: Jetson, Raspberry Pi.
    let board = || fs::read_to_string("/proc/device-tree/model").ok();
    let name = of("model name").or_else(board).or_else(|| of("Hardware"))?;
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    Some(name.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|name| !name.is_empty())
}

/// How much of the machine others took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Programs that wanted a core in the minute before the start.
    pub average_before: Option<f64>,
    /// Cores that other programs took while measuring, on average.
    pub cores_of_others: Option<f64>,
}

/// Cores that others may take without a warning, as a part of all: a desktop at rest takes less, and a build or another
/// model more.
const IDLE: f64 = 0.15;

/// What to say before the start if the machine is busy. A load of less than half a core may be what we did ourselves.
pub fn busy_before(machine: &Machine) -> Option<String> {
    let (load, n) = (load_average()?, machine.logical_cores);
    let busy = load > (IDLE * n as f64).max(0.5);
    busy.then(|| format!("the machine was busy before the start (load {load:.1} on {})", cores(n)))
}

/// What to say afterwards.
pub fn busy_meanwhile(machine: &Machine, load: &Load) -> Option<String> {
    let (others, n) = (load.cores_of_others?, machine.logical_cores);
    let busy = others > IDLE * n as f64;
    busy.then(|| {
        format!("other programs took {others:.1} of {} meanwhile; expect better numbers without them", cores(n))
    })
}

/// `1 core`, `2 cores`.
pub fn cores(n: usize) -> String {
    format!("{n} core{}", if n == 1 { "" } else { "s" })
}

/// A GGUF file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFile {
    /// Where it lies.
    pub path: String,
    /// What its metadata call it.
    pub name: String,
    /// A text model's recipe (`q4_k_m`), else the type that most of its bytes have.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its size.
    pub bytes: u64,
    /// A hash over its header and length, which are the same for the same model in the same types.
    pub id: String,
}

impl ModelFile {
    /// Of a file. Cost: reads the header (6 MB for the real vocabulary). Errors (kind model): it is no GGUF file.
    pub fn of(path: &Path) -> Result<ModelFile> {
        let file = GgufFile::open(path)?;
        let gguf = file.gguf();
        let string = |key: &str| gguf.opt_str(key).ok().flatten().unwrap_or_default().to_owned();
        let n_header = usize::try_from(gguf.data_offset()).unwrap_or(usize::MAX).min(file.len());
        let mut hash = Sha256::new();
        hash.update(&file[..n_header]);
        hash.update(file.n_bytes().to_le_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        Ok(ModelFile {
            path: path.display().to_string(),
            name: string(general::NAME),
            ty: main_type(gguf),
            bytes: file.n_bytes(),
            id: hash[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// A text model's recipe if it names one, else the type of most bytes: of an mmproj a recipe says only what was asked for.
fn main_type(gguf: &Gguf) -> String {
    if gguf.opt_str(general::ARCHITECTURE).ok().flatten() == Some(text::ARCHITECTURE)
        && let Ok(Some(recipe)) = gguf.opt_str(general::RECIPE)
    {
        return recipe.to_owned();
    }
    let mut bytes = std::collections::BTreeMap::new();
    gguf.tensors().iter().for_each(|t| *bytes.entry(t.ty).or_insert(0u64) += t.n_bytes);
    bytes.into_iter().max_by_key(|(_, n)| *n).map_or_else(String::new, |(ty, _)| ty.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_and_cores() {
        let machine = Machine::this();
        assert!(!machine.cpu.is_empty() && machine.logical_cores >= machine.physical_cores.min(1));
    }

    #[test]
    fn a_busy_machine_is_told_from_an_idle_one() {
        let machine = Machine { logical_cores: 4, ..Machine::this() };
        let load = |others| Load { average_before: None, cores_of_others: others };
        assert_eq!(busy_meanwhile(&machine, &load(None)), None);
        assert_eq!(busy_meanwhile(&machine, &load(Some(0.5))), None);
        let warning = busy_meanwhile(&machine, &load(Some(0.8))).expect("is busy");
        assert!(warning.contains("0.8 of 4 cores"), "{warning}");
    }
}
