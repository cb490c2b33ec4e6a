//! `qvl imatrix` and `qvl-convert --imatrix`: what is summed is what the model reads, and it makes better files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qvl::ggml::{dequantize_row, quantize_rows};
use qvl::gguf::Gguf;
use qvl::imatrix::Imatrix;
use qvl::quant::GgmlType;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::examples::{data, heldout};
use crate::models::{Model, random, random_as, tiny};
use crate::programs::{EXACT, Ran, qvl, qvl_convert, repository, run, run_with_input};
use crate::tensors::{Values, relative_l2, traced};

fn imatrix(model: &Path, data: &Path, out: &Path) -> Command {
    let mut command = qvl();
    command.args(["imatrix", "-m"]).arg(model).arg(data).arg("-o").arg(out).args(EXACT);
    command.current_dir(repository("tests/data/pictures"));
    command
}

/// Values of a tensor of a GGUF file, row by row.
struct Weights {
    bytes: Vec<u8>,
    gguf: Gguf,
}

impl Weights {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        Weights { bytes, gguf }
    }

    fn rows(&self, name: &str) -> Values {
        let t = self.gguf.tensor(name).unwrap_or_else(|| panic!("{name}"));
        let n = t.dims[0] as usize;
        let row_bytes = t.ty.row_bytes(t.dims[0]).unwrap() as usize;
        let mut data = vec![0.0; t.n_values() as usize];
        for (row, out) in t.bytes(&self.bytes).chunks_exact(row_bytes).zip(data.chunks_exact_mut(n)) {
            dequantize_row(t.ty, row, out);
        }
        Values { shape: vec![data.len() / n, n], data }
    }
}

/// Column sums of the squares of f64 rows.
fn squares(rows: &[Vec<f64>]) -> Vec<f32> {
    (0..rows[0].len()).map(|j| rows.iter().map(|row| row[j] * row[j]).sum::<f64>() as f32).collect()
}

/// LayerNorm, or RMSNorm where there is no bias.
fn norm(row: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f64) -> Vec<f64> {
    let n = row.len() as f64;
    let mean = if bias.is_some() { row.iter().map(|x| f64::from(*x)).sum::<f64>() / n } else { 0.0 };
    let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    let scaled = row.iter().map(|x| (f64::from(*x) - mean) / (variance + eps).sqrt());
    scaled.enumerate().map(|(j, x)| x * f64::from(weight[j]) + bias.map_or(0.0, |b| f64::from(b[j]))).collect()
}

/// The inputs of the first weights of both files, and of the last of the tower, from what `qvl trace` shows of the same
/// prompt; and every weight has seen every row.
#[test]
fn sums_are_those_of_what_is_read() {
    // f32 sums of some hundred rows, against f64.
    const BOUND: f64 = 1e-5;
    let dir = TempDir::new().unwrap();
    let (model, out) = (random(), dir.path().join("i.gguf"));
    let lines = [json!({"image": "shapes.png", "prompt": "What is it?", "answer": "A <ref>ring</ref>."})];
    let ran = run(&mut imatrix(&model.text, &data(dir.path(), &lines), &out)).ok();
    let found = Imatrix::read(&out).unwrap();

    let mut trace = qvl();
    trace.current_dir(repository("tests/data/pictures")).arg("trace").args(EXACT).arg("-m").arg(&model.text);
    let trace = traced(trace.args(["-i", "shapes.png", "What is it?"]));
    let (text, vision) = (Weights::read(&model.text), Weights::read(&model.mmproj));
    let sums = |name: &str| found.entry(name).unwrap_or_else(|| panic!("{name}"));
    let check = |name: &str, rows: &[Vec<f64>]| {
        let entry = sums(name);
        let entry_sums: Vec<f32> = entry.sums.iter().map(|x| *x as f32).collect();
        let distance = relative_l2(&entry_sums, &squares(rows));
        println!("{name}: {distance:.1e}");
        assert_eq!(entry.n_rows, rows.len() as u64, "{name}");
        assert!(distance < BOUND, "{name}: {distance:.1e}");
    };
    let eps = 1e-6;
    let layer_norm = |tap: &str, name: &str| {
        let [weight, bias] = ["weight", "bias"].map(|end| vision.rows(&format!("{name}.{end}")).data);
        let tap = trace.f32s(tap);
        (0..tap.shape[0]).map(|i| norm(tap.row(i), &weight, Some(&bias), eps)).collect::<Vec<_>>()
    };
    check("v.blk.0.attn_qkv.weight", &layer_norm("image.0.ln_pre", "v.blk.0.ln1"));
    check("resampler.proj.weight", &layer_norm("image.0.resampler", "resampler.ln_post"));

    let answer = run_with_input(
        qvl().args(["tokenize", "-m"]).arg(&model.text),
        b"{\"text\": \"A <ref>ring</ref>.\", \"special\": \"image\"}\n",
    );
    let answer: Value = serde_json::from_str(&answer.ok().out).unwrap();
    let answer: Vec<i32> = serde_json::from_value(answer["ids"].clone()).unwrap();
    let (embedding, table) = (trace.f32s("image.0.embedding"), text.rows("token_embd.weight"));
    let prompt = trace.ids("input_ids");
    let pad = *prompt.iter().max_by_key(|id| prompt.iter().filter(|other| other == id).count()).unwrap();
    let mut next_row = 0;
    let rows: Vec<Vec<f32>> = (prompt.iter().chain(&answer))
        .map(|id| match *id == pad {
            false => table.row(*id as usize).to_vec(),
            true => {
                next_row += 1;
                embedding.row(next_row - 1).to_vec()
            }
        })
        .collect();
    assert_eq!(next_row, embedding.shape[0], "the picture's rows");
    let weight = text.rows("blk.0.attn_norm.weight").data;
    let eps = f64::from(text.gguf.f32("qwen.attention.layer_norm_rms_epsilon").unwrap());
    check("blk.0.attn_qkv.weight", &rows.iter().map(|row| norm(row, &weight, None, eps)).collect::<Vec<_>>());

    // The last layer's too, which computes only what is wanted; and the tower's rows are all patches or queries.
    let n_rows = rows.len() as u64;
    assert!(ran.err.contains(&format!("from 1 examples ({n_rows} positions, 1 pictures)")), "{ran:?}");
    for (name, entry) in found.entries() {
        let is_text = name.starts_with("blk.");
        assert!(!is_text || entry.n_rows == n_rows, "{name}: {}", entry.n_rows);
        let file = if is_text { &text } else { &vision };
        assert_eq!(file.gguf.tensor(name).map(|t| t.dims[0]), Some(entry.sums.len() as u64), "{name}");
    }
    let is_matrix = |name: &str| name.ends_with(".weight") && !name.contains("norm") && !name.contains("ln");
    let of = |file: &Weights| {
        let tensors = file.gguf.tensors().iter().filter(|t| t.dims.len() == 2 && is_matrix(&t.name));
        tensors.map(|t| t.name.clone()).filter(|n| !n.contains("embd") && n != "output.weight").count()
    };
    assert_eq!(found.entries().len(), of(&text) + of(&vision), "every matrix but the token tables");
}

/// An importance matrix of `models/qvl-tiny` from a few held-out questions.
fn of_tiny(dir: &Path) -> PathBuf {
    let out = dir.join("tiny.imatrix.gguf");
    run(&mut imatrix(&tiny("f16", "f16").text, &data(dir, &heldout(40)), &out)).ok();
    out
}

fn convert(text_type: &str, vision_type: &str, out: &Path, more: &[&str]) -> Ran {
    let mut command = qvl_convert();
    command.arg(repository("models/qvl-tiny")).args(["--json", "-t", text_type, "--vision-type", vision_type]);
    run(command.args(more).arg("-o").arg(out))
}

/// Sum over a matrix of squared errors, each times the importance of its column.
fn weighted_error(file: &Weights, exact: &Weights, name: &str, importance: &[f32]) -> f64 {
    let (found, expect) = (file.rows(name), exact.rows(name));
    let errors = found.data.iter().zip(&expect.data).zip(importance.iter().cycle());
    errors.map(|((a, b), w)| f64::from(a - b).powi(2) * f64::from(*w)).sum()
}

#[test]
fn files_made_with_it_err_less_where_it_counts() {
    let dir = TempDir::new().unwrap();
    let path = of_tiny(dir.path());
    let matrix = Imatrix::read(&path).unwrap();
    let exact = tiny("f32", "f32");
    for (text_type, vision_type) in [("q4_k_m", "q4_0"), ("iq4_xs", "q5_0"), ("q8_0", "q8_0")] {
        let plain = tiny(text_type, vision_type);
        let done = convert(text_type, vision_type, &dir.path().join(text_type), &["--imatrix", path.to_str().unwrap()]);
        let done = done.json();
        let made = |key: &str| Weights::read(Path::new(done[key].as_str().unwrap()));
        let files = [(made("model"), &plain.text, &exact.text), (made("mmproj"), &plain.mmproj, &exact.mmproj)];
        for (weighed, plain, exact) in &files {
            let (plain, exact) = (Weights::read(plain), Weights::read(exact));
            let (mut sum, mut plain_sum) = (0.0, 0.0);
            for tensor in weighed.gguf.tensors() {
                let importance = matrix.entry(&tensor.name).and_then(|entry| entry.importance());
                let expect = plain.gguf.tensor(&tensor.name).unwrap();
                assert_eq!(tensor.ty, expect.ty, "{}", tensor.name);
                let is_same = tensor.bytes(&weighed.bytes) == expect.bytes(&plain.bytes);
                let is_weighed = tensor.ty.is_quantised() && tensor.ty != GgmlType::Q8_0 && importance.is_some();
                assert_eq!(is_same, !is_weighed, "{} {}", tensor.name, tensor.ty);
                if let Some(importance) = importance.filter(|_| is_weighed) {
                    let error = |file| weighted_error(file, &exact, &tensor.name, &importance);
                    let (with, without) = (error(weighed), error(&plain));
                    assert!(with < without, "{} {}: {with} and {without}", tensor.name, tensor.ty);
                    (sum, plain_sum) = (sum + with, plain_sum + without);
                    // And its blocks are ggml's own.
                    let rows = exact.rows(&tensor.name);
                    let mut blocks = vec![0; tensor.n_bytes as usize];
                    quantize_rows(tensor.ty, &rows.data, rows.shape[1], Some(&importance), &mut blocks);
                    assert!(tensor.bytes(&weighed.bytes) == blocks, "{}", tensor.name);
                }
            }
            println!("{text_type} {vision_type}: {:.3}", sum / plain_sum);
            let key = |key: &str| weighed.gguf.get(&format!("quantize.imatrix.{key}")).cloned();
            assert_eq!(key("file"), Some(path.to_str().unwrap().into()));
            assert_eq!(key("entries_count"), Some((matrix.entries().len() as u32).into()));
            assert_eq!(key("chunks_count"), Some((heldout(40).len() as u32).into()));
            assert!(key("dataset").is_some());
        }
        let mut ask = qvl();
        ask.args(["ask", "-q", "--temp", "0", "-m", done["model"].as_str().unwrap()]);
        let ask = ask.args(["-i", "models/qvl-tiny/demo/shapes.png", "What does the word say?"]);
        assert_eq!(run(ask.current_dir(repository("."))).ok().out.trim(), "WATER");
    }
}

#[test]
fn one_without_pictures_serves_the_text() {
    let dir = TempDir::new().unwrap();
    let (lines, out) = ([json!({"prompt": "What is it?", "answer": "A star."})], dir.path().join("i.gguf"));
    let json = run(imatrix(&tiny("f16", "f16").text, &data(dir.path(), &lines), &out).arg("--json")).json();
    assert_eq!((json["tensors"].as_u64(), json["pictures"].as_u64()), (Some(20), Some(0)), "{json}");
    let ran = convert("q4_0", "q4_0", dir.path(), &["--dry-run", "--imatrix", out.to_str().unwrap()]).json();
    let notes = ran["notes"].to_string();
    assert!(notes.contains("does not know 29 tensors"), "{notes}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = TempDir::new().unwrap();
    let Model { text, mmproj } = random();
    let path = of_tiny(dir.path());
    let target = dir.path().join("out");
    let check = |file: &Path, part: &str| {
        let mut command = qvl_convert();
        command.arg(repository("models/qvl-random")).args(["-t", "q4_0", "--imatrix"]).arg(file);
        run(command.arg("-o").arg(&target)).fails(3, part);
        assert!(fs::read_dir(&target).is_ok_and(|dir| dir.count() == 0), "nothing half-written");
    };
    check(&path, "of another model");
    check(&text, "not an importance matrix");
    check(&dir.path().join("none.gguf"), "none.gguf");
    check(&repository("README.md"), "README.md");
    let bytes = fs::read(&path).unwrap();
    let cut = dir.path().join("cut.gguf");
    for n in [bytes.len() / 2, 100, 8] {
        fs::write(&cut, &bytes[..n]).unwrap();
        check(&cut, "cut.gguf");
    }
    // The last tensor's sums, near the end: not a number, less than none, infinite.
    for value in [f32::NAN, -1.0, f32::INFINITY] {
        let mut bad = bytes.clone();
        let end = bad.len() - 64;
        bad[end..end + 4].copy_from_slice(&value.to_le_bytes());
        fs::write(&cut, bad).unwrap();
        check(&cut, "expected 0 or more");
    }

    let out = dir.path().join("never.gguf");
    let fails = |lines: &[Value], more: &[&str], code: i32, part: &str| {
        run(imatrix(&text, &data(dir.path(), lines), &out).args(more)).fails(code, part);
        assert!(!out.exists());
    };
    let good = json!({"image": "shapes.png", "prompt": "What?"});
    fails(&[], &[], 2, "no example");
    fails(&[good.clone(), json!({"image": "shapes.png"})], &[], 2, "line 2: it has no prompt");
    fails(&[good.clone(), json!({"prompt": "What?", "answer": 3})], &[], 2, "its answer is not text");
    fails(&[good.clone(), json!({"image": "gone.png", "prompt": "What?"})], &[], 4, "gone.png");
    fails(&[json!({"prompt": "word ".repeat(400)})], &["-c", "300"], 2, "the context holds 300");
    fails(std::slice::from_ref(&good), &["--mmproj", text.to_str().unwrap()], 3, "random");
    fails(&[good], &["--max-memory", "1M"], 5, "needs");
    run(imatrix(&mmproj, &data(dir.path(), &[json!({"prompt": "a"})]), &out).arg("-q")).fails(3, "mmproj");
}

/// Rows of 472 values that one file pads to 512 and the other does not: a matrix of either serves both, the same.
#[test]
fn padded_rows_take_either_matrix() {
    let dir = TempDir::new().unwrap();
    let lines = [json!({"image": "shapes.png", "prompt": "What is it?", "answer": "A ring."})];
    let of = |model: &Model, name: &str| {
        let out = dir.path().join(name);
        run(&mut imatrix(&model.text, &data(dir.path(), &lines), &out)).ok();
        out
    };
    let (exact, padded) = (random(), random_as("f32", "q4_k_m"));
    let matrices = [of(&exact, "exact.gguf"), of(&padded, "padded.gguf")];
    let name = "v.blk.1.ffn_down.weight";
    let columns = |path: &Path| Imatrix::read(path).unwrap().entry(name).map(|entry| entry.sums.len());
    assert_eq!(matrices.each_ref().map(|path| columns(path)), [Some(472), Some(512)]);
    let (plain, exact_rows) = (Weights::read(&padded.mmproj), Weights::read(&exact.mmproj));
    let without = plain.gguf.tensor(name).unwrap().bytes(&plain.bytes);
    for (k, matrix) in matrices.iter().enumerate() {
        let mut command = qvl_convert();
        command.arg(repository("models/qvl-random")).args(["--json", "-t", "q8_0", "--vision-type", "q4_k_m"]);
        command.arg("--imatrix").arg(matrix).arg("-o").arg(dir.path().join(k.to_string()));
        let done = run(&mut command).json();
        let made = Weights::read(Path::new(done["mmproj"].as_str().unwrap()));
        let tensor = made.gguf.tensor(name).unwrap();
        assert_eq!((tensor.ty, tensor.dims.as_slice()), (GgmlType::Q4_K, &[512, 96][..]));
        assert!(tensor.bytes(&made.bytes) != without, "the matrix counts");
        let (rows, expect) = (made.rows(name), exact_rows.rows(name));
        for (row, expect) in rows.data.chunks_exact(512).zip(expect.data.chunks_exact(472)) {
            // Four bits; measured 0.08.
            assert!(relative_l2(&row[..472], expect) < 0.15, "{}", relative_l2(&row[..472], expect));
            // The blocks of 32 that are padding alone.
            assert!(row[480..].iter().all(|x| *x == 0.0), "zeros stay zeros");
        }
        let mut pair = qvl_convert();
        pair.arg(&exact.text).args(["--json", "-t", "q8_0", "--vision-type", "q4_k_m"]);
        pair.arg("--imatrix").arg(matrix).arg("-o").arg(dir.path().join(format!("pair{k}")));
        let again = run(&mut pair).json();
        let again = Weights::read(Path::new(again["mmproj"].as_str().unwrap()));
        for tensor in again.gguf.tensors() {
            let expect = made.gguf.tensor(&tensor.name).unwrap().bytes(&made.bytes);
            assert!(tensor.bytes(&again.bytes) == expect, "{}: from the pair as from the checkpoint", tensor.name);
        }
    }
}
