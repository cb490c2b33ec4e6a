//! `qvl doctor`: this build and this machine.

use std::fmt::Write;

use qvl::error::Result;
use qvl::ggml::{Device, DeviceKind, SimdFeature, simd_features};
use qvl::kernels::{Kernels, multiplies_many_columns, multiplies_rows};
use qvl::memory::{available_bytes, human_bytes, total_bytes};
use qvl::quant::GgmlType;
use serde_json::json;

use super::args::DoctorArgs;
use super::{print, print_json};

/// Runs it.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let features = simd_features();
    let (n_physical, n_logical) = (num_cpus::get_physical(), num_cpus::get());
    let warning = simd_warning();
    let devices: Vec<_> = Device::all();
    let available: Vec<_> = Kernels::ALL.into_iter().filter(|kernels| kernels.is_available()).collect();
    if args.json {
        let simd: Vec<_> =
            features.iter().map(|f| json!({"name": f.name, "cpu": f.present, "build": f.built})).collect();
        return print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "arch": std::env::consts::ARCH,
            "os": std::env::consts::OS,
            "devices": devices.iter().map(device_json).collect::<Vec<_>>(),
            "cores": {"physical": n_physical, "logical": n_logical},
            "memory": {"total_bytes": total_bytes(), "available_bytes": available_bytes()},
            "simd": simd,
            "vision_kernels": Kernels::detect().name(),
            "vision_kernels_available": available.iter().map(|k| k.name()).collect::<Vec<_>>(),
            "prompt_kernels": prompt_kernels(),
            "decoding_kernels": decoding_kernels(),
            "warnings": warning.into_iter().collect::<Vec<_>>(),
        }));
    }
    let mut text = format!(
        "qvl {} on {} {}\ncores    {n_physical} physical, {n_logical} logical\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    );
    if let Some((available, total)) = available_bytes().zip(total_bytes()) {
        let _ = writeln!(text, "memory   {} available of {}", human_bytes(available), human_bytes(total));
    }
    let names = |keep: fn(&SimdFeature) -> bool| {
        let names: Vec<_> = features.iter().filter(|f| keep(f)).map(|f| f.name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let _ = writeln!(text, "SIMD     CPU: {}\n         build: {}", names(|f| f.present), names(|f| f.built));
    let _ = writeln!(
        text,
        "kernels  vision {}, prompts {}, decoding {}",
        Kernels::detect().name(),
        prompt_kernels(),
        decoding_kernels()
    );
    for (i, device) in devices.iter().enumerate() {
        let first = if i == 0 { "devices" } else { "" };
        let _ = writeln!(text, "{first:<9}{}", device_text(device, &devices));
    }
    match &warning {
        Some(warning) => {
            let _ = writeln!(text, "warning: {warning}");
        }
        None => text.push_str("ok: the build uses what the CPU has\n"),
    }
    print(&text)
}

/// What a device will run without flags: with one that can have layers, those and pictures go there as far as they fit.
fn runs(device: &Device, all: &[Device]) -> &'static str {
    let has_offload = all.iter().any(Device::is_offload);
    match device.kind() {
        DeviceKind::Cpu if has_offload => "what does not fit elsewhere",
        DeviceKind::Cpu => "everything",
        DeviceKind::Gpu | DeviceKind::Integrated => {
            let is_first = all.iter().find(|d| d.is_offload()) == Some(device);
            if is_first { "pictures, and layers as many as fit" } else { "layers as many as fit" }
        }
        DeviceKind::Accelerator => "nothing",
    }
}

fn device_text(device: &Device, all: &[Device]) -> String {
    let memory = match device.kind() {
        DeviceKind::Gpu => {
            format!(", {} free of {}", human_bytes(device.memory().free), human_bytes(device.memory().total))
        }
        DeviceKind::Integrated => ", shares the machine's memory".to_owned(),
        DeviceKind::Cpu | DeviceKind::Accelerator => String::new(),
    };
    format!("{} ({}{memory}): {}", device.name().to_lowercase(), device.description().trim(), runs(device, all))
}

fn device_json(device: &Device) -> serde_json::Value {
    let memory = device.memory();
    let kind = match device.kind() {
        DeviceKind::Cpu => "cpu",
        DeviceKind::Gpu => "gpu",
        DeviceKind::Integrated => "integrated",
        DeviceKind::Accelerator => "accelerator",
    };
    json!({
        "name": device.name().to_lowercase(), "description": device.description(), "kind": kind,
        "free_bytes": memory.free, "total_bytes": memory.total,
    })
}

/// Whose kernels multiply quantised weights with the columns of a prompt.
fn prompt_kernels() -> &'static str {
    if multiplies_many_columns() { Kernels::detect().name() } else { Kernels::Ggml.name() }
}

/// Whose kernels multiply rows of quantised weights with one column.
fn decoding_kernels() -> &'static str {
    if multiplies_rows(GgmlType::Q4_K) { "avx2" } else { "ggml" }
}

/// What to say when the CPU has SIMD that this build does not use.
pub fn simd_warning() -> Option<String> {
    // There ggml has chosen the best of its libraries for this CPU; to build again would not bring what it lacks.
    if cfg!(feature = "dynamic-backends") {
        return None;
    }
    let missing: Vec<_> = simd_features().into_iter().filter(|f| f.present && !f.built).map(|f| f.name).collect();
    (!missing.is_empty()).then(|| {
        format!(
            "this build does not use {}, which this CPU has, and is slower than it could be; build on this machine \
             with RUSTFLAGS=\"-C target-cpu=native\"",
            missing.join(", ")
        )
    })
}
