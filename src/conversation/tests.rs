//! Turns, pictures and files, without a model.

use std::path::Path;

use super::*;
use crate::tokenizer::samples::toy;
use crate::vision::ImageEmbedding;

fn picture(path: &str) -> Shown {
    let embedding = ImageEmbedding { n_queries: 8, d_out: 1, data: vec![0.0; 8] };
    Shown { source: ImageSource::Path(path.into()), size: (4, 3), seen: Seen::new(embedding) }
}

/// Two questions, the first about two pictures.
fn conversation() -> Conversation {
    let mut c = Conversation::new("hello");
    assert_eq!((c.show(picture("/a.png")), c.show(picture("/b.png"))), (1, 2));
    c.push("one?", "1");
    c.push("two?", "2");
    c
}

fn of_turns(c: &Conversation) -> Vec<Vec<usize>> {
    c.turns().iter().map(|turn| turn.query.pictures.clone()).collect()
}

#[test]
fn pictures_belong_to_the_next_question() {
    let mut c = conversation();
    assert_eq!(of_turns(&c), [vec![0, 1], vec![]]);
    c.show(picture("/c.png"));
    assert_eq!(c.waiting().len(), 1);
    assert_eq!(c.last_asked().map(|(k, _)| k), Some(1));
    assert_eq!(c.query("three?").pictures, [2]);
    c.push("three?", "3");
    assert_eq!(c.last_asked().map(|(k, _)| k), Some(2));
    assert_eq!(c.images().len(), 3);
}

#[test]
fn undo_goes_back_to_nothing() {
    let mut c = conversation();
    c.show(picture("/c.png"));
    assert!(matches!(c.undo(), Undone::Picture(shown) if shown.source == ImageSource::Path("/c.png".into())));
    assert!(matches!(c.undo(), Undone::Turn(turn) if turn.query.text == "two?"));
    assert_eq!(c.pictures().len(), 2);
    assert!(matches!(c.undo(), Undone::Turn(turn) if turn.query.text == "one?"));
    assert!(matches!(c.undo(), Undone::Nothing));
    assert!(c.pictures().is_empty() && c.last_asked().is_none());
}

#[test]
fn pictures_are_withdrawn_only_while_they_wait() {
    let mut c = conversation();
    c.show(picture("/c.png"));
    c.withdraw(0);
    assert_eq!(c.pictures().len(), 2);
    c.clear();
    assert_eq!((c.turns().len(), c.pictures().len(), c.system.as_str()), (0, 0, "hello"));
}

#[test]
fn the_oldest_turns_are_left_out_where_the_context_ends() {
    let toy = toy();
    let c = conversation();
    let n = |fitted: &Fitted| fitted.prompt.n_positions(toy.n_queries());
    let fit = |window, n_ctx, n_answer| {
        let limits = Limits { window, n_ctx, n_answer };
        let prefix = ("hello", PicturePrefix::Spaced);
        fitted(&toy, prefix, c.turns(), &c.query("three?"), limits).expect("is encoded")
    };
    let whole = fit(10_000, 10_000, 0);
    assert!(!whole.is_cut && whole.prompt.n_images() == 2);
    assert!(!fit(10_000, n(&whole), 0).is_cut);
    for cut in [fit(10_000, n(&whole) - 1, 0), fit(10_000, n(&whole), 1), fit(n(&whole) / 2, 10_000, 0)] {
        assert!(cut.is_cut && cut.prompt.n_images() == 0);
        assert!(n(&cut) < n(&whole));
    }
    // The question itself is never cut.
    let alone = fit(10_000, 1, 1);
    assert!(alone.is_cut && n(&alone) > 1);
}

#[test]
fn a_file_says_what_was_said() {
    let saved = Saved::of(&conversation()).expect("can be saved");
    let text = saved.to_text().expect("is written");
    let expect = r#"{
  "format": "qvl-chat",
  "version": 1,
  "system": "hello",
  "turns": [
    {
      "pictures": [
        "/a.png",
        "/b.png"
      ],
      "question": "one?",
      "answer": "1"
    },
    {
      "pictures": [],
      "question": "two?",
      "answer": "2"
    }
  ]
}
"#;
    assert_eq!(text, expect);
    assert_eq!(Saved::parse(&text).expect("is read"), saved);
}

#[test]
fn damaged_files_are_refused_in_one_line() {
    let check = |text: &str, part: &str| {
        let line = Saved::parse(text).expect_err(text).to_string();
        assert!(line.contains(part) && !line.contains('\n'), "{line:?} lacks {part:?}");
    };
    let good = Saved::of(&conversation()).and_then(|saved| saved.to_text()).expect("is written");
    check("", "not JSON");
    check(&good[..good.len() / 2], "not JSON");
    check(&"[".repeat(100_000), "not JSON");
    check("[]", "not a saved chat");
    check("null", "not a saved chat");
    check(r#"{"format": "other", "version": 1}"#, "not a saved chat");
    check(&good.replace("\"version\": 1", "\"version\": 2"), "version 2");
    check(&good.replace("\"version\": 1", "\"version\": \"1\""), "version \"1\"");
    check(&good.replace("question", "questoin"), "question");
    check(&good.replace("\"1\"", "7"), "damaged");
    check(&good.replace("\"two?\"", "null"), "damaged");
    let many = vec!["\"a.png\""; MAX_PICTURES + 1].join(",");
    check(&good.replace("\"/a.png\"", &many), "at most 1000");
}

#[test]
fn pictures_of_a_file_come_from_the_disk() {
    let sources = |text: &str| {
        let turn = SavedTurn { pictures: vec![text.to_owned()], question: String::new(), answer: String::new() };
        turn.sources(Path::new("/chats")).map(|mut all| all.remove(0))
    };
    assert_eq!(sources("/a.png").expect("a path"), ImageSource::Path("/a.png".into()));
    assert_eq!(sources("a.png").expect("a path"), ImageSource::Path("/chats/a.png".into()));
    assert_eq!(sources("data:,x").expect("data"), ImageSource::Data("data:,x".into()));
    for text in ["-", "https://example.org/a.png", "HTTP://example.org", "ftp://example.org/a.png"] {
        assert_eq!(sources(text).expect_err(text).kind().exit_code(), 4);
    }
}
