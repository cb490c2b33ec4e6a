#![no_main]
libfuzzer_sys::fuzz_target!(init: qvl_fuzz::contain(), |data: &[u8]| qvl_fuzz::fuzz::target("source")(data));
