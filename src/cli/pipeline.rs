//! The way that `ask` and `trace` share: files → prompt → embeddings → session.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use qvl::cache::MmprojId;
use qvl::error::{Error, ErrorKind, Result};
use qvl::ggml::{Backend, Device, DeviceKind, OpCounts, WatchFn};
use qvl::gguf::Gguf;
use qvl::image::{self, ImageSource, Orientation, Picture, PixelValues};
use qvl::kernels::{self, Kernels};
use qvl::llama::{FlashAttention, LoadMode, Model, ModelParams};
use qvl::mmap::MappedFile;
use qvl::names::general;
use qvl::session::{Draft, Session, SessionSettings, TextFile};
use qvl::text::TextHparams;
use qvl::vision::{Attention, ImageEmbedding, Taps, Tower, VisionHparams, VisionModel};

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

/// An mmproj that belongs to the text model, mapped.
pub struct Mmproj {
    file: MappedFile,
    gguf: Gguf,
}

impl Mmproj {
    /// The file given, or the one found beside the model. Errors (kind model): none, damaged, or of another model.
    pub fn open(args: &ModelArgs, text: &TextFile) -> Result<Self> {
        let path = match &args.mmproj {
            Some(path) => path.clone(),
            None => find_beside(&args.model, &text.hparams().vision_id)?,
        };
        let file = MappedFile::open(&path)?;
        let gguf = Gguf::parse(&file).map_err(|e| e.at(&path))?;
        let mmproj = Mmproj { file, gguf };
        mmproj.belongs_to(text.hparams()).map_err(|e| e.at(&path))?;
        Ok(mmproj)
    }

    fn model(&self) -> Result<VisionModel<'_>> {
        VisionModel::new(&self.file, &self.gguf).map_err(|e| e.at(self.file.path()))
    }

    /// As `device` computes it: our kernels are the CPU's.
    fn computed(&self, args: &ContextArgs, device: Device) -> Result<VisionModel<'_>> {
        let kernels = kernels_of("--vision-kernels", args.vision_kernels)?;
        let is_cpu = device.kind() == DeviceKind::Cpu;
        Ok(self.model()?.with_kernels(if is_cpu { kernels } else { Kernels::Ggml }))
    }

    /// A name of what computes the vision tower: others round differently. Errors (kind usage): kernels that this CPU does not have,
    /// a device that is not there.
    pub fn computed_by(&self, args: &ContextArgs) -> Result<String> {
        let device = devices::chosen(args)?.vision()?;
        match device.kind() {
            DeviceKind::Cpu => Ok(self.computed(args, device)?.kernels().name().to_owned()),
            _ => Ok(format!("{} {}", device.name(), device.description())),
        }
    }

    /// Hands the tower to `f`, on the device for it; on the CPU, with a note, where that is out of memory before `f` has done
    /// anything, which `is_begun` tells.
    fn on_device<T>(
        &self,
        args: &ContextArgs,
        quiet: bool,
        mut f: impl FnMut(&Tower<'_>) -> Result<T>,
        is_begun: &Cell<bool>,
    ) -> Result<T> {
        let device = devices::chosen(args)?.vision()?;
        let mut on = |device: Device| {
            let backend = Backend::on(device, n_threads(args), &STOP)?;
            self.computed(args, device)?.on(&backend, &mut f)
        };
        match on(device) {
            Err(error) if error.kind() == ErrorKind::Memory && device.kind() != DeviceKind::Cpu && !is_begun.get() => {
                if !quiet {
                    print_error(&format!("note: {error}; the CPU looks at pictures instead\n"));
                }
                on(Device::cpu()?)
            }
            other => other,
        }
    }

    /// Which backend runs which operation of the tower, and in how many parts.
    pub fn ops(&self, args: &ContextArgs) -> Result<(OpCounts, usize)> {
        self.on_device(args, true, |tower| tower.ops(attention(args)), &Cell::new(false))
    }

    fn belongs_to(&self, text: &TextHparams) -> Result<()> {
        let vision = self.model()?;
        let h = vision.hparams();
        if h.d_out != text.n_embd || h.n_queries != text.n_queries {
            return Err(Error::model(format!(
                "the mmproj gives {} embeddings of {} values a picture, the text model expects {} of {}: \
                 they are of different models",
                h.n_queries, h.d_out, text.n_queries, text.n_embd
            )));
        }
        let id = self.gguf.opt_str(general::VISION_ID)?.unwrap_or_default();
        if id != text.vision_id {
            return Err(Error::model(format!(
                "the mmproj is of another model than the text file ({} {id:?}, expected {:?}); \
                 convert both from one checkpoint",
                general::VISION_ID,
                text.vision_id
            )));
        }
        Ok(())
    }

    /// Its size in bytes; mapped weights take as much.
    pub fn n_bytes(&self) -> u64 {
        self.file.len() as u64
    }

    /// Gives its pages back, where memory is short.
    pub fn forget(self) {
        self.file.forget();
    }

    /// Bytes of the compute buffer for a picture.
    pub fn compute_bytes(&self, args: &ContextArgs) -> Result<u64> {
        // The CPU's graph says it also for another device, to which no weight is copied for that.
        let cpu = Device::cpu()?;
        self.computed(args, cpu)?.on(&Backend::on(cpu, 1, &STOP)?, |tower| tower.compute_bytes(attention(args)))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its dimensions.
    pub fn hparams(&self) -> Result<VisionHparams> {
        Ok(self.model()?.hparams().clone())
    }

    /// What tells it from others.
    pub fn id(&self) -> MmprojId {
        MmprojId::new(&self.file, &self.gguf)
    }

    /// Encodes every picture, one after the other, and hands each embedding to `done` at once: what came before a Ctrl-C
    /// is not lost.
    pub fn encode(
        &self,
        pictures: &[Picture],
        args: &ContextArgs,
        quiet: bool,
        mut done: impl FnMut(ImageEmbedding),
    ) -> Result<()> {
        self.each(pictures, args, quiet, |tower, pixels, kind| {
            done(tower.encode(&pixels, kind)?);
            Ok(())
        })?;
        Ok(())
    }

    /// Encodes a picture, showing what each weight is multiplied with to `watch`.
    pub fn watch(
        &self,
        picture: &Picture,
        args: &ContextArgs,
        quiet: bool,
        watch: &mut WatchFn,
    ) -> Result<ImageEmbedding> {
        let one = std::slice::from_ref(picture);
        let mut seen = self.each(one, args, quiet, |tower, pixels, kind| tower.watch(&pixels, kind, watch))?;
        seen.pop().ok_or_else(|| Error::other("a picture got lost"))
    }

    /// Encodes every picture, keeping values from inside.
    pub fn trace_all(&self, pictures: &[Picture], args: &ContextArgs, quiet: bool) -> Result<Vec<TracedImage>> {
        self.each(pictures, args, quiet, |tower, pixels, kind| {
            let (embedding, taps) = tower.trace(&pixels, kind)?;
            Ok(TracedImage { pixels, embedding, taps })
        })
    }

    fn each<T>(
        &self,
        pictures: &[Picture],
        args: &ContextArgs,
        quiet: bool,
        mut encode: impl FnMut(&Tower<'_>, PixelValues, Attention) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.file.will_need();
        let is_begun = Cell::new(false);
        let all = |tower: &Tower<'_>| {
            let h = tower.hparams();
            let size = h.image_size as u32;
            let one = |(k, picture): (usize, &Picture)| {
                let _spinner = spinner(quiet, format!("looking at picture {} of {}", k + 1, pictures.len()));
                let pixels = image::normalise(&image::resize(picture, size, size), h.mean, h.std);
                let seen = encode(tower, pixels, attention(args))?;
                is_begun.set(true);
                Ok(seen)
            };
            pictures.iter().enumerate().map(one).collect()
        };
        self.on_device(args, quiet, all, &is_begun)
    }
}

/// How the vision tower computes attention.
pub fn attention(args: &ContextArgs) -> Attention {
    match args.flash_attn {
        FlashMode::Off => Attention::Exact,
        FlashMode::On | FlashMode::Auto => Attention::Flash,
    }
}

/// The kernels that a flag names. Errors (kind usage): this CPU does not have them.
fn kernels_of(flag: &str, mode: KernelsMode) -> Result<Kernels> {
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

/// A picture's way through the vision tower.
pub struct TracedImage {
    pub pixels: PixelValues,
    pub embedding: ImageEmbedding,
    pub taps: Taps,
}

/// The mmproj beside `model` that belongs to it: by its identity, then by the best type for the size.
fn find_beside(model: &Path, vision_id: &str) -> Result<PathBuf> {
    let dir = model.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_mmproj = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        name.contains("mmproj") && name.ends_with(".gguf")
    };
    let mut candidates: Vec<PathBuf> = fs::read_dir(dir)
        .map_err(|e| Error::model("cannot look for the mmproj").because(e).at(dir))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(is_mmproj)
        .collect();
    if candidates.is_empty() {
        return Err(Error::model(format!(
            "no mmproj-*.gguf beside {}; without it no picture can be seen: name it with --mmproj",
            model.display()
        )));
    }
    const PREFERRED: [&str; 6] = ["q8_0", "bf16", "f16", "f32", "q6_k", "q5"];
    let rank = |path: &PathBuf| {
        let name = path.to_string_lossy().to_lowercase();
        PREFERRED.iter().position(|ty| name.contains(ty)).unwrap_or(PREFERRED.len())
    };
    candidates.sort_by_key(|path| (rank(path), path.clone()));
    let id_of = |path: &PathBuf| -> Option<String> {
        let file = MappedFile::open(path).ok()?;
        Gguf::parse(&file).ok()?.opt_str(general::VISION_ID).ok()?.map(str::to_owned)
    };
    match candidates.iter().find(|path| id_of(path).is_some_and(|id| id == vision_id)) {
        Some(path) => Ok(path.clone()),
        // None belongs to the model: opening the first says why.
        None => Ok(candidates.swap_remove(0)),
    }
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
