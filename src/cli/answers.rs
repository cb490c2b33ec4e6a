//! What commands that generate share: settings from flags, and answers in the words of their JSON.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use qvl::error::{Error, ErrorKind, Result};
use qvl::grounding::Region;
use qvl::llama::SamplerSettings;
use qvl::session::{Answer, Draft, Finish, GenerateSettings, TextFile};
use qvl::text::{ChatFormat, TextHparams};
use serde_json::{Value, json};

use super::args::GenerationArgs;
use super::print_error;

/// How tokens are chosen: as told, else as the model's file says.
pub fn sampling(args: &GenerationArgs, h: &TextHparams) -> SamplerSettings {
    // A seed that nobody chose: the clock's nanoseconds differ from run to run.
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    SamplerSettings {
        temp: args.temp.unwrap_or(h.temp),
        top_k: args.top_k.unwrap_or(h.top_k),
        top_p: args.top_p.unwrap_or(h.top_p),
        min_p: args.min_p,
        repeat_penalty: args.repeat_penalty.unwrap_or(h.repeat_penalty),
        seed: args.seed.unwrap_or_else(clock),
    }
}

/// When an answer ends.
pub fn stops(text: &TextFile, args: &GenerationArgs, n_predict: usize, raw: bool) -> GenerateSettings {
    let ids = text.tokenizer().special_ids();
    let mut stop_texts: Vec<String> = args.stop.iter().filter(|s| !s.is_empty()).cloned().collect();
    if raw && text.hparams().chat_format == ChatFormat::Raw {
        // The base model's own stop sequence: it would go on to write the next question.
        stop_texts.push("Human:".to_owned());
    }
    GenerateSettings {
        n_predict,
        stop_ids: vec![ids.eod, ids.im_end, ids.im_start],
        stop_texts,
        logprobs: None,
        draft: Draft::Off,
    }
}

/// Why an answer ended, as JSON says it.
pub fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Interrupted => "interrupted",
    }
}

/// Regions in the pixels of the picture that was shown last, of this width and height. A quad has its corners beside the box
/// around it.
pub fn regions(found: &[Region], size: Option<(u32, u32)>) -> Vec<Value> {
    let one = |region: &Region| {
        let pixels = size.map(|(width, height)| region.box_pixels(width, height));
        let mut json = json!({"label": region.label, "box": pixels, "box_1000": region.box_1000()});
        if let Some(quad) = region.quad_1000() {
            json["quad"] = json!(size.and_then(|(width, height)| region.quad_pixels(width, height)));
            json["quad_1000"] = json!(quad);
        }
        json
    };
    found.iter().map(one).collect()
}

/// Milliseconds with three decimals.
pub fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

/// Says if an answer was cut. Errors (kind interrupted): the user ended it.
pub fn conclude(answer: &Answer, n_predict: usize, quiet: bool) -> Result<()> {
    match answer.finish {
        Finish::Interrupted => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
        Finish::Length if !quiet => {
            let reason =
                if answer.n_tokens < n_predict { "the context is full; use a larger -c" } else { "allow more with -n" };
            print_error(&format!("note: the answer was cut after {} tokens; {reason}\n", answer.n_tokens));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Which parts of an answer are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All of it.
    All,
    /// What is between leading and trailing white space.
    Text,
}

/// Strips white space around a streamed chat answer, as the reference strips the whole; holds back what may be its end.
pub struct Trimmed {
    keep: bool,
    started: bool,
    held: String,
}

impl Trimmed {
    /// Of a raw prompt's answer everything is kept.
    pub fn new(keep: Keep) -> Self {
        Trimmed { keep: keep == Keep::All, started: false, held: String::new() }
    }

    /// What can be shown after this piece.
    pub fn push(&mut self, piece: &str) -> String {
        if self.keep {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        let text = if self.started { self.held.as_str() } else { self.held.trim_start() };
        let settled = text.trim_end();
        self.started |= !settled.is_empty();
        let (settled, rest) = (settled.to_owned(), text[settled.len()..].to_owned());
        self.held = if self.started { rest } else { String::new() };
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_around_an_answer_is_dropped() {
        let mut out = Trimmed::new(Keep::Text);
        let pieces = ["\n ", " a", " ", "b\n", "\nc", " \n"].map(|p| out.push(p));
        assert_eq!(pieces.concat(), "a b\n\nc");
    }
}
