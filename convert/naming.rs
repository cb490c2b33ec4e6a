//! The model's name: from the user, or from where the checkpoint lies.

use std::path::Path;

/// Published checkpoints, whose directory names lack the size that GGUF's naming convention wants.
const PUBLISHED: [(&str, &str); 3] =
    [("Qwen-VL", "Qwen-VL-7B"), ("Qwen-VL-Chat", "Qwen-VL-7B-Chat"), ("Qwen-VL-Chat-Int4", "Qwen-VL-7B-Chat-Int4")];

/// The repository name that the directory `dir` (canonical) suggests: its own name, or, inside the Hugging Face cache
/// (`models--ORG--NAME/snapshots/REVISION`), NAME.
pub fn checkpoint_name(dir: &Path) -> String {
    let name = |path: Option<&Path>| {
        path.and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let parent = dir.parent();
    let cached = name(parent.and_then(Path::parent));
    match cached.strip_prefix("models--").and_then(|rest| rest.rsplit("--").next()) {
        Some(repository) if name(parent) == "snapshots" => repository.to_owned(),
        _ => name(Some(dir)),
    }
}

/// Name of the model made from a checkpoint of this name.
pub fn model_name(checkpoint: &str) -> String {
    let published = PUBLISHED.iter().find(|(theirs, _)| theirs.eq_ignore_ascii_case(checkpoint));
    published.map_or_else(|| checkpoint.to_owned(), |(_, ours)| (*ours).to_owned())
}

/// Whether a checkpoint of this name is one of the published ones.
pub fn is_published(checkpoint: &str) -> bool {
    PUBLISHED.iter().any(|(theirs, _)| *theirs == checkpoint)
}

/// Longest name in bytes: file systems take 255, and `mmproj-`, types and an ending stand around it.
const MAX_STEM_BYTES: usize = 120;

/// `name` with everything that is awkward in a file name replaced by `-`, and cut where it is too long for one; `model` if
/// nothing is left.
pub fn file_stem(name: &str) -> String {
    let keep = |c: char| if c.is_alphanumeric() || "._+-".contains(c) { c } else { '-' };
    let stem: String = name.chars().map(keep).collect();
    let stem = stem.trim_matches(['-', '.']);
    let end = (0..=stem.len().min(MAX_STEM_BYTES)).rev().find(|at| stem.is_char_boundary(*at)).unwrap_or(0);
    if end == 0 { "model".into() } else { stem[..end].into() }
}

/// (basename, finetune) of a name: `Qwen-VL-7B-Chat` is `Qwen-VL` tuned for `Chat`.
pub fn parts(name: &str) -> (String, Option<String>) {
    let tuned =
        ["Chat-Int4", "Chat"].into_iter().find_map(|tune| Some((name.strip_suffix(&format!("-{tune}"))?, tune)));
    let (base, tune) = tuned.map_or((name, None), |(base, tune)| (base, Some(tune.to_owned())));
    (base.strip_suffix("-7B").unwrap_or(base).to_owned(), tune)
}

/// A count of parameters as GGUF's `size_label` writes it: `7.7B`, `494K`.
pub fn size_label(n_parameters: u64) -> String {
    let scaled = [(1e9, "B"), (1e6, "M"), (1e3, "K")];
    let n = n_parameters as f64;
    let (unit, letter) = scaled.into_iter().find(|(unit, _)| n >= *unit).unwrap_or((1e3, "K"));
    let value = n / unit;
    if value < 10.0 { format!("{value:.1}{letter}") } else { format!("{value:.0}{letter}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_directory() {
        let check = |dir: &str, expect: &str| assert_eq!(model_name(&checkpoint_name(Path::new(dir))), expect);
        check("/data/Qwen-VL-Chat", "Qwen-VL-7B-Chat");
        check("/data/qwen-vl", "Qwen-VL-7B");
        check("/data/Qwen-VL-Chat-Int4", "Qwen-VL-7B-Chat-Int4");
        check("/data/my-tune", "my-tune");
        check("/c/models--Qwen--Qwen-VL-Chat/snapshots/f57cfbd358cb56b710d963669ad1bcfb44cdcdd8", "Qwen-VL-7B-Chat");
        check("/", "");
    }

    #[test]
    fn file_names_are_tame() {
        assert_eq!(file_stem("a/b c:d"), "a-b-c-d");
        assert_eq!(file_stem("../.."), "model");
        assert_eq!(file_stem("通义-7B"), "通义-7B");
        assert_eq!(file_stem(&"é".repeat(200)), "é".repeat(60));
        assert_eq!(file_stem(&("x".to_owned() + &"é".repeat(200))), "x".to_owned() + &"é".repeat(59));
    }

    #[test]
    fn labels() {
        assert_eq!([7_721_324_544, 1_935_610_624, 494_000, 12].map(size_label), ["7.7B", "1.9B", "494K", "0.0K"]);
        assert_eq!(parts("Qwen-VL-7B-Chat"), ("Qwen-VL".into(), Some("Chat".into())));
        assert_eq!(parts("Qwen-VL-7B-Chat-Int4"), ("Qwen-VL".into(), Some("Chat-Int4".into())));
        assert_eq!(parts("mine"), ("mine".into(), None));
    }
}
