//! `generation_config.json` and the chat conventions of a checkpoint.

use std::path::Path;

use qvl::error::Result;
use regex::Regex;

use crate::json::Fields;

/// How a question becomes a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatFormat {
    /// Turns between `<|im_start|>` and `<|im_end|>`.
    ChatMl,
    /// The text as it stands (base models).
    Raw,
}

impl ChatFormat {
    /// Its name in `generation_config.json` and in the GGUF file.
    pub fn name(self) -> &'static str {
        match self {
            ChatFormat::ChatMl => "chatml",
            ChatFormat::Raw => "raw",
        }
    }
}

/// Defaults of generation. What the file leaves out has Transformers' default, except where said.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// `raw` when the file or the key is missing, as in the base model.
    pub chat_format: ChatFormat,
    /// 0 (greedy) without `do_sample`.
    pub temperature: f32,
    /// Tokens kept; 0 keeps all.
    pub top_k: i32,
    /// Probability mass kept.
    pub top_p: f32,
    /// 1 is none.
    pub repetition_penalty: f32,
    /// Tokens to generate at most; 512 when not said.
    pub max_new_tokens: u32,
    /// Tokens of history in a chat prompt; 6144 when not said.
    pub max_window_size: u32,
    /// Token id that ends a text, if said.
    pub eos_token_id: Option<u64>,
}

/// Reads `dir/generation_config.json`, which may be missing. Errors (kind model) name the key.
pub fn read(dir: &Path) -> Result<Generation> {
    let path = dir.join("generation_config.json");
    if path.exists() { prove(&Fields::read(&path)?) } else { prove(&Fields::empty()) }
}

fn prove(fields: &Fields) -> Result<Generation> {
    let chat_format = match fields.opt_str("chat_format")? {
        Some("chatml") => ChatFormat::ChatMl,
        Some("raw") | None => ChatFormat::Raw,
        Some(other) => {
            return Err(fields.error(format!("chat_format is \"{other}\" (expected \"chatml\" or \"raw\")")));
        }
    };
    let temperature = fields.number_or("temperature", 1.0, 0.0..=100.0)? as f32;
    let sampled = fields.bool_or("do_sample", false)?;
    Ok(Generation {
        chat_format,
        temperature: if sampled { temperature } else { 0.0 },
        top_k: fields.count_or("top_k", 50, 0..=1 << 24)? as i32,
        top_p: fields.number_or("top_p", 1.0, 0.0..=1.0)? as f32,
        repetition_penalty: fields.number_or("repetition_penalty", 1.0, 0.01..=99.0)? as f32,
        max_new_tokens: fields.count_or("max_new_tokens", 512, 1..=1 << 20)? as u32,
        max_window_size: fields.count_or("max_window_size", 6144, 1..=1 << 24)? as u32,
        // Some configurations hold a list here; then the vocabulary's own end of text is used.
        eos_token_id: fields.get("eos_token_id").and_then(|v| v.as_u64()),
    })
}

/// What stands in front of a picture's tag, `{k}` being its number. The Int4 checkpoint's `tokenization_qwen.py` has no
/// space after the colon; a checkpoint without that file gets the space.
pub fn picture_format(dir: &Path) -> String {
    let code = std::fs::read_to_string(dir.join("tokenization_qwen.py")).unwrap_or_default();
    picture_format_of(&code)
}

fn picture_format_of(code: &str) -> String {
    let pattern = Regex::new(r"Picture \{[^}]*\}:( ?)").ok();
    let space = pattern.and_then(|p| p.captures(code)).map_or(" ".to_owned(), |found| found[1].to_owned());
    format!("Picture {{k}}:{space}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Generation {
        prove(&Fields::parse(text, "generation_config.json").unwrap()).unwrap()
    }

    #[test]
    fn missing_keys_have_the_librarys_defaults() {
        let bare = check("{}");
        assert_eq!((bare.chat_format, bare.temperature, bare.top_k, bare.top_p), (ChatFormat::Raw, 0.0, 50, 1.0));
        let chat =
            check(r#"{"chat_format": "chatml", "do_sample": true, "top_k": 0, "top_p": 0.3, "eos_token_id": 7}"#);
        assert_eq!((chat.chat_format, chat.temperature, chat.top_k), (ChatFormat::ChatMl, 1.0, 0));
        assert_eq!((chat.top_p, chat.eos_token_id, chat.max_window_size), (0.3, Some(7), 6144));
        assert_eq!(check(r#"{"do_sample": false, "temperature": 0.7}"#).temperature, 0.0);
    }

    #[test]
    fn the_space_after_the_picture_number_is_the_checkpoints() {
        assert_eq!(picture_format_of(""), "Picture {k}: ");
        assert_eq!(picture_format_of("text += f'Picture {num_images}: '"), "Picture {k}: ");
        assert_eq!(picture_format_of("text += f'Picture {num_images}:'"), "Picture {k}:");
    }
}
