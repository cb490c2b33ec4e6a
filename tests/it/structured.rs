//! `qvl ask --grammar`, `--json-schema` and `--logprobs`.

use std::io::Write;
use std::process::Command;

use qvl::session::TextFile;
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::models::{Model, random, tiny};
use crate::programs::{EXACT, Ran, qvl, repository, run};
use crate::tensors::traced;

/// A file that goes away.
fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn ask(model: &Model, args: &[&str]) -> Command {
    let mut command = qvl();
    command.current_dir(repository("tests/data/pictures")).args(["ask", "-q", "-m"]).arg(&model.text).args(args);
    command
}

/// `qvl ask` under a grammar or schema.
fn constrained(model: &Model, flag: &str, text: &str, args: &[&str]) -> Ran {
    let file = file(text);
    run(ask(model, args).arg(flag).arg(file.path()))
}

#[test]
fn a_grammar_is_followed_greedily_and_by_chance() {
    let answers = ["north", "north-east", "east"];
    let grammar = r#"root ::= "north" ("-east")? | "east""#;
    let (random, mut found) = (random(), Vec::new());
    for seed in 0..40 {
        let (temp, seed) = (if seed == 0 { "0" } else { "2" }, seed.to_string());
        let args = ["--json", "--temp", temp, "--top-p", "1", "-s", &seed, "-n", "20", "Where?"];
        let json = constrained(&random, "--grammar", grammar, &args).json();
        assert_eq!(json["finish_reason"], "stop", "{json}");
        found.push(json["text"].as_str().unwrap().to_owned());
    }
    assert!(found.iter().all(|text| answers.contains(&text.as_str())), "{found:?}");
    assert!(answers.iter().all(|answer| found.iter().any(|text| text == answer)), "{found:?}");
    // Repeated, streamed, with a penalty and in the raw format.
    let args = ["--temp", "2", "-s", "3", "-n", "20", "--repeat-penalty", "1.3", "--raw", "Where?"];
    let streamed = constrained(&random, "--grammar", grammar, &args).ok();
    assert_eq!(streamed.out, constrained(&random, "--grammar", grammar, &args).ok().out);
    assert!(answers.contains(&streamed.out.trim_end()), "{streamed:?}");
}

/// What the model would say anyway is not changed, and ends as it did.
#[test]
fn a_grammar_of_everything_changes_nothing() {
    let args = ["--json", "--temp", "0", "-n", "24", "-i", "shapes.png", "Describe the picture."];
    for model in [tiny("f32", "f32"), random()] {
        let free = run(&mut ask(&model, &args)).json();
        let text = free["text"].as_str().unwrap();
        let same = constrained(&model, "--grammar", "root ::= .*", &args).json();
        if !text.contains('\u{FFFD}') {
            assert_eq!((&same["text"], &same["finish_reason"]), (&free["text"], &free["finish_reason"]));
        }
    }
}

/// The built-in stop string of the base model does not cut an answer whose end a grammar knows.
#[test]
fn a_grammar_knows_the_end() {
    let args = ["--json", "-n", "40", "--temp", "0", "--raw", "Say it:"];
    let json = constrained(&random(), "--grammar", r#"root ::= "Human: yes""#, &args).json();
    assert_eq!((json["text"].as_str(), json["finish_reason"].as_str()), (Some("Human: yes"), Some("stop")));
    // The last token is the end where nothing can follow.
    let n = json["usage"]["completion_tokens"].to_string();
    let exact = constrained(
        &random(),
        "--grammar",
        r#"root ::= "Human: yes""#,
        &["-n", &n, "--temp", "0", "--raw", "--json", "Say it:"],
    );
    assert_eq!(exact.json()["finish_reason"], "stop");
    let cut = constrained(&random(), "--grammar", r#"root ::= "Human: yes""#, &["-n", "2", "--json", "Say it"]).json();
    assert_eq!((cut["finish_reason"].as_str(), cut["usage"]["completion_tokens"].as_u64()), (Some("length"), Some(2)));
}

const SCHEMA: &str = r#"{
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
        "share": {"type": "number"},
        "tags": {"type": "array", "items": {"enum": ["a", "b\"", "é"]}, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}
    },
    "required": ["name", "count", "next"]
}"#;

fn fits_schema(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    let is = |key: &str, fits: &dyn Fn(&Value) -> bool, required: bool| object.get(key).map_or(!required, fits);
    object.keys().all(|key| ["name", "count", "share", "tags", "next"].contains(&key.as_str()))
        && is("name", &|v| v.as_str().is_some_and(|s| (1..=12).contains(&s.chars().count())), true)
        && is("count", &|v| v.as_u64().is_some_and(|n| n <= 20), true)
        && is("share", &Value::is_number, false)
        && is(
            "tags",
            &|v| {
                v.as_array()
                    .is_some_and(|a| a.len() <= 3 && a.iter().all(|t| ["a", "b\"", "é"].contains(&t.as_str().unwrap())))
            },
            false,
        )
        && is("next", &|v| v.is_null() || v.is_boolean(), true)
}

#[test]
fn a_complete_answer_under_a_schema_is_json_that_fits() {
    for (model, format) in [(tiny("f32", "f32"), None), (random(), None), (random(), Some("--raw"))] {
        let mut n_complete = 0;
        for seed in 0..25 {
            let seed = seed.to_string();
            let mut args =
                vec!["--json", "--temp", "1.5", "--top-p", "1", "--top-k", "0", "-s", &seed, "-n", "400", "What?"];
            args.extend(format);
            let json = constrained(&model, "--json-schema", SCHEMA, &args).json();
            let text = json["text"].as_str().unwrap();
            if json["finish_reason"] == "stop" {
                let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
                assert!(fits_schema(&value), "{text}");
                n_complete += 1;
            }
        }
        assert_eq!(n_complete, 25, "nothing in this schema can go on for ever, white space included");
    }
}

#[test]
fn any_json_is_json() {
    let mut n_complete = 0;
    for seed in 0..20 {
        let args = ["--json", "--temp", "1.5", "-s", &seed.to_string(), "-n", "300", "What?"];
        let json = constrained(&random(), "--json-schema", "{}", &args).json();
        if json["finish_reason"] == "stop" {
            n_complete += 1;
            let text = json["text"].as_str().unwrap();
            serde_json::from_str::<Value>(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        }
    }
    assert!(n_complete > 0);
}

/// The grammar of regions, where models would write anything.
#[test]
fn regions_are_well_formed_under_their_grammar() {
    let mut n_regions = 0;
    for (model, formats) in [(tiny("f32", "f32"), [None, Some("--raw")]), (random(), [None, Some("--raw")])] {
        for (seed, format) in (0..16).flat_map(|seed| formats.map(|format| (seed.to_string(), format))) {
            let mut args = vec![
                "--json",
                "--temp",
                "2",
                "--top-p",
                "1",
                "-s",
                &seed,
                "-n",
                "250",
                "-i",
                "shapes.png",
                "Where is the star?",
            ];
            args.extend(format);
            let json = constrained(&model, "--grammar", qvl::grounding::GRAMMAR, &args).json();
            let mut text = json["text"].as_str().unwrap();
            if json["finish_reason"] == "length" {
                // The last region may have been cut.
                text = &text[..text.rfind("</box>").map_or(0, |at| at + "</box>".len())];
            }
            let (found, n_malformed) = qvl::grounding::regions(text);
            assert_eq!(n_malformed, 0, "{text}");
            assert!(found.iter().flat_map(|r| &r.corners_1000).flatten().all(|n| (0..=1000).contains(n)), "{text}");
            n_regions += found.len();
        }
    }
    assert!(n_regions >= 10, "{n_regions}");
}

#[test]
fn logprobs_are_those_of_the_logits() {
    let model = random();
    let args = ["--temp", "0", "-n", "6", "--raw", "--json", "--logprobs", "3", "There is"];
    let json = run(ask(&model, &args).args(EXACT)).json();
    let tokens = json["logprobs"].as_array().unwrap();
    assert_eq!(tokens.len() as u64, json["usage"]["completion_tokens"].as_u64().unwrap());
    let mut trace = qvl();
    trace.args(["trace", "-m"]).arg(&model.text).args(EXACT).args(["-n", "6", "--raw", "There is"]);
    let trace = traced(&mut trace);
    let (ids, logits) = (trace.ids("generated_ids"), trace.f32s("generated_logits"));
    let n_used = TextFile::open(&model.text).unwrap().tokenizer().n_used();
    let mut bytes = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let row: Vec<f64> = logits.row(i)[..n_used].iter().map(|x| f64::from(*x)).collect();
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        assert_eq!(token["id"].as_i64(), Some(i64::from(ids[i])));
        let expect = row[ids[i] as usize] - sum.ln();
        assert!((token["logprob"].as_f64().unwrap() - expect).abs() < 1e-4, "{token} {expect}");
        let top = token["top"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["id"], &top[0]["logprob"]), (3, &token["id"], &token["logprob"]));
        assert!(top.windows(2).all(|pair| pair[0]["logprob"].as_f64() >= pair[1]["logprob"].as_f64()));
        bytes.extend(token["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8));
    }
    assert_eq!(String::from_utf8_lossy(&bytes), json["text"].as_str().unwrap());

    // Without a number none but the chosen one, and a question after it is a question.
    let json = run(&mut ask(&model, &["-n", "2", "--json", "--logprobs", "What?"])).json();
    assert_eq!(
        (json["logprobs"][1]["top"].as_array().unwrap().len(), json["logprobs"].as_array().unwrap().len()),
        (0, 2)
    );
    assert!(run(&mut ask(&model, &["-n", "2", "--json", "What?"])).json().get("logprobs").is_none());
    run(&mut ask(&model, &["--logprobs", "What?"])).fails(2, "--json");
    run(&mut ask(&model, &["--json", "--logprobs", "21", "What?"])).fails(2, "0..=20");
}

#[test]
fn wrong_grammars_and_schemas_are_usage_errors() {
    let model = random();
    constrained(&model, "--grammar", "root ::= (", &["x"]).fails(2, "line 1, column 10");
    constrained(&model, "--json-schema", r#"{"pattern": "x"}"#, &["x"]).fails(2, "\"pattern\" is not supported");
    run(ask(&model, &["x"]).args(["--grammar", "missing.gbnf"])).fails(2, "missing.gbnf");
    run(ask(&model, &["x"]).args(["--grammar", "a", "--json-schema", "b"])).fails(2, "cannot be used with");
    // Before the model is looked at.
    let file = file("rot ::= \"a\"");
    let mut command = qvl();
    command.args(["ask", "-m", "missing.gguf", "x", "--grammar"]).arg(file.path());
    run(&mut command).fails(2, "no rule \"root\"");
}
