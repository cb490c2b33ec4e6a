//! Which SIMD ggml was built with, and which the CPU has.

use std::ffi::{CStr, c_void};

use llama_cpp_sys_2 as sys;

use super::device::{function_of, load_backends};

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

/// All instruction sets that matter on this architecture. Cost: the first call loads ggml's library, in builds where it is one.
pub fn simd_features() -> Vec<SimdFeature> {
    let built = built();
    macro_rules! features {
        ($($name:literal, $ggml:literal, $present:expr;)*) => {
            vec![$(SimdFeature { name: $name, built: built.iter().any(|b| b == $ggml), present: $present },)*]
        };
    }
    #[cfg(target_arch = "x86_64")]
    let list = features! {
        "AVX", "AVX", std::arch::is_x86_feature_detected!("avx");
        "AVX2", "AVX2", std::arch::is_x86_feature_detected!("avx2");
        "F16C", "F16C", std::arch::is_x86_feature_detected!("f16c");
        "FMA", "FMA", std::arch::is_x86_feature_detected!("fma");
        "AVX-VNNI", "AVX_VNNI", std::arch::is_x86_feature_detected!("avxvnni");
        "AVX-512", "AVX512", std::arch::is_x86_feature_detected!("avx512f");
        "AVX-512 VBMI", "AVX512_VBMI", std::arch::is_x86_feature_detected!("avx512vbmi");
        "AVX-512 VNNI", "AVX512_VNNI", std::arch::is_x86_feature_detected!("avx512vnni");
        "AVX-512 BF16", "AVX512_BF16", std::arch::is_x86_feature_detected!("avx512bf16");
    };
    #[cfg(target_arch = "aarch64")]
    let list = features! {
        "NEON", "NEON", std::arch::is_aarch64_feature_detected!("neon");
        "dot product", "DOTPROD", std::arch::is_aarch64_feature_detected!("dotprod");
        "int8 matrix", "MATMUL_INT8", std::arch::is_aarch64_feature_detected!("i8mm");
        "FP16 vector", "FP16_VA", std::arch::is_aarch64_feature_detected!("fp16");
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let list = {
        let _ = built;
        Vec::new()
    };
    list
}

/// Whether ggml was built for AMX, whose kernels multiply repacked weights then, and only those.
pub fn has_amx() -> bool {
    built().iter().any(|name| name == "AMX_INT8")
}

/// What ggml's code for the CPU was built with, in its own names; in builds that load it, the variant that was chosen.
fn built() -> Vec<String> {
    type Features = unsafe extern "C" fn(sys::ggml_backend_reg_t) -> *mut sys::ggml_backend_feature;
    load_backends();
    let Ok(function) = function_of(c"CPU", c"ggml_backend_get_features") else { return Vec::new() };
    let mut names = Vec::new();
    // SAFETY: the CPU's registration gives a function of this type under this name; its list lives as long as the process and ends
    // with a null name; names are terminated strings.
    unsafe {
        let features = std::mem::transmute::<*mut c_void, Features>(function);
        let mut feature = features(sys::ggml_backend_reg_by_name(c"CPU".as_ptr()));
        while !(*feature).name.is_null() {
            names.push(CStr::from_ptr((*feature).name).to_string_lossy().into_owned());
            feature = feature.add(1);
        }
    }
    names
}
