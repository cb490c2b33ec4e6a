//! `qvl plan`, and what is done about memory before anything is loaded.

use std::process::Command;

use serde_json::Value;

use crate::models::{Model, random, tiny};
use crate::programs::{qvl, repository, run};

fn command(name: &str, model: &Model, flags: &[&str]) -> Command {
    let mut command = qvl();
    command.arg(name).arg("-m").arg(&model.text).args(flags);
    command
}

fn plan(model: &Model, flags: &[&str]) -> Value {
    run(command("plan", model, flags).arg("--json")).json()
}

fn ask(model: &Model, flags: &[&str]) -> Command {
    let mut command = command("ask", model, flags);
    let picture = repository("models/qvl-tiny/demo/shapes.png");
    command.args(["--json", "--no-cache", "--temp", "0", "-n", "40", "-i"]).arg(picture).arg("What does the word say?");
    command
}

fn bytes_of(plan: &Value, phase: usize, name: &str) -> u64 {
    let items = plan["phases"][phase]["items"].as_array().unwrap();
    items.iter().find(|item| item["name"] == name).and_then(|item| item["bytes"].as_u64()).unwrap()
}

/// Within a twentieth, whole process, whatever takes most. Where nothing is fused the plan is what may be taken: scores of a
/// context that is never filled are not.
#[test]
#[cfg(target_os = "linux")]
fn the_plan_is_what_is_measured() {
    let model = tiny("q4_k_m", "q8_0");
    for flags in [&[][..], &["-c", "2048"], &["-c", "8192"], &["-c", "8192", "-ctk", "q8_0", "-ctv", "q8_0"]] {
        let planned = plan(&model, &[flags, &["-n", "40", "--prompt-tokens", "30"]].concat());
        let planned = planned["peak_bytes"].as_u64().unwrap() as f64;
        // Of three: on a busy machine a single one is off by a megabyte, either way.
        let mut measured = [(); 3].map(|()| {
            let json = run(&mut ask(&model, flags)).json();
            json["memory"]["peak_rss_bytes"].as_u64().unwrap() as f64
        });
        measured.sort_by(f64::total_cmp);
        let measured = measured[1];
        assert!((planned / measured - 1.0).abs() <= 0.05, "{flags:?}: planned {planned}, measured {measured}");
    }
}

/// llama.cpp's own report of its buffers.
#[test]
fn buffers_are_those_of_llama_cpp() {
    for model in [random(), tiny("q4_k_m", "q8_0")] {
        for flags in [&["-c", "512"][..], &["-c", "4096"], &["-c", "4096", "-ctk", "q8_0", "-ctv", "q8_0"]] {
            let ran = run(ask(&model, flags).arg("-v")).ok();
            let mib = |what: &str| -> f64 {
                let line = ran.err.lines().find(|line| line.contains(&format!("{what} ="))).unwrap();
                let number = line.rsplit("size =").next().unwrap().trim().trim_end_matches(" MiB");
                number.parse().unwrap()
            };
            let usage = serde_json::from_str::<Value>(ran.out.trim()).unwrap()["usage"].clone();
            let n = |key: &str| usage[key].as_u64().unwrap();
            // A plan adds 8 positions to a picture.
            let n_text = (n("prompt_tokens") - n("image_tokens") - 8).to_string();
            let planned = plan(&model, &[flags, &["--prompt-tokens", &n_text]].concat());
            let planned_mib = |name| bytes_of(&planned, 1, name) as f64 / f64::from(1 << 20);
            let (kv, compute) = (planned_mib("KV cache"), planned_mib("compute buffers"));
            assert!((kv / mib("KV buffer size") - 1.0).abs() < 0.01, "{flags:?}: {kv}");
            // Ours holds the buffers of matrix products as well, which llama.cpp does not report.
            let theirs = mib("CPU compute buffer size");
            assert!((1.0..1.15).contains(&(compute / theirs)), "{flags:?}: {compute} {theirs}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let model = tiny("q4_k_m", "q8_0");
    let few = |size: &str, flags: &[&str]| run(ask(&model, flags).args(["--max-memory", size]));
    few("1M", &[]).fails(5, "are allowed");
    few("50M", &["-c", "8192", "-ctk", "f16"]).fails(5, "-ctk q8_0 -ctv q8_0");
    few("38M", &["-c", "8192", "-ctk", "q8_0", "-ctv", "q8_0"]).fails(5, "-c 4096");
    let ran = run(&mut command("plan", &model, &["--max-memory", "1M", "--json"]));
    assert_eq!(ran.code, 5, "{ran:?}");
    assert_eq!(serde_json::from_str::<Value>(ran.out.trim()).unwrap()["fits"], false);
    // Left to itself, it takes a cache of 8 bits.
    let planned = plan(&model, &["-c", "8192", "--max-memory", "48M"]);
    assert_eq!((&planned["cache_type_k"], &planned["fits"]), (&"q8_0".into(), &true.into()));
    // It says so, since answers change; -q is a wish not to know.
    let ran = few("48M", &["-c", "8192"]).ok();
    assert!(ran.err.contains("note:") && ran.err.contains("q8_0"), "{ran:?}");
    assert_eq!(few("48M", &["-c", "8192", "-q"]).ok().err, "");
}

/// What measures, and what writes answers down, computes as it was told or not at all.
#[test]
fn nothing_is_rounded_behind_ones_back() {
    let model = tiny("q4_k_m", "q8_0");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let flags = ["-q", "-c", "8192", "--max-memory", "48M"];
    run(command("trace", &model, &flags).arg("-o").arg(path("t")).arg("Hello?")).fails(5, "-ctk q8_0 -ctv q8_0");
    run(&mut command("bench", &model, &[&flags[..], &["--text-only", "-r", "1", "-p", "16", "-n", "0"]].concat()))
        .fails(5, "-ctk q8_0 -ctv q8_0");
    std::fs::write(path("in"), "{\"prompt\": \"Hello?\"}\n").unwrap();
    let ran = run(command("batch", &model, &flags).arg(path("in")).arg("-o").arg(path("out")));
    // Larger batches than those of the others: a cache of 8 bits would not be enough.
    assert!(ran.code == 5 && ran.err.contains("48.00 MiB are allowed; use -c"), "{ran:?}");
    assert!(!path("t").exists());
}

#[test]
fn absurd_sizes_are_told() {
    let model = random();
    for size in ["-1", "x", "1.2.3G", "", "1e9"] {
        run(&mut command("plan", &model, &[&format!("--max-memory={size}")])).fails(2, "size");
    }
    run(&mut command("plan", &model, &["--pictures", "1001"])).fails(2, "1001");
    run(&mut command("plan", &model, &["--prompt-tokens", "0"])).fails(2, "0");
    run(&mut command("plan", &model, &["-c", "64", "--prompt-tokens", "65"])).fails(2, "raise -c");
    run(&mut command("plan", &model, &["-c", "1000000"])).fails(2, "1000000");
}

/// Weights that do not fit are read by turns: the same answer, and it is told beforehand.
#[test]
#[cfg(target_os = "linux")]
fn layers_that_do_not_fit_come_and_go() {
    let model = tiny("f32", "f32");
    let flags = ["-ctk", "q8_0", "-ctv", "q8_0", "-c", "1024"];
    let whole = plan(&model, &flags);
    assert_eq!((&whole["layers"], &whole["layers_kept"]), (&4.into(), &4.into()));
    // Layers of 3.4 MB: with all but two of them gone it would be 7 MB less.
    let few = (whole["peak_bytes"].as_u64().unwrap() - 4_000_000).to_string();
    let planned = plan(&model, &[&flags[..], &["--max-memory", &few]].concat());
    assert!(planned["layers_kept"].as_u64().unwrap() < 2 && planned["fits"] == true, "{planned}");
    assert!(planned["peak_bytes"].as_u64().unwrap() <= few.parse().unwrap());
    let ran = run(ask(&model, &flags).args(["--max-memory", &few])).ok();
    assert!(ran.err.contains("of 4 layers") && ran.err.contains("slow"), "{ran:?}");
    let text = |out: &str| serde_json::from_str::<Value>(out.trim()).unwrap()["text"].clone();
    assert_eq!(text(&ran.out), text(&run(&mut ask(&model, &flags)).ok().out));
    assert_eq!(text(&ran.out), "WATER");
}
