#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| qvl_fuzz::fuzz::target("index")(data));
