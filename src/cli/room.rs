//! Whether it will fit, before it is loaded.

use std::ops::Range;
use std::sync::OnceLock;

use qvl::error::{Error, Result};
use qvl::ggml::DeviceKind;
use qvl::llama::FlashAttention;
use qvl::memory::{Kind, Phase, available_bytes, human_bytes, own_bytes};
use qvl::quant::GgmlType;
use qvl::session::{SessionSettings, TextFile};

use super::args::{ContextArgs, RepackMode};
use super::devices::{self, Placed};
use super::mmproj::Mmproj;
use super::see::TextMemory;

/// What the program takes later and has not yet when it plans: code that no one has run, threads, llama.cpp's structures.
/// Measured with the models of this repository on Linux (a test compares).
const LATER_BYTES: u64 = 11 << 19;
/// What llama.cpp takes for the vocabulary beside ours, in bytes a token: it reads the file's keys, and remembers nothing of this one.
const VOCABULARY_BYTES: u64 = 160;
/// Positions read together where memory is short: the compute buffer is small then, and reading a prompt hardly slower.
const SMALL_BATCH: usize = 128;

/// Whether text weights are copied into other layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repack {
    Copies,
    None,
}

/// What `--repack` means here. Auto is decided once: what is taken later does not change it.
pub fn repack(text: &TextFile, args: &ContextArgs) -> Repack {
    static AUTO: OnceLock<Repack> = OnceLock::new();
    match args.repack {
        RepackMode::On => Repack::Copies,
        RepackMode::Off => Repack::None,
        RepackMode::Auto => *AUTO.get_or_init(|| {
            // ggml's tiled kernels, which it has for x86 only and which copies bypass, read prompts of K-quants at 1.6 times
            // the speed of its repacked ones (measured with AVX-512; decoding is within a tenth).
            const HAS_TILED_KERNELS: bool = cfg!(target_arch = "x86_64");
            match HAS_TILED_KERNELS {
                true => Repack::None,
                false => where_there_is_room(text.n_bytes().saturating_add(text.repack_bytes()), limit_bytes(args)),
            }
        }),
    }
}

/// Copies, if they and the weights take at most three quarters of what there is; the rest is for cache, buffers and others.
fn where_there_is_room(n_bytes: u64, limit: Option<u64>) -> Repack {
    match limit {
        Some(limit) if n_bytes <= limit / 4 * 3 => Repack::Copies,
        _ => Repack::None,
    }
}

/// What is in memory while text is read and written. The program's own part is what it has now.
pub fn text_phase(text: &TextFile, args: &ContextArgs, settings: &SessionSettings) -> Phase {
    let h = text.hparams();
    let program = own_bytes().unwrap_or(0) + LATER_BYTES + VOCABULARY_BYTES * h.n_vocab as u64;
    let kind = if args.no_mmap { Kind::Private } else { Kind::Mapped };
    let phase = Phase::new("text").with("weights", text.n_bytes(), kind);
    let phase = match repack(text, args) {
        Repack::Copies => phase.with("repacked copies", text.repack_bytes(), Kind::Private),
        Repack::None => phase,
    };
    // Products with adapters find room in llama.cpp's compute buffers as they are (a test compares).
    let phase = match text.adapter_bytes() {
        0 => phase,
        n => phase.with("adapters", n, Kind::Private),
    };
    let phase = phase.with("KV cache", settings.kv_bytes(h), Kind::Private);
    let phase = phase.with("compute buffers", settings.compute_bytes(h), Kind::Private);
    let program = program + text.prompt_bytes(settings);
    let phase = phase.with("program", program, Kind::Private);
    devices::moved(phase, &placed(text, args, settings), settings.compute_bytes(h))
}

/// Layers on devices. None where they are not known: whoever loads a model says why.
fn placed(text: &TextFile, args: &ContextArgs, settings: &SessionSettings) -> Vec<Placed> {
    devices::chosen(args).map(|devices| devices.place(text, args, settings)).unwrap_or_default()
}

/// What is in memory while a picture is looked at.
pub fn vision_phase(mmproj: &Mmproj, args: &ContextArgs) -> Result<Phase> {
    let device = devices::chosen(args)?.vision()?;
    let (weights, compute) = (mmproj.n_bytes(), mmproj.compute_bytes(args)?);
    let phase = Phase::new("vision");
    let phase = match device.kind() {
        DeviceKind::Cpu => phase.with("weights", weights, Kind::Mapped).with("compute buffers", compute, Kind::Private),
        DeviceKind::Integrated => phase.with(format!("on {}", device.name()), weights + compute, Kind::Private),
        _ => phase.with(format!("on {}", device.name()), weights + compute, Kind::Device),
    };
    Ok(phase.with("program", own_bytes().unwrap_or(0) + LATER_BYTES, Kind::Private))
}

/// Errors (kind memory): looking at a picture would not fit, with the text model in memory or without.
pub fn check_vision(mmproj: &Mmproj, args: &ContextArgs, text: TextMemory) -> Result<()> {
    let phase = vision_phase(mmproj, args)?;
    let phase = match text {
        TextMemory::Now(bytes) => phase.with("text model", bytes, Kind::Mapped),
        TextMemory::Later(_) => phase,
    };
    match limit_bytes(args) {
        Some(limit) if phase.bytes() > limit => {
            let (needed, limit) = (human_bytes(phase.bytes()), human_bytes(limit));
            let message = format!(
                "looking at a picture needs {needed} ({}), {limit} are there; use an mmproj in fewer bits",
                phase.summary()
            );
            Err(Error::memory(message))
        }
        _ => Ok(()),
    }
}

/// Bytes that this process may have: as told, else what it has and what is left. `None` where the system does not tell.
pub fn limit_bytes(args: &ContextArgs) -> Option<u64> {
    let machine = available_bytes().map(|left| left.saturating_add(own_bytes().unwrap_or(0)));
    [args.max_memory, machine].into_iter().flatten().min()
}

/// Whether it fits.
pub fn fits(text: &TextFile, args: &ContextArgs, settings: &SessionSettings) -> bool {
    limit_bytes(args).is_none_or(|limit| text_phase(text, args, settings).bytes() <= limit)
}

/// Errors (kind memory): it does not fit; what is missing, and which flags would do.
pub fn check(text: &TextFile, args: &ContextArgs, settings: &SessionSettings) -> Result<()> {
    if fits(text, args, settings) {
        return Ok(());
    }
    let phase = text_phase(text, args, settings);
    let mut message = format!("this needs {} ({})", human_bytes(phase.bytes()), phase.summary());
    if let Some(limit) = limit_bytes(args) {
        message += &format!(
            "; {} {}",
            human_bytes(limit),
            if args.max_memory == Some(limit) { "are allowed" } else { "are there" }
        );
    }
    message += &match hints(text, args, settings) {
        hints if hints.is_empty() => "; use a model in fewer bits".to_owned(),
        hints => format!("; use {}", hints.join(", or ")),
    };
    Err(Error::memory(message))
}

/// What was chosen where `--max-memory` leaves no room for what was wanted.
pub struct Fitted {
    pub settings: SessionSettings,
    /// How many layers of the weights stay in memory, if not all do.
    pub n_kept: Option<usize>,
    /// What the user should know of it before the answer.
    pub note: Option<String>,
}

impl Fitted {
    /// As it was wanted.
    pub fn whole(settings: SessionSettings) -> Self {
        Fitted { settings, n_kept: None, note: None }
    }
}

/// Settings that fit: these, or with `--max-memory` others with the same context, the mildest first: smaller batches, a cache
/// of 8 bits where no flag says otherwise, and layers of mapped weights that are read anew for every pass. Errors (kind memory): as
/// [`check`], and not even that fits.
pub fn fit(text: &TextFile, args: &ContextArgs, wanted: SessionSettings) -> Result<Fitted> {
    let Err(error) = check(text, args, &wanted) else { return Ok(Fitted::whole(wanted)) };
    if args.max_memory.is_none() {
        return Err(error);
    }
    let small = SessionSettings { n_batch: wanted.n_batch.min(SMALL_BATCH), ..wanted };
    if fits(text, args, &small) {
        // The same numbers but for rounding: nothing to tell.
        return Ok(Fitted::whole(small));
    }
    let may_change = args.cache_type_k.is_none() && args.cache_type_v.is_none();
    let quantised = quantised(&small).filter(|_| may_change);
    let settings = quantised.unwrap_or(small);
    let rounded =
        quantised.map(|_| "the KV cache is in 8 bits (q8_0) to fit, which changes answers a little".to_owned());
    if fits(text, args, &settings) {
        return Ok(Fitted { settings, n_kept: None, note: rounded });
    }
    let is_mapped = !args.no_mmap && !args.mlock && repack(text, args) == Repack::None;
    // Layers on devices are not read from the file again.
    let is_mapped = is_mapped && placed(text, args, &settings).is_empty();
    let kept = if is_mapped && cfg!(target_os = "linux") { n_kept(text, args, &settings) } else { None };
    let Some(n) = kept else { return Err(error) };
    let (n_layers, bytes) = (text.layers().len(), human_bytes(passing_bytes(text, n)));
    let slow = format!(
        "{} of {n_layers} layers ({bytes}) do not fit and are read from the disk again for every token: this is slow, and while \
         loading all of them are there for a moment",
        n_layers - n
    );
    let note = rounded.into_iter().chain([slow]).collect::<Vec<_>>().join("; ");
    Ok(Fitted { settings, n_kept: Some(n), note: Some(note) })
}

/// How many layers can stay. One that does not stay is there while it is used, and the next one is on its way.
fn n_kept(text: &TextFile, args: &ContextArgs, settings: &SessionSettings) -> Option<usize> {
    let limit = limit_bytes(args)?;
    let phase = text_phase(text, args, settings);
    let of_layers = |range: &[Range<u64>]| range.iter().map(|layer| layer.end - layer.start).sum::<u64>();
    let largest = text.layers().iter().map(|layer| layer.end - layer.start).max()?;
    let rest = phase.bytes().checked_sub(of_layers(text.layers()))?;
    let room = limit.checked_sub(rest)?.checked_sub(2 * largest)?;
    (0..text.layers().len()).rev().find(|n| of_layers(&text.layers()[..*n]) <= room)
}

/// The text phase when some layers do not stay.
pub fn fitted_phase(text: &TextFile, args: &ContextArgs, fitted: &Fitted) -> Phase {
    let mut phase = text_phase(text, args, &fitted.settings);
    if let Some(n) = fitted.n_kept {
        let passing = passing_bytes(text, n);
        let there = text.layers()[n..].iter().take(2).map(|layer| layer.end - layer.start).sum::<u64>();
        let weights = phase.items.iter_mut().filter(|item| item.name == "weights");
        weights.for_each(|item| item.bytes -= passing - there);
    }
    phase
}

fn passing_bytes(text: &TextFile, n_kept: usize) -> u64 {
    text.layers()[n_kept..].iter().map(|layer| layer.end - layer.start).sum()
}

/// Flags that would do, the mildest first.
fn hints(text: &TextFile, args: &ContextArgs, settings: &SessionSettings) -> Vec<String> {
    let mut hints = Vec::new();
    if repack(text, args) == Repack::Copies {
        let copies = text_phase(text, args, settings).bytes_of("repacked copies");
        if limit_bytes(args).is_some_and(|limit| text_phase(text, args, settings).bytes() - copies <= limit) {
            hints.push("--repack off".to_owned());
        }
    }
    if quantised(settings).is_some_and(|settings| fits(text, args, &settings)) {
        hints.push("-ctk q8_0 -ctv q8_0".to_owned());
    }
    let shorter = |n_ctx: usize| SessionSettings { n_ctx, n_batch: settings.n_batch.min(n_ctx), ..*settings };
    let n_ctx = (1..).map(|k| settings.n_ctx >> k).take_while(|n| *n >= 256).find(|n| fits(text, args, &shorter(*n)));
    hints.extend(n_ctx.map(|n| format!("-c {n} (with a prompt that is short enough)")));
    hints
}

/// With a cache of 8 bits, where that is smaller and can be.
fn quantised(settings: &SessionSettings) -> Option<SessionSettings> {
    let is_wider = |ty: GgmlType| !ty.is_quantised();
    let can_be = settings.flash == FlashAttention::On && is_wider(settings.type_k) && is_wider(settings.type_v);
    can_be.then_some(SessionSettings { type_k: GgmlType::Q8_0, type_v: GgmlType::Q8_0, ..*settings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_need_room() {
        assert_eq!(where_there_is_room(6 << 30, Some(8 << 30)), Repack::Copies);
        assert_eq!(where_there_is_room((6 << 30) + 1, Some(8 << 30)), Repack::None);
        assert_eq!(where_there_is_room(u64::MAX, Some(u64::MAX)), Repack::None);
        assert_eq!(where_there_is_room(1, None), Repack::None);
    }
}
