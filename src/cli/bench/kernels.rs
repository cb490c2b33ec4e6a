//! `qvl bench --kernels`: what every kernel reaches on this machine, beside what the machine can do. No model is needed.

use std::hint::black_box;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use qvl::error::Result;
use qvl::ggml::{Backend, Context, Tensor, quantize_rows};
use qvl::gguf::TensorInfo;
use qvl::kernels::{self, Activation, Finish, Kernels, multiplies_rows};
use qvl::quant::GgmlType;
use serde_json::json;

use super::super::args::BenchArgs;
use super::super::table::{Side, Table};
use super::super::{pipeline, print, print_error, print_json};
use super::machine::{self, Machine, cores};

/// Types whose products are measured.
const TYPES: [GgmlType; 8] = [
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q6_K,
    GgmlType::Q5_K,
    GgmlType::Q4_K,
    GgmlType::Q5_0,
    GgmlType::Q4_0,
];

/// What the attention of the real model's vision tower multiplies for one picture: rows of 1664 values, which K-quants
/// store as 1792, with 1024 columns.
const PICTURE: [usize; 3] = [1792, 1664, 1024];

/// Values a row of the real model's text matrices, and the bytes of the weights that one column is multiplied with: more than
/// caches hold.
const ROW: usize = 4096;
/// See [`ROW`].
const WEIGHTS: usize = 512 << 20;

/// Each measurement repeats its work for at least so long.
const LEAST: Duration = Duration::from_millis(300);

/// A line of the result.
struct Line {
    work: &'static str,
    what: String,
    path: &'static str,
    value: f64,
    unit: &'static str,
}

/// Runs it.
pub fn run(args: &BenchArgs, quiet: bool) -> Result<()> {
    let machine = Machine::this();
    let busy = machine::busy_before(&machine);
    if let Some(busy) = busy.as_ref().filter(|_| !quiet) {
        print_error(&format!("warning: {busy}\n"));
    }
    let n_threads = pipeline::n_threads(&args.context);
    let bar = super::progress(2 * TYPES.len() as u64 + 1, quiet);
    let mut lines = peaks(n_threads, args.runs);
    bar.inc(1);
    for ty in TYPES {
        bar.set_message(format!("picture {ty}"));
        lines.extend(pictures(ty, n_threads, args.runs)?);
        bar.inc(1);
    }
    for ty in TYPES {
        bar.set_message(format!("token {ty}"));
        lines.push(token(ty, n_threads, args.runs)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let text = |x: &f64| format!("{x:.*}", if *x < 100.0 { 1 } else { 0 });
    if args.json {
        let results: Vec<_> = lines
            .iter()
            .map(|l| json!({"work": l.work, "type": l.what, "kernels": l.path, "value": l.value, "unit": l.unit}))
            .collect();
        let warnings: Vec<_> = busy.into_iter().collect();
        let (n, version) = (n_threads, env!("CARGO_PKG_VERSION"));
        return print_json(
            &json!({"version": version, "machine": machine, "threads": n, "warnings": warnings, "results": results}),
        );
    }
    let columns = [("work", Side::Left), ("type", Side::Left), ("kernels", Side::Left), ("speed", Side::Right)];
    let row =
        |l: &Line| [l.work, &l.what, l.path, &format!("{} {}", text(&l.value), l.unit)].map(str::to_owned).to_vec();
    let table = Table { columns: columns.to_vec(), rows: lines.iter().map(row).collect() };
    if args.csv {
        return print(&table.csv());
    }
    let about = format!("{}, {}, {}, threads {n_threads}", machine.cpu, cores(machine.physical_cores), machine.arch);
    if args.markdown {
        print(&format!("{about}\n\n{}", table.markdown()))
    } else {
        print(&format!("{about}\n\n{}", table.text()))
    }
}

/// What the machine can do: products in registers, and reading memory; the best of the runs.
fn peaks(n_threads: usize, n_runs: u8) -> Vec<Line> {
    let peak = |what: &str, path, value, unit| Line { work: "peak", what: what.to_owned(), path, value, unit };
    let best = |speed: &dyn Fn() -> f64| (0..n_runs).map(|_| speed() / 1e9).fold(0.0, f64::max);
    let mut lines = vec![peak("f32", "registers", best(&|| on_all(n_threads, f32_operations)), "GFLOP/s")];
    for kernels in Kernels::ALL.into_iter().filter(|kernels| kernels.is_available()) {
        let operations = || kernels.peak(1 << 22).unwrap_or(0);
        if operations() > 0 {
            let what = if kernels == Kernels::Amx { "bf16" } else { "int8" };
            lines.push(peak(what, kernels.name(), best(&|| on_all(n_threads, operations)), "GOP/s"));
        }
    }
    let memory = vec![1u64; WEIGHTS / 8];
    let parts: Vec<&[u64]> = memory.chunks(memory.len().div_ceil(n_threads)).collect();
    let reading = || {
        const N_PASSES: usize = 4;
        let start = Instant::now();
        thread::scope(|scope| {
            for part in &parts {
                let read = || (0..N_PASSES).fold(0, |_, _| black_box(black_box(*part).iter().sum::<u64>()));
                // Where there is no other thread, this one.
                if thread::Builder::new().spawn_scoped(scope, read).is_err() {
                    read();
                }
            }
        });
        (N_PASSES * WEIGHTS) as f64 / start.elapsed().as_secs_f64()
    };
    lines.push(peak("memory", "reading", best(&reading), "GB/s"));
    lines
}

/// Operations a second of all threads, `work` saying how many it does.
fn on_all(n_threads: usize, work: impl Fn() -> u64 + Sync) -> f64 {
    let one = || {
        let (start, mut n) = (Instant::now(), 0);
        while start.elapsed() < LEAST {
            n += work();
        }
        n as f64 / start.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let start = |_| thread::Builder::new().spawn_scoped(scope, one).ok();
        let threads: Vec<_> = (0..n_threads).filter_map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    })
}

/// Multiplications and additions in as many sums as fill the registers.
fn f32_operations() -> u64 {
    const N: usize = 1 << 18;
    const LANES: usize = 96;
    let mut sums = black_box([0.0f32; LANES]);
    let (a, b) = (black_box(0.999f32), black_box(0.5f32));
    for _ in 0..N {
        sums.iter_mut().for_each(|sum| *sum = sum.mul_add(a, b));
    }
    black_box(sums);
    (2 * N * LANES) as u64
}

/// A product as a picture needs it, by everyone who has it.
fn pictures(ty: GgmlType, n_threads: usize, n_runs: u8) -> Result<Vec<Line>> {
    let [k, m, n] = PICTURE;
    let weights = Weights::new(ty, k, m);
    let has = |kernels: &Kernels| kernels.is_available() && (*kernels == Kernels::Ggml || kernels.multiply(ty));
    let line = |kernels: Kernels| {
        let seconds = weights.seconds(n, n_threads, n_runs, |c, w, x| {
            if kernels == Kernels::Ggml {
                return c.mul_mat(w, x);
            }
            let finish = Finish { bias: None, activation: Activation::None, residual: None };
            kernels::product(c, kernels, w, kernels::columns(c, kernels, x, None), n, finish)
        })?;
        let value = (2 * k * m * n) as f64 / seconds / 1e9;
        Ok(Line { work: "picture", what: ty.to_string(), path: kernels.name(), value, unit: "GFLOP/s" })
    };
    Kernels::ALL.into_iter().filter(has).map(line).collect()
}

/// A token's product with weights that come from memory.
fn token(ty: GgmlType, n_threads: usize, n_runs: u8) -> Result<Line> {
    let row_bytes = ty.row_bytes(ROW as u64).unwrap_or(1) as usize;
    let weights = Weights::new(ty, ROW, WEIGHTS / row_bytes);
    let seconds = weights.seconds(1, n_threads, n_runs, |c, w, x| c.mul_mat(w, x))?;
    let path = if multiplies_rows(ty) { "avx2" } else { "ggml" };
    let value = weights.info.n_bytes as f64 / seconds / 1e9;
    Ok(Line { work: "token", what: ty.to_string(), path, value, unit: "GB/s" })
}

/// Weights in memory, as if they were mapped from a file.
struct Weights {
    bytes: Vec<u8>,
    info: TensorInfo,
}

/// What tensors of a file are aligned to.
const ALIGNMENT: usize = 64;

impl Weights {
    /// `m` rows of `k` values; the same 64 again and again, since no kernel looks at them.
    fn new(ty: GgmlType, k: usize, m: usize) -> Self {
        const N_ROWS: usize = 64;
        let row_bytes = ty.row_bytes(k as u64).unwrap_or(0) as usize;
        let value = |i: usize| (i as u32).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32 - 0.5;
        let mut rows = vec![0; N_ROWS * row_bytes];
        quantize_rows(ty, &(0..N_ROWS * k).map(value).collect::<Vec<_>>(), k, None, &mut rows);
        let mut bytes = vec![0; m * row_bytes + ALIGNMENT];
        let offset = bytes.as_ptr().align_offset(ALIGNMENT);
        for part in bytes[offset..][..m * row_bytes].chunks_mut(rows.len()) {
            part.copy_from_slice(&rows[..part.len()]);
        }
        let (dims, n_bytes) = (vec![k as u64, m as u64], (m * row_bytes) as u64);
        Weights { bytes, info: TensorInfo { name: String::new(), dims, ty, offset: 0, n_bytes } }
    }

    /// Seconds of what `build` makes of the weights and `n` columns: the least of the runs.
    fn seconds(
        &self,
        n: usize,
        n_threads: usize,
        n_runs: u8,
        build: impl for<'c> Fn(&'c Context<'_>, Tensor<'c>, Tensor<'c>) -> Tensor<'c>,
    ) -> Result<f64> {
        let offset = self.bytes.as_ptr().align_offset(ALIGNMENT);
        let file = &self.bytes[offset..][..self.info.n_bytes as usize];
        let stop = AtomicBool::new(false);
        let backend = Backend::cpu(n_threads, &stop)?;
        let c = Context::new(16)?;
        let k = self.info.dims[0] as usize;
        // On the CPU they point into `file`; there is nothing to load.
        let (w, x) = (c.weights(file, &backend)?.tensor(&self.info), c.input(&[k, n]));
        let mut graph = backend.allocate(c.graph(&[build(&c, w, x)]))?;
        graph.set(x, &vec![0.25; k * n]);
        graph.compute()?;
        let mut least = f64::INFINITY;
        for _ in 0..n_runs {
            let (start, mut times) = (Instant::now(), 0);
            while start.elapsed() < LEAST {
                graph.compute()?;
                times += 1;
            }
            least = least.min(start.elapsed().as_secs_f64() / f64::from(times));
        }
        Ok(least)
    }
}
