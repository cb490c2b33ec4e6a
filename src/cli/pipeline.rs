//! What every command that answers has in common: files and pictures are opened, settings and threads decided, weights loaded.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use qvl::error::{Error, Result};
use qvl::image::{ImageSource, Orientation, Picture};
use qvl::kernels::{self, Kernels};
use qvl::llama::{FlashAttention, LoadMode, Model, ModelParams};
use qvl::session::{Draft, Session, SessionSettings, TextFile};

use super::args::{ContextArgs, FlashMode, ImageArgs, KernelsMode, ModelArgs, kv_type};
use super::room::{self, Fitted, Repack};
use super::{STOP, devices, doctor, print_error};

/// Opens the text file and its adapters, and warns if this build is slower than the machine.
pub fn open_text(args: &ModelArgs, quiet: bool) -> Result<TextFile> {
    if !quiet && let Some(warning) = doctor::simd_warning() {
        print_error(&format!("warning: {warning}\n"));
    }
    TextFile::open(&args.model)?.adapted(&args.lora)
}

/// Decodes pictures, upright unless told otherwise. All are read before any weight is touched.
pub fn load_pictures(sources: &[ImageSource], args: &ImageArgs) -> Result<Vec<Picture>> {
    let orientation = if args.no_auto_orient { Orientation::AsStored } else { Orientation::Upright };
    sources.iter().map(|source| source.load(orientation)).collect()
}

/// Width and height of each, in pixels.
pub fn sizes(pictures: &[Picture]) -> Vec<(u32, u32)> {
    pictures.iter().map(|picture| (picture.width(), picture.height())).collect()
}

/// The kernels that a flag names. Errors (kind usage): this CPU does not have them.
pub fn kernels_of(flag: &str, mode: KernelsMode) -> Result<Kernels> {
    let wanted = match mode {
        KernelsMode::Auto => Kernels::detect(),
        KernelsMode::Ggml => Kernels::Ggml,
        KernelsMode::Avxvnni => Kernels::AvxVnni,
        KernelsMode::Avx512 => Kernels::Avx512,
        KernelsMode::Dotprod => Kernels::Dotprod,
        KernelsMode::I8mm => Kernels::I8mm,
        KernelsMode::Amx => Kernels::Amx,
    };
    if !wanted.is_available() {
        let name = wanted.name();
        return Err(Error::usage(format!(
            "{flag} {name}: this CPU, or the system on it, does not have what they need; leave it at auto"
        )));
    }
    Ok(wanted)
}

/// Lets these kernels read prompts from now on. Errors (kind usage): this CPU does not have them, or this build cannot use them.
pub fn use_prompt_kernels(mode: KernelsMode) -> Result<()> {
    const FLAG: &str = "--prompt-kernels";
    let wanted = kernels_of(FLAG, mode)?;
    if mode != KernelsMode::Auto && wanted != Kernels::Ggml && !kernels::multiplies_many_columns() {
        let name = wanted.name();
        return Err(Error::usage(format!(
            "{FLAG} {name}: this build leaves prompts to ggml; those for x86-64 Linux do not"
        )));
    }
    kernels::set_prompt_kernels(wanted);
    Ok(())
}

/// Loads the text weights for a session with these settings, on devices as far as they fit there; on the CPU, with a note, where a device
/// fails. With `n_kept` only so many layers stay in memory.
pub fn load_model(
    text: &TextFile,
    args: &ContextArgs,
    settings: &SessionSettings,
    n_kept: Option<usize>,
    quiet: bool,
) -> Result<Model> {
    let _spinner = spinner(quiet, "loading the model".to_owned());
    let devices = devices::chosen(args)?;
    let placed = devices.place(text, args, settings);
    if let Some(note) = devices.note(text, args, &placed).filter(|_| !quiet) {
        print_error(&format!("note: {note}\n"));
    }
    let loaded = text.load(model_params(text, args, settings)?).and_then(|model| {
        // A device may have room for the weights and none for the cache: tried here, where nothing has been said yet.
        if !placed.is_empty() {
            drop(Session::new(text, &model, settings, &STOP)?);
        }
        Ok(model)
    });
    let mut model = match loaded {
        Err(error) if !placed.is_empty() => {
            if !quiet {
                print_error(&format!("note: {error}; the CPU computes all layers instead\n"));
            }
            devices::give_up();
            room::check(text, args, settings)?;
            text.load(model_params(text, args, settings)?)?
        }
        loaded => loaded?,
    };
    if let Some(n_kept) = n_kept {
        model.keep_layers(text.parts(), text.layers().to_vec(), n_kept)?;
    }
    Ok(model)
}

/// How tokens are guessed: as told, else where several columns of weights cost hardly more than one and round alike, which is what our
/// kernels for K-quants do, on the CPU. Errors (kind usage): a device is not there.
pub fn draft(text: &TextFile, args: &ContextArgs, wanted: Option<Draft>) -> Result<Draft> {
    let has_devices = devices::chosen(args)?.have_layers();
    Ok(wanted.unwrap_or_else(|| {
        let pays = text.is_all_k_quants() && kernels::multiplies_few_columns() && !has_devices;
        if pays { Draft::Auto } else { Draft::Off }
    }))
}

/// How weights are loaded for a session with these settings. Errors (kind usage): a device is not there.
pub fn model_params(text: &TextFile, args: &ContextArgs, settings: &SessionSettings) -> Result<ModelParams> {
    let load = match (args.no_mmap, args.mlock) {
        (true, _) => LoadMode::Read,
        (false, true) => LoadMode::MapAndLock,
        (false, false) => LoadMode::Map,
    };
    let placed = devices::chosen(args)?.place(text, args, settings);
    let placed = placed.into_iter().map(|placed| (placed.device, placed.n_layers)).collect();
    Ok(ModelParams { load, placed, repack: room::repack(text, args) == Repack::Copies })
}

/// Settings of a session for a prompt of `n_prompt` positions, read `n_batch` at a time, and `n_predict` more, after a look at
/// the memory that it will take. Errors: flags that do not go together, kind memory when there is not enough.
pub fn session_settings(
    text: &TextFile,
    args: &ContextArgs,
    (n_prompt, n_predict): (usize, usize),
    n_batch: usize,
) -> Result<SessionSettings> {
    let settings = wanted_settings(text, args, (n_prompt, n_predict), n_batch)?;
    room::check(text, args, &settings)?;
    Ok(settings)
}

/// The same with room for drafts, but with `--max-memory` what does not fit is changed until it does; a note says what.
pub fn fitted_session(
    text: &TextFile,
    args: &ContextArgs,
    (n_prompt, n_predict): (usize, usize),
    n_batch: usize,
    draft: Draft,
    quiet: bool,
) -> Result<Fitted> {
    let wanted = wanted_settings(text, args, (n_prompt, n_predict), n_batch)?.with_draft(draft);
    let fitted = room::fit(text, args, wanted)?;
    if let Some(note) = fitted.note.as_ref().filter(|_| !quiet) {
        print_error(&format!("note: {note}\n"));
    }
    Ok(fitted)
}

/// The settings without that look.
pub fn wanted_settings(
    text: &TextFile,
    args: &ContextArgs,
    (n_prompt, n_predict): (usize, usize),
    n_batch: usize,
) -> Result<SessionSettings> {
    devices::chosen(args)?;
    let h = text.hparams();
    let (type_k, type_v) = (kv_type(args.cache_type_k.as_ref()), kv_type(args.cache_type_v.as_ref()));
    let flash = match args.flash_attn {
        FlashMode::Off => FlashAttention::Off,
        FlashMode::On | FlashMode::Auto => FlashAttention::On,
    };
    if type_v.is_quantised() && flash == FlashAttention::Off {
        return Err(Error::usage("a quantised -ctv needs flash attention; use -fa on"));
    }
    for (flag, ty) in [("-ctk", type_k), ("-ctv", type_v)] {
        if !ty.holds_rows_of(h.d_head() as u64) {
            return Err(Error::usage(format!("{flag} {ty}: heads of {} values do not fit its blocks", h.d_head())));
        }
    }
    let n_ctx = match args.ctx_size {
        Some(n) => n as usize,
        None => h.context_length.min(n_prompt.saturating_add(n_predict)).max(1),
    };
    let (n_threads, rope) = (n_threads(args), args.rope.into());
    Ok(SessionSettings { n_ctx, n_batch, n_threads, type_k, type_v, flash, n_outputs: 1, rope })
}

/// Threads to compute with: as told, else the physical cores that this process may use.
pub fn n_threads(args: &ContextArgs) -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    args.threads.map_or_else(|| num_cpus::get_physical().clamp(1, allowed), usize::from)
}

/// A line that shows on a terminal that something is going on; gone when dropped.
pub struct Spinner(ProgressBar);

/// Starts one.
pub fn spinner(quiet: bool, message: String) -> Spinner {
    // indicatif draws on stderr, and nothing when that is no terminal.
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(120));
    Spinner(bar)
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
