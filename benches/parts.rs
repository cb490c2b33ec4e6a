//! Micro-benchmarks of the parts that run before the first token, and of rows of weights: `cargo bench`.
//!
//! Prints the median of several runs and, where there is a simple lower bound, the ratio to it; absolute times are those
//! of the machine at hand. No model is needed beyond `models/qvl-random`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qvl::ggml::{dequantize_row, quantize_rows};
use qvl::grammar::{Matcher, from_json_schema};
use qvl::image::{Picture, normalise, resize};
use qvl::llama::{Rotated, RotatedRows};
use qvl::quant::GgmlType;
use qvl::quantise::quantise_rows;
use qvl::session::TextFile;
use qvl::text::{Rope, alpha};
use qvl::tokenizer::{Special, Tokenizer};

/// Runs of each measurement; the median counts.
const N_RUNS: usize = 9;

fn main() {
    let photo =
        Picture::new(4000, 3000, (0..36_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect());
    let photo = photo.expect("as many bytes as pixels need");
    let copy = median(|| drop(black_box(photo.pixels().to_vec())));
    report("copy of a 12-megapixel photo", copy, None);
    report("resize to 448 x 448", median(|| drop(black_box(resize(&photo, 448, 448)))), Some(copy));
    let small = resize(&photo, 448, 448);
    report("normalise", median(|| drop(black_box(normalise(&small, [0.5; 3], [0.25; 3])))), None);

    rows();

    let Some(model) = std::env::var_os("QVL_MODEL") else {
        println!("set QVL_MODEL to a text GGUF to measure its header, tokenizer and rotation as well");
        return;
    };
    let model = std::path::PathBuf::from(model);
    report("open the text file", median(|| drop(black_box(TextFile::open(&model)))), None);
    let file = match TextFile::open(&model) {
        Ok(file) => file,
        Err(error) => return eprintln!("error: {error}"),
    };
    let text = "The quick brown fox, 1234 times. 图中是什么? ".repeat(20_000);
    report("tokenize 1 MB", median(|| drop(black_box(file.tokenizer().encode(&text, Special::All)))), None);

    let (h, n) = (file.hparams(), 288);
    let positions: Vec<i32> = (0..n).collect();
    let mut rows = vec![0.5f32; n as usize * h.n_embd];
    let mut rotation = Rope::Exact.rotation(h, alpha(h, n as usize));
    let time = median(|| {
        for which in [Rotated::Queries, Rotated::Keys] {
            (rotation.rows)(RotatedRows { which, positions: &positions, rows: &mut rows });
        }
    });
    report("rotate queries and keys of a layer, 288 positions", time, None);
    let time = median(|| {
        for which in [Rotated::Queries, Rotated::Keys] {
            (rotation.rows)(RotatedRows { which, positions: &positions[..1], rows: &mut rows[..h.n_embd] });
        }
    });
    report("the same for one position", time, None);
    follow_json(file.tokenizer());
}

/// Rows of weights as the converter makes them and as `inspect --verify` reads them: 256 rows of 4096 values, against a
/// copy of those values.
fn rows() {
    const N_PER_ROW: usize = 4096;
    let values: Vec<f32> =
        (0..256 * N_PER_ROW as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 - 8e6).collect();
    let copy = median(|| drop(black_box(values.clone())));
    report("copy of 256 rows of 4096 values, f32", copy, None);
    for ty in [GgmlType::F16, GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_K, GgmlType::Q6_K] {
        let row_bytes = ty.row_bytes(N_PER_ROW as u64).expect("holds such rows") as usize;
        let mut stored = vec![0; 256 * row_bytes];
        quantize_rows(ty, &values, N_PER_ROW, None, &mut stored);
        let mut row = vec![0.0; N_PER_ROW];
        let time =
            median(|| stored.chunks_exact(row_bytes).for_each(|bytes| dequantize_row(ty, bytes, black_box(&mut row))));
        report(&format!("widen them from {ty}"), time, Some(copy));
    }
    quantisers();
}

/// Our quantisers against ggml's, on one thread: 96 rows of 4096 nearly normal values on the grid of bf16, as checkpoints have them. Both
/// take turns, so that a busy machine is busy for both.
fn quantisers() {
    use GgmlType::{IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    const N_PER_ROW: usize = 4096;
    const N_ROWS: usize = 96;
    let part = |i: u32, nth: u32| {
        (i.wrapping_mul(2_654_435_761) ^ nth.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b) >> 8
    };
    let normal = |i: u32| (0..4).map(|nth| part(i, nth) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 0.04;
    let values: Vec<f32> = (0..(N_ROWS * N_PER_ROW) as u32).map(|i| half::bf16::from_f32(normal(i)).to_f32()).collect();
    let importance: Vec<f32> = (0..N_PER_ROW as u32).map(|i| 1e-3 + normal(i).powi(2)).collect();
    let rate = |time: Duration| values.len() as f64 / 1e6 / time.as_secs_f64();
    println!("millions of values a second     ggml     ours    ratio   with importance: ggml     ours    ratio");
    for ty in [Q8_0, Q6_K, Q5_K, Q4_K, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL, IQ4_XS] {
        let row_bytes = ty.row_bytes(N_PER_ROW as u64).expect("holds such rows") as usize;
        let mut out = vec![0; N_ROWS * row_bytes];
        let [plain, weighted] = [None, Some(&importance[..])].map(|importance| {
            let mut timed = |quantise: &dyn Fn(&mut [u8])| {
                let start = Instant::now();
                quantise(&mut out);
                start.elapsed()
            };
            let turn = |_| {
                let theirs = timed(&|out| quantize_rows(ty, black_box(&values), N_PER_ROW, importance, out));
                (theirs, timed(&|out| quantise_rows(ty, black_box(&values), N_PER_ROW, importance, out)))
            };
            let (mut theirs, mut ours): (Vec<_>, Vec<_>) = (0..N_RUNS).map(turn).unzip();
            theirs.sort();
            ours.sort();
            [theirs, ours].map(|times| rate(times[N_RUNS / 2]))
        });
        let [a, b] = plain;
        let [c, d] = weighted;
        println!("{:26} {a:>9.1} {b:>8.1} {:>8.1} {c:>22.1} {d:>8.1} {:>8.1}", ty.name(), b / a, d / c);
    }
}

/// What a grammar costs in the middle of a JSON string, where nearly every token is allowed.
fn follow_json(tokenizer: &Tokenizer) {
    let stops = [tokenizer.special_ids().eod];
    report("order the vocabulary for grammars", median(|| drop(black_box(tokenizer.vocabulary(&stops)))), None);
    let grammar = from_json_schema(r#"{"type": "string"}"#).expect("is a schema");
    let matcher = Matcher::new(Arc::new(grammar), Arc::new(tokenizer.vocabulary(&stops)));
    let mut matcher = matcher.expect("has few readings");
    for id in tokenizer.encode("\"a", Special::None).unwrap_or_default() {
        matcher.accept(id.to_u32());
    }
    let fresh = matcher.clone();
    report(
        "which tokens a grammar allows, for the first time",
        median(|| drop(black_box(fresh.clone().allowed()))),
        None,
    );
    let _ = matcher.allowed();
    report("the same again", median(|| drop(black_box(matcher.allowed()))), None);
    let id = tokenizer.encode("a", Special::None).map_or(0, |ids| ids[0].to_u32());
    report("whether it allows one", median(|| drop(black_box(matcher.allows(id)))), None);
}

fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..N_RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[N_RUNS / 2]
}

fn report(what: &str, time: Duration, against: Option<Duration>) {
    let ratio = against.map(|a| format!("  {:.1} x the copy", time.as_secs_f64() / a.as_secs_f64()));
    println!("{what:52} {:>10.3} ms{}", time.as_secs_f64() * 1e3, ratio.unwrap_or_default());
}
