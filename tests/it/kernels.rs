//! Kernels of the vision tower: ours see what ggml's see. What they compute is tested beside them, in `src/kernels/tests.rs`.

use qvl::ggml::has_amx;
use qvl::kernels::{Kernels, multiplies_many_columns};
use serde_json::Value;

use crate::models::{random, tiny};
use crate::programs::{qvl, repository, run};
use crate::tensors::{Values, relative_l2, traced};

/// Names of ours that this CPU has.
fn ours() -> Vec<&'static str> {
    let ours = Kernels::ALL.into_iter().filter(|kernels| *kernels != Kernels::Ggml && kernels.is_available());
    ours.map(Kernels::name).collect()
}

/// The embedding of the demo's picture by `models/qvl-tiny` with a vision tower of this type.
fn embedding(vision_type: &str, args: &[&str]) -> Values {
    let mut command = qvl();
    command.current_dir(repository("models/qvl-tiny/demo")).args(["trace", "-m"]).arg(tiny("q4_k_m", vision_type).text);
    traced(command.args(args).args(["-i", "shapes.png", "What?"])).f32s("image.0.embedding")
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The same weights and the same picture: what differs is how activations are rounded, to 8 bits each in blocks by most, to bf16 by AMX.
#[test]
fn an_embedding_is_near_that_of_ggml() {
    for vision_type in ["q8_0", "q5_0", "iq4_nl"] {
        let (exact, ggml) = (["-fa", "off", "--vision-kernels", "ggml"], ["--vision-kernels", "ggml"]);
        let (exact, ggml) = (embedding(vision_type, &exact), embedding(vision_type, &ggml));
        let rounding = relative_l2(&ggml.data, &exact.data);
        for name in ours() {
            let got = embedding(vision_type, &["--vision-kernels", name]);
            assert_eq!(got.shape, ggml.shape);
            let distance = relative_l2(&got.data, &ggml.data);
            println!("{vision_type}, {name}: {distance:.1e} from ggml, whose own rounding is {rounding:.1e}");
            assert!(distance < 0.03, "{vision_type}, {name}: relative L2 {distance:.1e}");
            // Other kernels, and not the same under another name.
            assert!(distance > 1e-6, "{vision_type}, {name}: relative L2 {distance:.1e}");
            let cosine = cosine(&got.data, &ggml.data);
            assert!(cosine > 0.999, "{vision_type}, {name}: cosine {cosine}");
        }
    }
}

/// 8-bit vision against exact f32: what the issue of kernels promises, on trained weights.
#[test]
fn eight_bits_of_vision_keep_the_direction_of_an_embedding() {
    let exact = embedding("f32", &["-fa", "off"]);
    for name in ours().into_iter().chain(["ggml"]) {
        let got = embedding("q8_0", &["--vision-kernels", name]);
        let rows = exact.data.chunks_exact(exact.shape[1]).zip(got.data.chunks_exact(exact.shape[1]));
        let mean = rows.map(|(a, b)| cosine(a, b)).sum::<f64>() / exact.shape[0] as f64;
        println!("{name}: mean cosine {mean:.6}");
        assert!(mean > 0.999, "{name}: mean cosine {mean}");
    }
}

/// Threads share the panels of a product; what one of them sums does not change.
#[test]
fn threads_change_nothing() {
    for name in ours() {
        let one = embedding("q8_0", &["--vision-kernels", name, "-t", "1"]);
        assert_eq!(one, embedding("q8_0", &["--vision-kernels", name, "-t", "3"]), "{name}");
    }
}

/// Weights that are not quantised are ggml's whatever is asked for, and exact attention is.
#[test]
fn exact_stays_exact() {
    let exact = embedding("f32", &["-fa", "off"]);
    for name in ours() {
        assert_eq!(exact, embedding("f32", &["-fa", "off", "--vision-kernels", name]), "{name}");
    }
}

/// A prompt's logits by all who read prompts, beside those of ggml, whose rounding of columns is coarser.
#[test]
fn prompts_are_read_as_ggml_reads_them() {
    let logits = |text_type: &str, kernels: &str| {
        let mut command = qvl();
        command.current_dir(repository("models/qvl-tiny/demo")).args(["trace", "-m"]).arg(tiny(text_type, "q8_0").text);
        traced(command.args(["--prompt-kernels", kernels, "-i", "shapes.png", "What?"])).f32s("logits")
    };
    for text_type in ["q4_k_m", "q8_0"] {
        let ggml = logits(text_type, "ggml");
        for name in ours().into_iter().filter(|_| multiplies_many_columns()) {
            let got = logits(text_type, name);
            let distance = relative_l2(&got.data, &ggml.data);
            println!("{text_type}, {name}: {distance:.1e} from ggml");
            assert!((1e-7..0.03).contains(&distance), "{text_type}, {name}: relative L2 {distance:.1e}");
        }
    }
    // What this CPU lacks is told before a file is opened.
    let lacking = Kernels::ALL.into_iter().filter(|kernels| !kernels.is_available()).map(Kernels::name);
    for name in lacking {
        run(qvl().args(["plan", "-m", "missing.gguf", "--prompt-kernels", name])).fails(2, "leave it at auto");
    }
    let wrong = run(qvl().args(["ask", "--prompt-kernels", "sse5", "-m"]).arg(random().text).arg("Hi"));
    assert!(wrong.code == 2 && wrong.err.contains("avxvnni"), "{wrong:?}");
}

/// An embedding in the cache is for the kernels that made it.
#[test]
fn a_cached_embedding_is_of_its_kernels() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |kernels: &str| -> u64 {
        let mut command = qvl();
        command.env("QVL_CACHE_DIR", dir.path()).env("QVL_CACHE_SIZE", "64M");
        command.current_dir(repository("models/qvl-tiny/demo")).args(["ask", "--temp", "0", "-n", "2", "--json", "-m"]);
        command.arg(tiny("q4_k_m", "q8_0").text).args(["--vision-kernels", kernels, "-i", "shapes.png", "What?"]);
        run(&mut command).json()["usage"]["cached_image_tokens"].as_u64().expect("a count")
    };
    for name in ours().into_iter().chain(["ggml"]) {
        assert_eq!(ask(name), 0, "{name}, seen for the first time");
        assert!(ask(name) > 0, "{name}, seen before");
    }
}

/// By environment as by flag; what does not exist is refused.
#[test]
fn kernels_are_chosen_by_name() {
    let ask = |name: &str| {
        let mut command = qvl();
        command.env("QVL_VISION_KERNELS", name).args(["ask", "--temp", "0", "-n", "2", "-m"]).arg(random().text);
        run(command.arg("Hi"))
    };
    ask("ggml").ok();
    let wrong = ask("sse5");
    assert_eq!(wrong.code, 2, "{wrong:?}");
    assert!(wrong.err.contains("avxvnni") && wrong.err.contains("auto"), "{wrong:?}");
    let doctor: Value = run(qvl().args(["doctor", "--json"])).json();
    assert_eq!(doctor["vision_kernels"], Kernels::detect().name());
    let prompts = if multiplies_many_columns() { Kernels::detect() } else { Kernels::Ggml };
    assert_eq!(doctor["prompt_kernels"], prompts.name());
    let available = doctor["vision_kernels_available"].as_array().expect("a list");
    assert!(ours().into_iter().chain(["ggml"]).all(|name| available.contains(&name.into())), "{doctor}");
}

/// Every type by everyone who has it, beside what the machine can do.
#[test]
fn bench_measures_kernels_without_a_model() {
    let report: Value = run(qvl().args(["bench", "--kernels", "-r", "1", "--json", "-q"])).json();
    let results = report["results"].as_array().expect("a list");
    let has = |work: &str, ty: &str, kernels: &str| {
        results.iter().any(|r| r["work"] == work && r["type"] == ty && r["kernels"] == kernels)
    };
    assert!(results.iter().all(|r| r["value"].as_f64().expect("a number") > 0.0), "{report}");
    assert!(has("peak", "f32", "registers") && has("peak", "memory", "reading"));
    assert!(has("picture", "bf16", "ggml") && has("picture", "q8_0", "ggml"));
    for name in ours() {
        let peak = if name == "amx" { "bf16" } else { "int8" };
        assert!(has("peak", peak, name) && has("picture", "q8_0", name) && !has("picture", "bf16", name), "{name}");
    }
    assert_eq!(results.iter().filter(|r| r["work"] == "token").count(), 8);
    let both = run(qvl().args(["bench", "--kernels", "--compare", "a.json"]));
    assert!(both.code == 2 && both.err.contains("cannot be used with"), "{both:?}");
}

/// Where ggml has AMX for them, repacked weights are refused before they crash; elsewhere they answer.
#[test]
fn repacked_weights_answer_or_are_refused() {
    let model = tiny("q4_k_m", "q8_0").text;
    let ran = run(qvl().args(["ask", "--temp", "0", "-n", "2", "--repack", "on", "-m"]).arg(model).arg("Hi"));
    if has_amx() {
        assert!(ran.code == 2 && ran.err.contains("AMX"), "{ran:?}");
    } else {
        ran.ok();
    }
}
