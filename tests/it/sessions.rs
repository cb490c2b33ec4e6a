//! The library's sessions: what was read is not read again, and texts that are continued together come out as they would
//! alone.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use qvl::llama::{FlashAttention, LoadMode, Model, ModelParams, Sampler, SamplerSettings};
use qvl::prompt::{self, ChatSettings, Message, PicturePrefix, Prompt};
use qvl::quant::GgmlType;
use qvl::session::{Draft, Next, Seen, Sequences, Session, SessionSettings, TextFile};
use qvl::text::Rope;
use qvl::tokenizer::TokenId;
use qvl::vision::ImageEmbedding;

use crate::models::random;
use crate::random::Random;

static STOP: AtomicBool = AtomicBool::new(false);

/// Largest difference of a logit between two ways of batching the same f32 sums.
const TOLERANCE: f32 = 2e-4;

fn open() -> (TextFile, Model) {
    let file = TextFile::open(&random().text).unwrap();
    let model = file.load(ModelParams { load: LoadMode::Map, placed: Vec::new(), repack: false }).unwrap();
    (file, model)
}

fn settings(n_ctx: usize) -> SessionSettings {
    let (type_k, type_v, flash) = (GgmlType::F32, GgmlType::F32, FlashAttention::Off);
    SessionSettings { n_ctx, n_batch: 64, n_threads: 1, type_k, type_v, flash, n_outputs: 1, rope: Rope::Device }
}

/// A picture that never was: rows of a fixed pattern.
fn picture(file: &TextFile, seed: u32) -> Arc<Seen> {
    let h = file.hparams();
    let value = |k: usize| ((k as u32).wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8) as f32 / 1e7 - 0.8;
    let data = (0..h.n_queries * h.n_embd).map(value).collect();
    Seen::new(ImageEmbedding { n_queries: h.n_queries, d_out: h.n_embd, data })
}

/// A chat about picture `k`.
fn ask(file: &TextFile, k: usize, question: &str) -> Prompt {
    let settings = ChatSettings {
        system: "You are a helpful assistant.".into(),
        max_window_size: 4096,
        picture_prefix: PicturePrefix::Spaced,
    };
    let query = Message { text: question.into(), pictures: vec![k] };
    prompt::chat(file.tokenizer(), &settings, &[], &query).unwrap()
}

fn greedy(file: &TextFile) -> Sampler {
    let settings = SamplerSettings { temp: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, seed: 0 };
    Sampler::new(settings, file.tokenizer().n_used())
}

/// Greedy ids of a prompt by itself, and the logits after the prompt.
fn alone(file: &TextFile, model: &Model, prompt: &Prompt, images: &[Arc<Seen>], n: usize) -> (Vec<TokenId>, Vec<f32>) {
    let mut session = Session::new(file, model, &settings(600), &STOP).unwrap();
    assert_eq!(session.prefill(prompt, images).unwrap(), 0);
    let first = session.logits().unwrap().to_vec();
    let mut sampler = greedy(file);
    let ids = (0..n)
        .map(|_| {
            let id = TokenId(sampler.sample(&session.logits().unwrap()[..file.tokenizer().n_used()]).unwrap());
            session.push(id).unwrap();
            id
        })
        .collect();
    (ids, first)
}

#[track_caller]
fn close(a: &[f32], b: &[f32]) {
    let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(a.len() == b.len() && worst <= TOLERANCE, "{worst}");
}

#[test]
fn a_session_reads_what_is_new_and_answers_as_if_it_had_read_all() {
    let (file, model) = open();
    let images = [picture(&file, 1), picture(&file, 2)];
    let mut session = Session::new(&file, &model, &settings(600), &STOP).unwrap();
    let prompts = [ask(&file, 0, "What is this?"), ask(&file, 0, "What is that?"), ask(&file, 1, "What is that?")];
    let n_queries = file.hparams().n_queries;
    let mut kept = Vec::new();
    for prompt in &prompts {
        kept.push(session.prefill(prompt, &images).unwrap());
        close(session.logits().unwrap(), &alone(&file, &model, prompt, &images, 0).1);
    }
    // The same prompt once more: only its last position.
    kept.push(session.prefill(&prompts[2], &images).unwrap());
    let n_last = prompts[2].n_positions(n_queries) - 1;
    assert_eq!((kept[0], kept[3]), (0, n_last));
    assert!(kept[1] > n_queries, "the picture was kept: {kept:?}");
    assert!(kept[2] < kept[1] && kept[2] > 0, "up to the picture: {kept:?}");
}

#[test]
fn a_longer_prompt_has_another_rotary_base() {
    let (file, model) = open();
    let mut session = Session::new(&file, &model, &settings(600), &STOP).unwrap();
    let long = "word ".repeat(file.hparams().seq_length);
    let (short, long) = (ask(&file, 0, "What?"), ask(&file, 0, &long));
    let images = [picture(&file, 1)];
    for prompt in [&short, &long, &short] {
        assert_eq!(session.prefill(prompt, &images).unwrap(), 0);
        close(session.logits().unwrap(), &alone(&file, &model, prompt, &images, 0).1);
    }
}

#[test]
fn a_session_grows_with_what_it_holds() {
    let (file, model) = open();
    let images = [picture(&file, 1)];
    let prompt = ask(&file, 0, "What is this?");
    let n = prompt.n_positions(file.hparams().n_queries);
    let mut session = Session::new(&file, &model, &settings(n), &STOP).unwrap();
    session.prefill(&prompt, &images).unwrap();
    assert_eq!(session.n_left(), 0);
    let id = TokenId(5);
    assert!(session.push(id).is_err());
    session.grow(n + 3).unwrap();
    session.push(id).unwrap();
    let mut other = Session::new(&file, &model, &settings(600), &STOP).unwrap();
    other.prefill(&prompt, &images).unwrap();
    other.push(id).unwrap();
    close(session.logits().unwrap(), other.logits().unwrap());
}

/// Greedy ids of all prompts, continued together in `n_slots` places of a cache of `n_ctx` positions, and how many
/// positions were shared.
fn together(
    file: &TextFile,
    model: &Model,
    prompts: &[Prompt],
    images: &[Arc<Seen>],
    (n_slots, n_ctx): (usize, usize),
) -> (Vec<Vec<TokenId>>, usize) {
    let mut many = Sequences::new(file, model, &settings(n_ctx), n_slots, &STOP).unwrap();
    let mut ids = vec![Vec::new(); prompts.len()];
    let mut of_slot = vec![0; n_slots];
    let mut waiting = prompts.iter().enumerate();
    let mut next = waiting.next();
    let n_queries = file.hparams().n_queries;
    while next.is_some() || many.is_running() {
        while let Some((k, prompt)) = next
            && let Some(slot) = many.free(prompt.n_positions(n_queries))
        {
            of_slot[slot] = k;
            many.begin(slot, prompt, images).unwrap();
            next = waiting.next();
        }
        many.step(|slot, logits| {
            let ids = &mut ids[of_slot[slot]];
            ids.push(TokenId(greedy(file).sample(&logits[..file.tokenizer().n_used()]).unwrap()));
            // Texts of different lengths: places become free at different times.
            Ok(if ids.len() == N_TOKENS - of_slot[slot] % 4 { Next::Done } else { Next::Token(ids[ids.len() - 1]) })
        })
        .unwrap();
    }
    (ids, many.n_shared())
}

const N_TOKENS: usize = 10;

#[test]
fn texts_continued_together_come_out_as_alone() {
    let (file, model) = open();
    let images = [picture(&file, 1), picture(&file, 2)];
    let questions = ["What is this?", "Where?", "How many of them are there?", "Why?", "Is it red?", "Who?", "When?"];
    let mut prompts: Vec<Prompt> = questions.iter().enumerate().map(|(k, q)| ask(&file, k % 2, q)).collect();
    // Longer than the training length: another rotary base, so it waits until it is alone.
    prompts.insert(3, ask(&file, 0, &"word ".repeat(file.hparams().seq_length)));
    let expect: Vec<_> =
        (0..prompts.len()).map(|k| alone(&file, &model, &prompts[k], &images, N_TOKENS - k % 4).0).collect();
    let (found, n_shared) = together(&file, &model, &prompts, &images, (3, 900));
    assert_eq!(found, expect);
    // Three more questions about each picture, whose rows are shared.
    assert!(n_shared > 3 * file.hparams().n_queries, "{n_shared}");
    // One place is the same as one after the other.
    assert_eq!(together(&file, &model, &prompts, &images, (1, 900)).0, expect);
    // A cache for one and a half: some must wait and begin again.
    let longest = prompts.iter().map(|p| p.n_positions(file.hparams().n_queries)).max().unwrap();
    let (found, _) = together(&file, &model, &prompts, &images, (4, longest + N_TOKENS));
    assert_eq!(found, expect);
}

/// However a prompt is cut into batches and into what was read before, its logits are those of reading it at once.
#[test]
fn a_prompt_may_be_read_in_any_pieces() {
    let (file, model) = open();
    let images = [picture(&file, 1), picture(&file, 2)];
    let n_queries = file.hparams().n_queries;
    for seed in 0..12 {
        let mut r = Random(seed);
        let words = r.text(30).replace(['<', '>'], "");
        let prompt = ask(&file, r.below(2), &words);
        let n = prompt.n_positions(n_queries);
        let read = |n_batch: usize, before: Option<&Prompt>| {
            let settings = SessionSettings { n_batch, ..settings(n.max(300)) };
            let mut session = Session::new(&file, &model, &settings, &STOP).unwrap();
            if let Some(before) = before {
                session.prefill(before, &images).unwrap();
            }
            session.prefill(&prompt, &images).unwrap();
            session.logits().unwrap().to_vec()
        };
        let once = read(n, None);
        close(&read(1 + r.below(n), None), &once);
        close(&read(1 + r.below(7), None), &once);
        // After another prompt that begins like it.
        let end = (0..=words.len() / 2).rev().find(|at| words.is_char_boundary(*at)).unwrap_or(0);
        let before = ask(&file, r.below(2), &words[..end]);
        close(&read(1 + r.below(n), Some(&before)), &once);
    }
}

/// Any questions, in any number of places of a cache of any size: each is answered as it would be alone.
#[test]
fn any_texts_continued_together_come_out_as_alone() {
    let (file, model) = open();
    let images = [picture(&file, 1), picture(&file, 2)];
    for seed in 0..6 {
        let mut r = Random(100 + seed);
        let n = 2 + r.below(4);
        let prompts: Vec<Prompt> =
            (0..n).map(|_| ask(&file, r.below(2), &r.text(20).replace(['<', '>'], ""))).collect();
        let expect: Vec<_> = (0..n).map(|k| alone(&file, &model, &prompts[k], &images, N_TOKENS - k % 4).0).collect();
        let longest = prompts.iter().map(|p| p.n_positions(file.hparams().n_queries)).max().unwrap();
        let places = (1 + r.below(4), longest + N_TOKENS + r.below(300));
        assert_eq!(together(&file, &model, &prompts, &images, places).0, expect, "seed {seed}: {places:?}");
    }
}

#[test]
fn what_is_read_ahead_is_as_if_it_had_been_read_one_by_one() {
    let (file, model) = open();
    let images = [picture(&file, 1)];
    let prompt = ask(&file, 0, "What is this?");
    let ids = [5, 9, 200, 17, 31, 9].map(TokenId);
    let mut plain = Session::new(&file, &model, &settings(600), &STOP).unwrap();
    plain.prefill(&prompt, &images).unwrap();
    let expect = ids.map(|id| {
        plain.push(id).unwrap();
        plain.logits().unwrap().to_vec()
    });
    let with_draft = settings(600).with_draft(Draft::Exactly(3));
    let mut session = Session::new(&file, &model, &with_draft, &STOP).unwrap();
    session.prefill(&prompt, &images).unwrap();
    let n_prompt = session.n_past();
    // Two guesses are right, the third is not; what is wrong leaves nothing behind.
    let wrong = TokenId(77);
    assert_eq!(session.push_ahead(ids[0], &[ids[1], ids[2], wrong]).unwrap(), 3);
    assert_eq!(session.n_past(), n_prompt + 1);
    close(session.logits().unwrap(), &expect[0]);
    assert!(!session.go_ahead(ids[2]) && session.go_ahead(ids[1]));
    close(session.logits().unwrap(), &expect[1]);
    assert!(session.go_ahead(ids[2]));
    close(session.logits().unwrap(), &expect[2]);
    assert!(!session.go_ahead(ids[3]));
    session.push(ids[3]).unwrap();
    close(session.logits().unwrap(), &expect[3]);
    assert!(!session.go_ahead(wrong));
    // No more than there is room for.
    assert_eq!(session.push_ahead(ids[4], &[wrong; 9]).unwrap(), 3);
    close(session.logits().unwrap(), &expect[4]);
    // A guess is no part of what is kept, nor of what goes on in a larger cache.
    let snapshot = session.snapshot(&images).unwrap();
    assert!(!session.go_ahead(wrong));
    let mut resumed = Session::new(&file, &model, &settings(600), &STOP).unwrap();
    resumed.resume(&snapshot).unwrap();
    assert_eq!(session.push_ahead(ids[5], &[wrong]).unwrap(), 1);
    session.grow(900).unwrap();
    assert!(!session.go_ahead(wrong));
    resumed.push(ids[5]).unwrap();
    close(resumed.logits().unwrap(), &expect[5]);
    for session in [&mut session, &mut resumed] {
        assert_eq!(session.n_past(), n_prompt + ids.len());
        session.push(wrong).unwrap();
    }
    close(session.logits().unwrap(), resumed.logits().unwrap());
}

#[test]
fn nothing_is_read_ahead_where_the_context_ends() {
    let (file, model) = open();
    let prompt = ask(&file, 0, "What is this?");
    let n = prompt.n_positions(file.hparams().n_queries);
    let small = settings(n + 2).with_draft(Draft::Exactly(5));
    let mut session = Session::new(&file, &model, &small, &STOP).unwrap();
    session.prefill(&prompt, &[picture(&file, 1)]).unwrap();
    let id = TokenId(5);
    assert_eq!(session.push_ahead(id, &[id; 5]).unwrap(), 1);
    assert!(session.go_ahead(id) && !session.go_ahead(id));
    assert_eq!(session.n_left(), 0);
    assert!(session.push_ahead(id, &[id; 5]).is_err());
}
