//! Grammars and schemas made to break what follows them.

use std::path::Path;

use crate::support::{Outcome, q8_0, qvl, run, temp_dir};

fn ask(flag: &str, file: &Path) -> Outcome {
    run(qvl()
        .args(["ask", "-q", "-t", "1", "-n", "8", "--temp", "0", "hi", "-m"])
        .arg(&q8_0().text)
        .arg(flag)
        .arg(file))
}

fn with(flag: &str, bytes: &[u8]) -> Outcome {
    let dir = temp_dir();
    let path = dir.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    ask(flag, &path)
}

fn grammar(bytes: impl AsRef<[u8]>) -> Outcome {
    with("--grammar", bytes.as_ref())
}

fn schema(bytes: impl AsRef<[u8]>) -> Outcome {
    with("--json-schema", bytes.as_ref())
}

#[test]
fn grammars() {
    for (bytes, part) in [
        (&b""[..], "no rule \"root\""),
        (b"\xff\xfe", "UTF-8"),
        (b"root ::= \"a\0b\"", "zero byte"),
        (b"root ::= (((\"a\")", "never closed"),
        (b"root ::= \"a\"))", "no ( is open"),
        (b"root ::= root \"a\"", "left recursion"),
        (b"root ::= (root | \"a\") \"b\"", "left recursion"),
        (b"root ::= missing", "not defined"),
        (b"root ::= \"a\"{1,100000000}", "at most 2000"),
        (b"root ::= \"a\"{18446744073709551616}", "at most 2000"),
        (b"root ::= <nothing-like-it>", "not in the vocabulary"),
        (b"root ::= <[4294967295]>", "not in the vocabulary"),
        (b"root ::= <[99999999999999999999]>", "token's number"),
        (b"root ::= <|im_end|>", "ends answers"),
        ("root ::= [\u{1b}[2J".as_bytes(), "never closed"),
    ] {
        grammar(bytes).fails(2, part);
    }
    grammar("(".repeat(10 << 20)).fails(2, "bytes; at most");
    grammar(format!("root ::= {}", "(".repeat(1_000_000))).fails(2, "nested deeper");
    grammar(format!("root ::= {}", "[".repeat(1_000_000))).fails(2, "never closed");
    grammar(format!("root ::= \"{}", "\\".repeat(1_000_000))).fails(2, "never closed");
    grammar(format!("root ::= {}", "\"a\"{2000} ".repeat(90_000))).fails(2, "too large");
    grammar(format!("root ::= {}\"a\"{}", "(".repeat(199), "){0,2000}".repeat(199))).fails(2, "too large");
    grammar(format!("root ::= \"{}\"", "a".repeat(1_000_000))).fails(2, "too large");
    grammar(format!("root ::= {} \"a\"", "| ".repeat(10_000))).succeeds();
    grammar((0..60_000).map(|i| format!("a{i}::=a{}\n", i + 1)).collect::<String>()).fails(2, "no rule");
    ask("--grammar", "/dev/zero".as_ref()).fails(2, "larger than");
    ask("--grammar", temp_dir().path()).fails(2, "irectory");
    ask("--grammar", "no/such".as_ref()).fails(2, "no/such");
}

/// Readings that double with each letter, many at once, and repetitions of nothing: an answer or an error, but soon.
#[test]
fn ambiguous_grammars() {
    grammar("root ::= \"a\" root \"a\" | \"a\" root \"b\"").ends_well();
    let n_words = |n: usize| format!("root ::= w{{{n}}}\nw ::= [a-z]+ | [a-m]+ [n-z]* | .* ");
    grammar(n_words(3)).ends_well();
    grammar(n_words(300)).ends_well();
    let two_ways: String = (0..40).map(|i| format!("r{i} ::= r{j} \"x\" | r{j} \"y\"\n", j = i + 1)).collect();
    grammar(format!("root ::= r0\n{two_ways}r40 ::= \"z\"")).fails(2, "too ambiguous");
    grammar("root ::= ((\"a\"*)*)* ((\"\")*)*").succeeds();
    grammar("root ::= \"\"").succeeds();
    grammar("root ::= .{0,2000}").succeeds();
    grammar("root ::= \"a\" root").succeeds();
    grammar(format!("root ::= {}", "(\"a\"? ".repeat(150) + &")?".repeat(150))).succeeds();
}

#[test]
fn schemas() {
    for (text, part) in [
        ("", "no JSON"),
        ("{\"type\": \"string\"", "no JSON"),
        ("[]", "expected a schema"),
        ("{\"type\": \"\\u001b[2J\"}", "there is no"),
        (r##"{"$ref": "#"}"##, "without end"),
        (
            r##"{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}"##,
            "without end",
        ),
        (r##"{"$ref": "#/$defs/missing"}"##, "there is no"),
        (r#"{"type": "string", "pattern": "^(a+)+$"}"#, "\"pattern\" is not supported"),
        (r#"{"type": "string", "maxLength": 1e9}"#, "from 0 to 2000"),
        (r#"{"type": "array", "minItems": 18446744073709551616}"#, "from 0 to 2000"),
        (r#"{"type": "integer", "minimum": 1e999}"#, "no JSON"),
        (r#"{"not": {}}"#, "\"not\" is not supported"),
    ] {
        schema(text).fails(2, part);
    }
    schema(b"\xff{}").fails(2, "UTF-8");
    schema("{\"a\0\": 1}").fails(2, "no JSON");
    schema("[".repeat(1_000_000)).fails(2, "no JSON");
    schema(format!("{}{{}}{}", "{\"items\":".repeat(1000), "}".repeat(1000))).fails(2, "no JSON");
    schema(" ".repeat(10 << 20)).fails(2, "at most");
    schema(format!("{}{{}}{}", "{\"items\":".repeat(100), "}".repeat(100))).succeeds();
    schema(format!("{{\"{}\":1}}", "x".repeat(1_000_000))).fails(2, "not supported");
    schema(format!("{{\"const\":\"{}\"}}", "x".repeat(1_000_000))).fails(2, "too large");
    let many: Vec<String> = (0..20_000).map(|i| format!("\"p{i}\":{{}}")).collect();
    schema(format!("{{\"properties\":{{{}}}}}", many.join(","))).ends_well();
    let labels: Vec<String> = (0..5000).map(|i| format!("\"label {i}\"")).collect();
    schema(format!("{{\"enum\":[{}]}}", labels.join(","))).succeeds();
    schema(r#"{"type": ["object", "array", "string", "number", "integer", "boolean", "null"]}"#).succeeds();
}
