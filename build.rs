//! Which code of ours there is for this machine, and where programs find ggml's libraries.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(text_kernels)");
    let var = |name: &str| std::env::var(format!("CARGO_CFG_{name}")).unwrap_or_default();
    let is_linux = var("TARGET_OS") == "linux";
    // `src/kernels/hook.rs`
    if is_linux && var("TARGET_ARCH") == "x86_64" {
        println!("cargo::rustc-cfg=text_kernels");
    }
    // ggml's kernels are in libraries then, chosen at run time, which lie where `scripts/package.sh` puts them.
    if is_linux && std::env::var_os("CARGO_FEATURE_DYNAMIC_BACKENDS").is_some() {
        // Of the older kind, which those libraries' own libraries (libgomp) are looked for by as well.
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/../lib/qvl,--disable-new-dtags");
    }
}
