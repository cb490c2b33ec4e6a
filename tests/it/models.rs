//! Checkpoints of this repository, converted once a type.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use crate::programs::{qvl_convert, repository, run};

/// The two files of a model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Text GGUF.
    pub text: PathBuf,
    /// Vision GGUF, beside it.
    pub mmproj: PathBuf,
}

/// Queries of `models/qvl-random`: embeddings a picture.
pub const N_QUERIES: usize = 25;

/// `models/qvl-random` in f32: what is in it is what is in the checkpoint.
pub fn random() -> Model {
    random_as("f32", "f32")
}

/// `models/qvl-random` in these types.
pub fn random_as(text_type: &str, vision_type: &str) -> Model {
    converted(&repository("models/qvl-random"), text_type, vision_type)
}

/// `models/qvl-tiny`, which was trained to see, in these types.
pub fn tiny(text_type: &str, vision_type: &str) -> Model {
    converted(&repository("models/qvl-tiny"), text_type, vision_type)
}

/// A checkpoint of `models` as if it were a base model, whose prompts are raw.
pub fn base(name: &str, text_type: &str, vision_type: &str) -> Model {
    static COPIED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-base"));
    let mut copied = COPIED.lock().unwrap_or_else(|e| e.into_inner());
    if copied.insert(name.to_owned()) {
        fs::create_dir_all(&dir).unwrap();
        for entry in fs::read_dir(repository("models").join(name)).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
            }
        }
        let config = dir.join("generation_config.json");
        let chat = fs::read_to_string(&config).unwrap();
        fs::write(&config, chat.replace("chatml", "raw")).unwrap();
    }
    drop(copied);
    converted(&dir, text_type, vision_type)
}

/// A checkpoint converted to these types, each in a directory of its own below cargo's temporary one. The first caller
/// converts, the others wait.
pub fn converted(checkpoint: &Path, text_type: &str, vision_type: &str) -> Model {
    static MADE: LazyLock<Mutex<BTreeMap<PathBuf, Model>>> = LazyLock::new(Mutex::default);
    let name = checkpoint.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("_");
    let dir = format!("{}-{text_type}-{vision_type}", name.trim_matches(['/', '_', '.']));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(dir);
    let mut made = MADE.lock().unwrap_or_else(|e| e.into_inner());
    let convert = || {
        let mut command = qvl_convert();
        command.arg(checkpoint).args(["-t", text_type, "--vision-type", vision_type, "--force", "--json", "-o"]);
        let done = run(command.arg(&dir)).json();
        let path = |key: &str| PathBuf::from(done[key].as_str().expect("a path"));
        Model { text: path("model"), mmproj: path("mmproj") }
    };
    made.entry(dir.clone()).or_insert_with(convert).clone()
}
