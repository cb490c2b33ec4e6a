//! The licence of the weights, which covers converted files too: metadata carries it.

use std::path::Path;

use qvl::gguf::Metadata;

/// The licence of the published checkpoints.
const TONGYI_NAME: &str = "tongyi-qianwen";
const TONGYI_LINK: &str = "https://github.com/QwenLM/Qwen-VL/blob/master/LICENSE";
/// Longest line of a licence or README that is looked at, in characters.
const MAX_CHARS: usize = 120;

/// A licence in the words of GGUF's `general.license*` keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Licence {
    /// SPDX expression, or `other`.
    pub license: String,
    /// Its name, where the expression does not say it.
    pub name: Option<String>,
    /// Where its text is.
    pub link: Option<String>,
}

/// What the checkpoint in `dir` says of its licence: the front matter of README.md, else the first line of LICENSE, else
/// the licence of the published checkpoints, since an unmarked copy of their weights is the likeliest case.
pub fn read(dir: &Path) -> Licence {
    let file = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
    file("README.md")
        .and_then(|text| from_front_matter(&text))
        .or_else(|| file("LICENSE").and_then(|text| from_licence_file(&text)))
        .unwrap_or_else(tongyi)
}

fn tongyi() -> Licence {
    Licence { license: "other".into(), name: Some(TONGYI_NAME.into()), link: Some(TONGYI_LINK.into()) }
}

fn from_front_matter(text: &str) -> Option<Licence> {
    let matter = text.strip_prefix("---")?.split("\n---").next()?;
    let value = |key: &str| {
        let line = matter.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let value: String = line.trim().trim_matches(['"', '\'']).chars().take(MAX_CHARS).collect();
        (!value.is_empty()).then_some(value)
    };
    Some(Licence { license: value("license")?, name: value("license_name"), link: value("license_link") })
}

fn from_licence_file(text: &str) -> Option<Licence> {
    let first = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    if first.to_lowercase().contains("tongyi qianwen") {
        return Some(tongyi());
    }
    Some(Licence { license: "other".into(), name: Some(first.chars().take(MAX_CHARS).collect()), link: None })
}

/// Writes the keys.
pub fn set(metadata: &mut Metadata, licence: &Licence) {
    metadata.set("general.license", licence.license.as_str());
    metadata.set_opt("general.license.name", licence.name.as_deref());
    metadata.set_opt("general.license.link", licence.link.as_deref());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkpoints_own_words_come_first() {
        let readme = "---\nlanguage:\n- zh\nlicense: apache-2.0\n---\n# Title\nlicense: none";
        assert_eq!(from_front_matter(readme).unwrap().license, "apache-2.0");
        assert_eq!(from_front_matter("# Title"), None);
        assert_eq!(from_front_matter("---\ntags: x\n---\n"), None);
        assert_eq!(from_licence_file("\nTongyi Qianwen LICENSE AGREEMENT\n\nRelease"), Some(tongyi()));
        assert_eq!(from_licence_file("MIT License\n").unwrap().name.as_deref(), Some("MIT License"));
    }
}
