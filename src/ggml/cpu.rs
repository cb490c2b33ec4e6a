//! Which SIMD ggml was built with, and which the CPU has.

use llama_cpp_sys_2 as sys;

/// An instruction set that speeds up ggml's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimdFeature {
    /// Its name.
    pub name: &'static str,
    /// Whether this build of ggml uses it.
    pub built: bool,
    /// Whether this CPU has it.
    pub present: bool,
}

/// All instruction sets that matter on this architecture.
pub fn simd_features() -> Vec<SimdFeature> {
    macro_rules! features {
        ($($name:literal, $built:ident, $present:expr;)*) => {
            // SAFETY: the functions return what was compiled in, nothing else.
            vec![$(SimdFeature { name: $name, built: unsafe { sys::$built() } != 0, present: $present },)*]
        };
    }
    #[cfg(target_arch = "x86_64")]
    let list = features! {
        "AVX", ggml_cpu_has_avx, std::arch::is_x86_feature_detected!("avx");
        "AVX2", ggml_cpu_has_avx2, std::arch::is_x86_feature_detected!("avx2");
        "F16C", ggml_cpu_has_f16c, std::arch::is_x86_feature_detected!("f16c");
        "FMA", ggml_cpu_has_fma, std::arch::is_x86_feature_detected!("fma");
        "AVX-VNNI", ggml_cpu_has_avx_vnni, std::arch::is_x86_feature_detected!("avxvnni");
        "AVX-512", ggml_cpu_has_avx512, std::arch::is_x86_feature_detected!("avx512f");
        "AVX-512 VBMI", ggml_cpu_has_avx512_vbmi, std::arch::is_x86_feature_detected!("avx512vbmi");
        "AVX-512 VNNI", ggml_cpu_has_avx512_vnni, std::arch::is_x86_feature_detected!("avx512vnni");
        "AVX-512 BF16", ggml_cpu_has_avx512_bf16, std::arch::is_x86_feature_detected!("avx512bf16");
    };
    #[cfg(target_arch = "aarch64")]
    let list = features! {
        "NEON", ggml_cpu_has_neon, std::arch::is_aarch64_feature_detected!("neon");
        "dot product", ggml_cpu_has_dotprod, std::arch::is_aarch64_feature_detected!("dotprod");
        "int8 matrix", ggml_cpu_has_matmul_int8, std::arch::is_aarch64_feature_detected!("i8mm");
        "FP16 vector", ggml_cpu_has_fp16_va, std::arch::is_aarch64_feature_detected!("fp16");
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let list = Vec::new();
    list
}

/// Whether ggml was built for AMX, whose kernels multiply repacked weights then, and only those.
pub fn has_amx() -> bool {
    // SAFETY: returns what was compiled in, nothing else.
    unsafe { sys::ggml_cpu_has_amx_int8() != 0 }
}
