//! Writes the seeds of every target into `$SEEDS/TARGET/`. Coverage needs libFuzzer's `main`, so this is a fuzzer, too, of
//! which nothing but the beginning is of use.
#![no_main]

use std::path::Path;

use qvl_fuzz::fuzz::{TARGETS, seeds::seeds};

fn write() -> std::io::Result<()> {
    let dir = std::env::var_os("SEEDS").expect("SEEDS names a directory");
    for (name, _) in TARGETS {
        let dir = Path::new(&dir).join(name);
        std::fs::create_dir_all(&dir)?;
        for (nth, seed) in seeds(name).iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{nth}")), seed)?;
        }
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(init: {
    write().expect("seeds");
    std::process::exit(0);
}, |_data: &[u8]| {});
