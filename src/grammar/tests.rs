//! Grammars followed byte by byte, over a vocabulary of all bytes and some longer tokens.

use std::sync::Arc;

use super::{Grammar, Matcher, Vocabulary, from_json_schema};

/// Id of the token that ends answers; 0 to 255 are the bytes.
const STOP: u32 = 256;
const WORDS: [&str; 7] = ["<|end|>", "<box>", "</box>", "ab", "é", "\":", "abcabc"];

fn vocabulary() -> Arc<Vocabulary> {
    let bytes: Vec<[u8; 1]> = (0..=255).map(|b| [b]).collect();
    let tokens = bytes.iter().map(|b| &b[..]).chain(WORDS.iter().map(|w| w.as_bytes()));
    Arc::new(Vocabulary::new(tokens, &[STOP]))
}

fn matcher(text: &str) -> Matcher {
    Matcher::new(Arc::new(Grammar::parse(text).unwrap()), vocabulary()).unwrap()
}

/// Whether `text` is a complete answer, byte by byte. The one-token check and the mask must agree all the way.
fn matches(matcher: &Matcher, text: &[u8]) -> bool {
    let mut matcher = matcher.clone();
    for byte in text {
        let allowed = matcher.allows(u32::from(*byte)).unwrap();
        assert_eq!(matcher.allowed().is_ok_and(|ids| ids.contains(&u32::from(*byte))), allowed);
        if !allowed {
            return false;
        }
        matcher.accept(u32::from(*byte));
    }
    matcher.allows(STOP).unwrap()
}

#[track_caller]
fn check(grammar: &str, good: &[&str], bad: &[&str]) {
    let matcher = matcher(grammar);
    for text in good {
        assert!(matches(&matcher, text.as_bytes()), "{grammar} refuses {text:?}");
    }
    for text in bad {
        assert!(!matches(&matcher, text.as_bytes()), "{grammar} accepts {text:?}");
    }
}

#[test]
fn grammars_mean_what_llama_cpp_means() {
    check("root ::= \"a\" | \"bc\"", &["a", "bc"], &["", "b", "c", "abc"]);
    check("root ::= [a-c]+ \"!\"?", &["a", "abc!", "c"], &["", "!", "d", "a!!"]);
    check("root ::= \"ab\"{2}", &["abab"], &["ab", "abb", "ababab"]);
    check("root ::= \"a\"{1,3} \"b\"{2,}", &["abb", "aaabbbb"], &["ab", "aaaabb", "bb"]);
    check("root ::= \"a\"{0} \"b\"{0,2}", &["", "b", "bb"], &["a", "bbb"]);
    check("root ::= (\"a\" | (\"b\" \"c\")*) # comment\n", &["", "a", "bc", "bcbc"], &["b", "ab"]);
    check("# first\n\nroot ::= x |\n  \"z\"\nx ::= (\n\"y\"\n)\r\n", &["y", "z"], &["x"]);
    check(r#"root ::= "\x41\u00e9\U0001F600\n\t\"\\""#, &["Aé😀\n\t\"\\"], &["Aé"]);
    check(r"root ::= [\]\-\\^a-]", &["]", "-", "\\", "^", "a"], &["b"]);
    check("root ::= [^a\\n]", &["b", "é", "中", "😀", "\r"], &["a", "\n", "", "bb"]);
    check("root ::= .+", &["a\né中😀"], &[""]);
    check("root ::= [一-龟]", &["中"], &["a", "é", "\u{9fff}"]);
    check("root ::= \"(\" root? \")\"", &["()", "((()))"], &["(", "(()"]);
    check("root ::= (\"a\"?)* (\"b\"*)+", &["", "aab", "b"], &["ba"]);
    check("root ::= \"\"", &[""], &["a"]);
}

/// llama.cpp lets broken characters through; JSON that is broken UTF-8 is no JSON.
#[test]
fn only_utf8_gets_through() {
    let any = matcher("root ::= [^x]*");
    for broken in [&b"\x80"[..], b"\xc3", b"\xc3a", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xff"] {
        assert!(!matches(&any, broken), "{broken:?}");
    }
    assert!(matches(&any, "a\0é".as_bytes()));
}

#[test]
fn tokens_can_be_named() {
    let [open, close] = [257, 258];
    let mut m = matcher("root ::= <box> [0-9] </box>");
    assert_eq!(m.allowed().unwrap(), [open]);
    m.accept(open);
    m.accept(u32::from(b'7'));
    assert_eq!((m.allowed().unwrap(), m.must_end()), (vec![close], false));
    m.accept(close);
    assert!(m.may_end() && m.must_end());
    assert_eq!(m.allowed().unwrap(), [STOP]);

    // A literal may be written with the special token or letter by letter.
    assert_eq!(matcher("root ::= \"<box>\"").allowed().unwrap(), [u32::from(b'<'), open]);
    assert_eq!(matcher("root ::= <[65]>").allowed().unwrap(), [65]);
    let all_but_one = matcher("root ::= !<[65]>").allowed().unwrap();
    assert_eq!((all_but_one.len(), all_but_one.contains(&65)), (256 + WORDS.len() - 2, false));
    for unknown in ["<nope>", "<[9999]>", "<[256]>", "<|end|>"] {
        let grammar = Arc::new(Grammar::parse(&format!("root ::= {unknown}")).unwrap());
        assert!(Matcher::new(grammar, vocabulary()).unwrap_err().to_string().contains(unknown));
    }
}

#[test]
fn nothing_follows_what_is_refused() {
    let mut m = matcher("root ::= \"a\"*");
    assert_eq!(m.allowed().unwrap(), [u32::from(b'a'), STOP]);
    m.accept(u32::from(b'b'));
    assert!(!m.may_end());
    assert!(m.allowed().unwrap_err().to_string().contains("no token"));
    m.accept(u32::from(b'a'));
    assert!(!m.allows(u32::from(b'a')).unwrap());
}

#[track_caller]
fn refuses(grammar: &str, part: &str) {
    let error = Grammar::parse(grammar).expect_err(&grammar[..grammar.len().min(60)]).to_string();
    assert!(error.contains(part) && error.len() < 400, "{error} lacks {part:?}");
}

#[test]
fn wrong_grammars_are_refused_with_their_place() {
    refuses("", "no rule \"root\"");
    refuses("# nothing\n", "no rule \"root\"");
    refuses("rot ::= \"a\"", "no rule \"root\"");
    refuses("root ::= other", "\"other\" is not defined");
    refuses("root ::= \"a", "line 1, column 10: this \" is never closed");
    refuses("root ::= [a", "this [ is never closed");
    refuses("root ::= (\"a\"\n", "line 1, column 10: this ( is never closed");
    refuses("root ::= \"a\")", "no ( is open");
    refuses("root ::= \"a\"\n= 3", "line 2, column 1: expected the name");
    refuses("root = \"a\"", "expected ::=");
    refuses("root ::= %", "'%'");
    refuses("root ::= *", "nothing to repeat");
    refuses("root ::= \"a\"{", "expected a number");
    refuses("root ::= \"a\"{1", "expected }");
    refuses("root ::= \"a\"{3,1}", "below the smallest");
    refuses("root ::= \"a\"{1,100000000}", "100000000 repetitions; at most 2000");
    refuses("root ::= \"a\"{99999999999999999999999999999999}", "at most 2000");
    refuses("root ::= []", "no character");
    refuses("root ::= [^\\x00-\\U0010FFFF]", "no character");
    refuses("root ::= [z-a]", "wrong way round");
    refuses(r#"root ::= "\q""#, "unknown escape");
    refuses(r#"root ::= "\x4""#, "2 hexadecimal digits");
    refuses(r#"root ::= "\ud800""#, "no character");
    refuses("root ::= <x", "expected a token");
    refuses("root ::= <[x]>", "token's number");
    refuses("root ::= \"a\"\nroot ::= \"b\"", "defined before");
    refuses("root ::= \"a\0\"", "zero byte");
}

#[test]
fn rules_that_begin_with_themselves_are_refused() {
    refuses("root ::= root \"a\" | \"b\"", "\"root\" begins with itself");
    refuses("root ::= a\na ::= b \"x\"\nb ::= a | \"y\"", "begins with itself");
    // Behind what can be empty, and only by way of other rules: llama.cpp does not see this one.
    refuses("root ::= e root \"a\" | \"b\"\ne ::= f f\nf ::= \"c\"?", "begins with itself");
    refuses("root ::= (\"a\"? root \"b\")?", "begins with itself");
    check("root ::= \"a\" root | \"\"", &["", "aaa"], &["b"]);
}

#[test]
fn large_grammars_are_refused_not_followed() {
    refuses(&"(".repeat(1 << 19), "expected the name");
    refuses(&format!("root ::= {}", "(".repeat(1 << 19)), "nested deeper");
    refuses(&"x".repeat(10 << 20), "at most 1048576 are read");
    refuses(&format!("root ::= {}", "x".repeat(1 << 19)), "at most 200 letters");
    refuses(&format!("root ::= {}", "\"a\"{2000}".repeat(1000)), "too large");
    // Repetitions of repetitions add up only.
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(150), "){2000}".repeat(150));
    refuses(&deep, "too large");
    matcher("root ::= (((\"a\"{2000}){2000}){2000}){2000}");
    // A chain of rules as long as it can be, all of which are one reading.
    let chain: String = (0..30_000).map(|i| format!("r{i} ::= r{}\n", i + 1)).collect();
    check(&format!("root ::= r0\n{chain}r30000 ::= \"a\""), &["a"], &["b"]);
}

/// The readings of this one double with each letter; llama.cpp's memory does, too.
#[test]
fn ambiguity_has_an_end() {
    let mut m = matcher("root ::= \"a\" root \"a\" | \"a\" root \"b\" | \"c\"");
    let a = u32::from(b'a');
    let error = (0..100).find_map(|_| match m.allows(a) {
        Ok(true) => {
            m.accept(a);
            None
        }
        other => Some(other),
    });
    assert!(error.unwrap().unwrap_err().to_string().contains("too ambiguous"));
}

/// Old states go, and the answer goes on as if nothing had happened.
#[test]
fn long_answers_take_bounded_memory() {
    let mut m = matcher("root ::= \"(\" root \")\" root | [a-z0-9]{0,2000} \".\" root | \"\"");
    for i in 0..400_000u32 {
        let byte = b"(((a.)z1.)"[i as usize % 10];
        assert!(m.allows(u32::from(byte)).unwrap(), "{i}");
        m.accept(u32::from(byte));
    }
    assert!(!m.may_end());
    assert!(m.allowed().unwrap().contains(&u32::from(b')')));
}

#[track_caller]
fn check_schema(schema: &str, good: &[&str], bad: &[&str]) {
    let grammar = Arc::new(from_json_schema(schema).unwrap());
    let matcher = Matcher::new(grammar, vocabulary()).unwrap();
    for text in good {
        assert!(matches(&matcher, text.as_bytes()), "{schema} refuses {text}");
        serde_json::from_str::<serde_json::Value>(text).unwrap();
    }
    for text in bad {
        assert!(!matches(&matcher, text.as_bytes()), "{schema} accepts {text}");
    }
}

#[test]
fn schemas_are_followed() {
    check_schema(
        "true",
        &["1", "[null, {\"a\":true}]", "-1.5e10", "\"\\u00e9\\n\""],
        &["", "01", "1e999", "\"\\ud800\"", "\"a"],
    );
    check_schema(r#"{"type":"string","minLength":1,"maxLength":2}"#, &["\"a\"", "\"é\\n\""], &["\"\"", "\"abc\"", "1"]);
    check_schema(r#"{"enum":["a\"b",1,null,{"x":[1]}]}"#, &[r#""a\"b""#, "1", "null", r#"{"x":[1]}"#], &["2"]);
    check_schema(r#"{"const":"é\n"}"#, &[r#""é\n""#], &["\"é\""]);
    check_schema(r#"{"type":["integer","null"],"enum":[1,2,"x"]}"#, &["1", "2"], &["\"x\"", "null"]);
    check_schema(r#"{"type":["boolean","null"]}"#, &["true", "null"], &["0"]);
    check_schema(
        r#"{"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":3}"#,
        &["[1]", "[1,2,\n 3]"],
        &["[]", "[1,2,3,4]", "[1.5]"],
    );
    check_schema(r#"{"type":"array","items":{"type":"integer"}}"#, &["[]", "[1,2,3,4]"], &["[1,]"]);
    check_schema(r#"{"prefixItems":[{"type":"integer"},{"type":"string"}]}"#, &["[1,\"\"]"], &["[1]", "[\"\",1]"]);
    check_schema(r#"{"type":"object"}"#, &["{}", "{\"a\": 1,\"b\":{}}"], &["{\"a\"}", "[]"]);
    check_schema(r#"{"additionalProperties":{"type":"null"}}"#, &["{}", "{\"a\":null}"], &["{\"a\":1}"]);
    check_schema(
        r#"{"type":"string","format":"date"}"#,
        &["\"2024-02-29\"", "\"2025-12-31\""],
        &["\"2025-02-29\"", "\"2025-13-01\""],
    );
    check_schema(
        r##"{"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["next"]}}}"##,
        &["{\"next\":{\"next\":null}}"],
        &["{}"],
    );
}

#[test]
fn members_have_their_commas() {
    let schema = r#"{"type":"object","properties":{"a":{"type":"null"},"b":{"type":"null"},"c":{"type":"null"}},"required":["b"]}"#;
    let of =
        |keys: &[&str]| format!("{{{}}}", keys.iter().map(|k| format!("\"{k}\":null")).collect::<Vec<_>>().join(","));
    let good = [&["b"][..], &["a", "b"], &["b", "c"], &["a", "b", "c"]].map(of);
    let bad = [&[][..], &["a"], &["a", "c"], &["c", "b"], &["b", "b"], &["b", "d"]].map(of);
    check_schema(schema, &good.each_ref().map(|s| &s[..]), &bad.each_ref().map(|s| &s[..]));
    check_schema(schema, &[], &["{,\"b\":null}", "{\"b\":null,}", "{\"a\":null\"b\":null}"]);
    let optional = schema.replace(",\"required\":[\"b\"]", "");
    let good = [&[][..], &["a"], &["c"], &["a", "c"], &["a", "b", "c"]].map(of);
    check_schema(&optional, &good.each_ref().map(|s| &s[..]), &["{,}"]);
}

#[test]
fn bounds_are_exact() {
    for (low, high) in [(0, 1000), (7, 7), (-3, 12), (95, 1003), (-20, -5), (0, 0), (10, 99), (199, 4021), (-1, 0)] {
        let grammar = from_json_schema(&format!(r#"{{"type":"integer","minimum":{low},"maximum":{high}}}"#)).unwrap();
        let m = Matcher::new(Arc::new(grammar), vocabulary()).unwrap();
        for x in -30..=5000i64 {
            assert_eq!(matches(&m, x.to_string().as_bytes()), (low..=high).contains(&x), "{x} in {low}..={high}");
        }
        assert!(!matches(&m, b"007"));
    }
    check_schema(r#"{"type":"integer","exclusiveMinimum":0}"#, &["1", "9999999999999999"], &["0", "-1", "1.0"]);
    check_schema(r#"{"type":"number","minimum":0,"maximum":1}"#, &["0", "0.5", "1"], &["1.5", "-0.1", "2", "1e3"]);
    check_schema(r#"{"type":"number","minimum":-2}"#, &["-2", "-1.5", "-0.5", "77.25"], &["-2.5", "-3"]);
}

#[test]
fn wrong_schemas_are_refused_with_their_place() {
    let deep = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
    for (schema, part) in [
        ("", "no JSON"),
        ("{", "no JSON"),
        (deep.as_str(), "recursion limit"),
        ("3", "expected a schema"),
        ("false", "nothing is allowed"),
        (r#"{"type":"strin"}"#, "there is no \"strin\""),
        (r#"{"type":3}"#, "expected a name"),
        (r#"{"properties":{"a":{"items":{"pattern":"x"}}}}"#, "at /properties/a/items: the keyword \"pattern\""),
        (r#"{"minLenght":3}"#, "\"minLenght\" is not supported"),
        (r#"{"allOf":[{},{}]}"#, "several"),
        (r#"{"anyOf":[]}"#, "expected an array"),
        (r#"{"anyOf":[{}],"type":"string"}"#, "\"anyOf\" beside \"type\""),
        (r##"{"$ref":"#/nope"}"##, "there is no \"#/nope\""),
        (r#"{"$ref":"http://x"}"#, "there is no"),
        (r##"{"$ref":"#"}"##, "without end"),
        (r##"{"properties":{"a":{"$ref":"#"}},"required":["a"]}"##, "without end"),
        (r#"{"required":["a"],"additionalProperties":false}"#, "required but not allowed"),
        (r#"{"type":"string","minLength":-1}"#, "from 0 to 2000"),
        (r#"{"type":"string","minLength":3,"maxLength":2}"#, "below"),
        (r#"{"type":"string","format":"email"}"#, "email"),
        (r#"{"type":"array","maxItems":100000}"#, "from 0 to 2000"),
        (r#"{"type":"integer","minimum":3,"maximum":2}"#, "no integer"),
        (r#"{"type":"integer","minimum":1e300}"#, "up to 1e15"),
        (r#"{"type":"number","minimum":0.5}"#, "whole bounds"),
        (r#"{"type":"null","enum":[1]}"#, "no value of the type"),
    ] {
        let error = from_json_schema(schema).expect_err(schema).to_string();
        assert!(error.contains(part), "{error} lacks {part:?}");
    }
}
