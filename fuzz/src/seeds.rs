//! `seeds DIR`: writes the seeds of every target into `DIR/TARGET/`.

use std::path::Path;

use qvl_fuzz::fuzz::{TARGETS, seeds::seeds};

fn main() -> std::io::Result<()> {
    let dir = std::env::args_os().nth(1).expect("a directory");
    for (name, _) in TARGETS {
        let dir = Path::new(&dir).join(name);
        std::fs::create_dir_all(&dir)?;
        for (nth, seed) in seeds(name).iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{nth}")), seed)?;
        }
    }
    Ok(())
}
