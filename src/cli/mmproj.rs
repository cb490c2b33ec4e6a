//! The vision file, and looking at pictures with it.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use qvl::cache::MmprojId;
use qvl::error::{Error, ErrorKind, Result};
use qvl::ggml::{Backend, Device, DeviceKind, OpCounts, WatchFn};
use qvl::gguf::Gguf;
use qvl::image::{self, Picture, PixelValues};
use qvl::kernels::Kernels;
use qvl::mmap::{self, MappedFile};
use qvl::names::general;
use qvl::session::TextFile;
use qvl::text::TextHparams;
use qvl::vision::{Attention, ImageEmbedding, Taps, Tower, VisionHparams, VisionModel};

use super::args::{ContextArgs, FlashMode, ModelArgs};
use super::pipeline::{kernels_of, n_threads};
use super::{STOP, devices, print_error};

/// An mmproj that belongs to the text model, mapped.
pub struct Mmproj {
    file: MappedFile,
    gguf: Gguf,
    /// Files that are wanted after it.
    later: Vec<PathBuf>,
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
        let mmproj = Mmproj { file, gguf, later: Vec::new() };
        mmproj.belongs_to(text.hparams()).map_err(|e| e.at(&path))?;
        Ok(mmproj)
    }

    /// What to read ahead while the first picture is looked at.
    pub fn before(self, later: Vec<PathBuf>) -> Self {
        Mmproj { later, ..self }
    }

    /// Reads ahead what the tower needs, and what is wanted after it.
    fn read_ahead(&self) {
        mmap::read_ahead([&[self.path().to_owned()], self.later.as_slice()].concat());
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

    /// Looks at pictures as long as `f` does: the weights of the tower come to its device with the first of them, once.
    pub fn look<T>(&self, args: &ContextArgs, quiet: bool, f: impl FnOnce(&Towers<'_>) -> Result<T>) -> Result<T> {
        let (device, cpu) = (devices::chosen(args)?.vision()?, Device::cpu()?);
        let here = Backend::on(cpu, n_threads(args), &STOP)?;
        let there = match device.kind() {
            DeviceKind::Cpu => None,
            _ => match Backend::on(device, n_threads(args), &STOP) {
                Err(error) if error.kind() == ErrorKind::Memory => {
                    note_the_cpu(&error, quiet);
                    None
                }
                other => Some(other?),
            },
        };
        let [has_failed, has_looked] = [(); 2].map(|()| Cell::new(false));
        self.computed(args, cpu)?.on(&here, |here| match &there {
            None => f(&Towers { tower: here, cpu: None, has_failed, has_looked, mmproj: self, args, quiet }),
            Some(there) => self.computed(args, device)?.on(there, |there| {
                f(&Towers { tower: there, cpu: Some(here), has_failed, has_looked, mmproj: self, args, quiet })
            }),
        })
    }

    /// Which backend runs which operation of the tower, and in how many parts.
    pub fn ops(&self, args: &ContextArgs) -> Result<(OpCounts, usize)> {
        self.look(args, true, |towers| towers.with_tower(|tower| tower.ops(attention(args))))
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
}

/// A tower to look at pictures with: on its device, or on the CPU from when that is out of memory.
pub struct Towers<'t> {
    tower: &'t Tower<'t>,
    /// What takes over, if it is not the same.
    cpu: Option<&'t Tower<'t>>,
    has_failed: Cell<bool>,
    has_looked: Cell<bool>,
    mmproj: &'t Mmproj,
    args: &'t ContextArgs,
    quiet: bool,
}

impl Towers<'_> {
    /// Encodes a picture.
    pub fn encode(&self, picture: &Picture) -> Result<ImageEmbedding> {
        self.look(picture, |tower, pixels, kind| tower.encode(pixels, kind))
    }

    /// Encodes a picture, showing what each weight is multiplied with to `watch`.
    pub fn watch(&self, picture: &Picture, watch: &mut WatchFn) -> Result<ImageEmbedding> {
        self.look(picture, |tower, pixels, kind| tower.watch(pixels, kind, watch))
    }

    /// Encodes a picture, keeping values from inside.
    pub fn trace(&self, picture: &Picture) -> Result<TracedImage> {
        self.look(picture, |tower, pixels, kind| {
            let (embedding, taps) = tower.trace(pixels, kind)?;
            Ok(TracedImage { pixels: pixels.clone(), embedding, taps })
        })
    }

    fn look<T>(
        &self,
        picture: &Picture,
        mut f: impl FnMut(&Tower<'_>, &PixelValues, Attention) -> Result<T>,
    ) -> Result<T> {
        let h = self.tower.hparams();
        let size = h.image_size as u32;
        let pixels = image::normalise(&image::resize(picture, size, size), h.mean, h.std);
        if !self.has_looked.replace(true) {
            self.mmproj.read_ahead();
        }
        self.with_tower(|tower| f(tower, &pixels, attention(self.args)))
    }

    /// Hands `f` the tower that computes now.
    fn with_tower<T>(&self, mut f: impl FnMut(&Tower<'_>) -> Result<T>) -> Result<T> {
        let now = if self.has_failed.get() { self.cpu.unwrap_or(self.tower) } else { self.tower };
        match (f(now), self.cpu) {
            (Err(error), Some(cpu)) if error.kind() == ErrorKind::Memory && !self.has_failed.replace(true) => {
                note_the_cpu(&error, self.quiet);
                f(cpu)
            }
            (other, _) => other,
        }
    }
}

fn note_the_cpu(error: &Error, quiet: bool) {
    if !quiet {
        print_error(&format!("note: {error}; the CPU looks at pictures instead\n"));
    }
}

/// A picture's way through the vision tower.
pub struct TracedImage {
    pub pixels: PixelValues,
    pub embedding: ImageEmbedding,
    pub taps: Taps,
}

/// How the vision tower computes attention.
pub fn attention(args: &ContextArgs) -> Attention {
    match args.flash_attn {
        FlashMode::Off => Attention::Exact,
        FlashMode::On | FlashMode::Auto => Attention::Flash,
    }
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
