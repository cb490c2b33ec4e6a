//! `qvl doctor`, completions and man pages.

use crate::programs::{qvl, run};

/// Subcommands that are promised.
const SUBCOMMANDS: [&str; 14] = [
    "ask",
    "chat",
    "detect",
    "batch",
    "imatrix",
    "quality",
    "trace",
    "tokenize",
    "inspect",
    "bench",
    "doctor",
    "cache",
    "completions",
    "man",
];

#[test]
fn doctor_describes_the_machine() {
    let json = run(qvl().args(["doctor", "--json"])).json();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["arch"], std::env::consts::ARCH);
    assert!(json["cores"]["logical"].as_u64() >= json["cores"]["physical"].as_u64());
    assert!(json["cores"]["physical"].as_u64() > Some(0));
    let memory = |key: &str| json["memory"][key].as_u64();
    assert!(memory("available_bytes") <= memory("total_bytes"));
    assert!(json["devices"].as_array().unwrap().iter().any(|d| d["name"] == "cpu" && d["kind"] == "cpu"));
    let simd = json["simd"].as_array().unwrap();
    assert!(simd.iter().all(|f| f["cpu"].is_boolean() && f["build"].is_boolean()), "{simd:?}");
    // A warning exactly when the CPU has something that the build leaves unused.
    let unused = simd.iter().any(|f| f["cpu"] == true && f["build"] == false);
    assert_eq!(json["warnings"].as_array().unwrap().is_empty(), !unused);

    let text = run(qvl().arg("doctor")).ok().out;
    assert_eq!(text.contains("warning:"), unused, "{text}");
}

#[test]
fn completions_know_every_subcommand() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = run(qvl().args(["completions", shell])).ok().out;
        for name in SUBCOMMANDS {
            assert!(script.contains(name), "{shell} {name}");
        }
        assert!(script.contains("no-auto-orient"), "{shell}");
    }
    run(qvl().args(["completions", "tcsh"])).fails(2, "tcsh");
}

#[test]
fn man_pages_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    run(qvl().arg("man").arg(&pages)).ok();
    let page = |name: &str| std::fs::read_to_string(pages.join(format!("{name}.1"))).unwrap();
    assert!(page("qvl").contains(".TH"));
    for name in SUBCOMMANDS {
        assert!(page(&format!("qvl-{name}")).contains(".SH"), "{name}");
    }
    assert!(page("qvl-ask").contains("mmproj"));
}

#[test]
fn help_and_version_go_to_stdout() {
    for args in [&["--help"][..], &["ask", "--help"], &["--version"]] {
        let ran = run(qvl().args(args)).ok();
        assert!(!ran.out.is_empty() && ran.err.is_empty(), "{ran:?}");
    }
    assert_eq!(run(&mut qvl()).code, 2);
    run(qvl().arg("answer")).fails(2, "answer");
}
