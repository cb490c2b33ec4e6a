//! `/set`: generation flags that change during a conversation.

use std::str::FromStr;

use qvl::error::{Error, Result};
use qvl::text::TextHparams;

use crate::cli::args::{GenerationArgs, fraction, non_negative, penalty};

/// Sets one; `default` as a value takes it back to the model's. Errors (kind usage): no such name, a value out of range.
pub fn set(flags: &mut GenerationArgs, name: &str, value: &str) -> Result<()> {
    match name {
        "temp" => flags.temp = or_default(name, value, non_negative)?,
        "top-k" => flags.top_k = or_default(name, value, number)?,
        "top-p" => flags.top_p = or_default(name, value, fraction)?,
        "min-p" => flags.min_p = or_default(name, value, fraction)?.unwrap_or(0.0),
        "repeat-penalty" => flags.repeat_penalty = or_default(name, value, penalty)?,
        "seed" => flags.seed = or_default(name, value, number)?,
        "predict" => flags.predict = or_default(name, value, number)?,
        _ => return Err(Error::usage(format!("there is no setting {name:?}; /set shows them"))),
    }
    Ok(())
}

/// All of them, one a line.
pub fn show(flags: &GenerationArgs, h: &TextHparams) -> String {
    let seed = flags.seed.map_or_else(|| "another each time".to_owned(), |seed| seed.to_string());
    let lines: [(&str, String); 7] = [
        ("temp", flags.temp.unwrap_or(h.temp).to_string()),
        ("top-k", flags.top_k.unwrap_or(h.top_k).to_string()),
        ("top-p", flags.top_p.unwrap_or(h.top_p).to_string()),
        ("min-p", flags.min_p.to_string()),
        ("repeat-penalty", flags.repeat_penalty.unwrap_or(h.repeat_penalty).to_string()),
        ("seed", seed),
        ("predict", flags.predict.unwrap_or(h.max_new_tokens).to_string()),
    ];
    lines.map(|(name, value)| format!("{name} {value}\n")).concat()
}

/// A value, or what was expected.
type Parsed<T> = std::result::Result<T, String>;

fn or_default<T>(name: &str, value: &str, parse: fn(&str) -> Parsed<T>) -> Result<Option<T>> {
    if value == "default" {
        return Ok(None);
    }
    parse(value).map(Some).map_err(|e| Error::usage(format!("/set {name} {value}: {e}")))
}

fn number<T: FromStr>(text: &str) -> Parsed<T> {
    text.parse().map_err(|_| "expected a whole number that is not negative".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> GenerationArgs {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            generation: GenerationArgs,
        }
        <Flags as clap::Parser>::parse_from(["x"]).generation
    }

    #[test]
    fn every_setting_is_set_and_reset() {
        let mut flags = flags();
        for (name, value) in [("temp", "0.2"), ("top-k", "7"), ("top-p", "0.5"), ("repeat-penalty", "1.5")] {
            set(&mut flags, name, value).expect(name);
        }
        for (name, value) in [("min-p", "0.1"), ("seed", "4"), ("predict", "9")] {
            set(&mut flags, name, value).expect(name);
        }
        assert_eq!((flags.temp, flags.top_k, flags.top_p), (Some(0.2), Some(7), Some(0.5)));
        assert_eq!((flags.min_p, flags.repeat_penalty), (0.1, Some(1.5)));
        assert_eq!((flags.seed, flags.predict), (Some(4), Some(9)));
        ["temp", "min-p", "seed"].iter().for_each(|name| set(&mut flags, name, "default").expect(name));
        assert_eq!((flags.temp, flags.min_p, flags.seed), (None, 0.0, None));
    }

    #[test]
    fn values_out_of_range_change_nothing() {
        let mut flags = flags();
        for (name, value) in [
            ("temp", "-1"),
            ("temp", "nan"),
            ("temp", "warm"),
            ("top-p", "2"),
            ("top-k", "-1"),
            ("seed", "4294967296"),
            ("predict", "1.5"),
            ("repeat-penalty", "0"),
            ("heat", "1"),
        ] {
            let error = set(&mut flags, name, value).expect_err(value).to_string();
            assert!(error.contains(name) && !error.contains('\n'), "{error}");
        }
        assert_eq!((flags.temp, flags.top_k, flags.seed), (None, None, None));
    }
}
