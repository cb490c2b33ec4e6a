//! How fast llama.cpp itself is with a text file: what its own benchmark, `llama-bench`, measures, over the same library
//! that `qvl` is linked with. Tokens only, its default settings, plain `llama_*` calls, nothing of `qvl`.
//!
//! ```text
//! cargo run --release --example llama-speed -- MODEL.gguf [-t THREADS] [-p 512] [-n 32] [-d 0,512,1536] [-r 3] [--repack off]
//! ```
//!
//! Prints rows as `qvl bench --csv` does; `benches/against-llama.sh` runs both side by side. As in `llama-bench`, tokens are
//! random ones and none is chosen from the logits; repacking is on unless told otherwise.

// The reference must not lean on what it is held against: it calls llama.cpp without qvl's safe door.
#![allow(unsafe_code)]

use std::error::Error;
use std::ffi::{CString, c_char, c_void};
use std::path::PathBuf;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2 as sys;

/// llama-bench's default: tokens of one call, and those that pass over the weights together.
const N_BATCH: u32 = 2048;
/// See [`N_BATCH`].
const N_UBATCH: u32 = 512;

#[derive(Parser)]
struct Args {
    /// Text GGUF
    model: PathBuf,
    /// Threads (default: physical cores)
    #[arg(short, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
    /// Lengths of prompts to read; 0 is none
    #[arg(short = 'p', value_delimiter = ',', default_value = "512", value_parser = length(0))]
    prompts: Vec<u32>,
    /// Tokens to write
    #[arg(short = 'n', default_value_t = 32, value_parser = length(1))]
    predict: u32,
    /// Tokens that stand in the context before
    #[arg(short = 'd', value_delimiter = ',', default_value = "0,512,1536", value_parser = length(0))]
    depths: Vec<u32>,
    /// Runs of each; the median counts
    #[arg(short = 'r', default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    runs: u8,
    /// Whether weights are copied into layouts that ggml's kernels prefer (llama.cpp's default)
    #[arg(long, value_enum, default_value = "on")]
    repack: Repack,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Repack {
    On,
    Off,
}

/// A number of tokens, at least `least`.
fn length(least: i64) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(least..=32767)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let _backend = LlamaBackend::init()?;
    // SAFETY: the callback is a plain function that needs no data.
    unsafe { sys::llama_log_set(Some(silent), std::ptr::null_mut()) };
    let model = Model::load(args)?;
    let n_threads = args.threads.map_or_else(num_cpus::get_physical, usize::from) as i32;
    println!("case,measure,unit,median,min,max,runs");
    for &n in args.prompts.iter().filter(|n| **n > 0) {
        let mut context = Context::new(&model, n, n_threads)?;
        context.read(n.min(64))?;
        let run = |context: &mut Context| {
            context.forget(0);
            context.read(n)
        };
        report(&format!("prefill {n}"), &measure(args.runs, n, &mut context, run)?);
    }
    for &depth in &args.depths {
        let mut context = Context::new(&model, depth + args.predict, n_threads)?;
        context.read(depth)?;
        context.write(1)?;
        let run = |context: &mut Context| {
            context.forget(depth);
            context.write(args.predict)
        };
        report(&format!("decode {} @ {depth}", args.predict), &measure(args.runs, args.predict, &mut context, run)?);
    }
    Ok(())
}

/// Tokens a second of each run.
fn measure(
    n_runs: u8,
    n: u32,
    context: &mut Context,
    mut run: impl FnMut(&mut Context) -> Result<(), Box<dyn Error>>,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut speeds = Vec::new();
    for _ in 0..n_runs {
        let start = Instant::now();
        run(context)?;
        speeds.push(f64::from(n) / start.elapsed().as_secs_f64());
    }
    Ok(speeds)
}

fn report(case: &str, speeds: &[f64]) {
    let mut sorted = speeds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (middle, n) = (sorted.len() / 2, sorted.len());
    let median = if n % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    println!("{case},speed,tokens/s,{median:.4},{:.4},{:.4},{n}", sorted[0], sorted[n - 1]);
}

struct Model(NonNull<sys::llama_model>);

impl Model {
    fn load(args: &Args) -> Result<Model, Box<dyn Error>> {
        let path = CString::new(args.model.as_os_str().as_encoded_bytes())?;
        // SAFETY: the path is a terminated string that lives during the call; the parameters come from llama.cpp.
        let model = unsafe {
            let mut params = sys::llama_model_default_params();
            params.use_extra_bufts = args.repack == Repack::On;
            sys::llama_model_load_from_file(path.as_ptr(), params)
        };
        Ok(Model(NonNull::new(model).ok_or_else(|| format!("{}: llama.cpp cannot load it", args.model.display()))?))
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: made above, not used again; contexts borrow the model.
        unsafe { sys::llama_model_free(self.0.as_ptr()) }
    }
}

struct Context<'m> {
    ptr: NonNull<sys::llama_context>,
    n_vocab: u64,
    /// State of the random tokens.
    random: u64,
    _model: &'m Model,
}

impl<'m> Context<'m> {
    /// For `n_ctx` positions; everything else is llama.cpp's default, or llama-bench's.
    fn new(model: &'m Model, n_ctx: u32, n_threads: i32) -> Result<Self, Box<dyn Error>> {
        // SAFETY: the model is valid and outlives the context ('m); the parameters come from llama.cpp.
        let (ptr, n_vocab) = unsafe {
            let mut params = sys::llama_context_default_params();
            params.n_ctx = n_ctx;
            params.n_batch = N_BATCH;
            params.n_ubatch = N_UBATCH;
            params.n_threads = n_threads;
            params.n_threads_batch = n_threads;
            let vocab = sys::llama_model_get_vocab(model.0.as_ptr());
            (sys::llama_init_from_model(model.0.as_ptr(), params), sys::llama_vocab_n_tokens(vocab))
        };
        let ptr = NonNull::new(ptr).ok_or_else(|| format!("llama.cpp cannot make a context of {n_ctx} tokens"))?;
        Ok(Context { ptr, n_vocab: n_vocab.max(1) as u64, random: 1, _model: model })
    }

    /// Reads `n` random tokens.
    fn read(&mut self, n: u32) -> Result<(), Box<dyn Error>> {
        let tokens: Vec<i32> = (0..n).map(|_| self.token()).collect();
        tokens.chunks(N_BATCH as usize).try_for_each(|batch| self.decode(batch))
    }

    /// Reads `n` random tokens one by one, as they are written.
    fn write(&mut self, n: u32) -> Result<(), Box<dyn Error>> {
        (0..n).try_for_each(|_| {
            let token = self.token();
            self.decode(&[token])
        })
    }

    /// Empties the cache from position `n_past` on.
    fn forget(&mut self, n_past: u32) {
        // SAFETY: the context and its memory are valid.
        unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.ptr.as_ptr()), 0, n_past as i32, -1) };
    }

    fn decode(&mut self, tokens: &[i32]) -> Result<(), Box<dyn Error>> {
        // SAFETY: the context is valid; the batch points to tokens that live during the call, and llama.cpp only reads them.
        let status = unsafe {
            let batch = sys::llama_batch_get_one(tokens.as_ptr().cast_mut(), tokens.len() as i32);
            let status = sys::llama_decode(self.ptr.as_ptr(), batch);
            sys::llama_synchronize(self.ptr.as_ptr());
            status
        };
        if status == 0 { Ok(()) } else { Err(format!("llama.cpp cannot decode (status {status})").into()) }
    }

    fn token(&mut self) -> i32 {
        // Knuth's MMIX generator; its high bits are random enough to defeat any cache.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.random >> 33) % self.n_vocab) as i32
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: made above, not used again.
        unsafe { sys::llama_free(self.ptr.as_ptr()) }
    }
}

unsafe extern "C" fn silent(_: sys::ggml_log_level, _: *const c_char, _: *mut c_void) {}
