//! Lets ggml call our kernels for rows of weights (`src/kernels/row.rs`), where it is compiled for what they need and part of
//! the program. Examples keep ggml's: `llama-speed` is what ours is held against.

/// Their C names, and those of what ggml asks before each operation (`src/kernels/hook.rs`).
const KERNELS: [&str; 7] = [
    "ggml_cpu_extra_work_size",
    "ggml_cpu_extra_compute_forward",
    "ggml_vec_dot_q4_0_q8_0",
    "ggml_vec_dot_q8_0_q8_0",
    "ggml_vec_dot_q4_K_q8_K",
    "ggml_vec_dot_q5_K_q8_K",
    "ggml_vec_dot_q6_K_q8_K",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(row_kernels)");
    let var = |name: &str| std::env::var(format!("CARGO_CFG_{name}")).unwrap_or_default();
    if std::env::var_os("CARGO_FEATURE_DYNAMIC_BACKENDS").is_some() {
        // ggml's kernels are in libraries then, chosen at run time, which lie where `scripts/package.sh` puts them.
        if var("TARGET_OS") == "linux" {
            // Of the older kind, which those libraries' own libraries (libgomp) are looked for by as well.
            println!("cargo::rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/../lib/qvl,--disable-new-dtags");
        }
        return;
    }
    let features = var("TARGET_FEATURE");
    let has = |feature: &str| features.split(',').any(|f| f == feature);
    // The option is of GNU's linker and those that follow it.
    if var("TARGET_OS") != "linux" || var("TARGET_ARCH") != "x86_64" || !["avx2", "fma", "f16c"].into_iter().all(has) {
        return;
    }
    println!("cargo::rustc-cfg=row_kernels");
    for name in KERNELS {
        // Wherever ggml means `name` it gets `__wrap_name`, which has to be there although no Rust code asks for it.
        for target in ["bins", "tests", "benches"] {
            println!("cargo::rustc-link-arg-{target}=-Wl,--wrap={name},--undefined=__wrap_{name}");
        }
    }
}
