//! Small valid files of every kind, made here: what fuzzing begins with.

use std::io::Cursor;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat};
use qvl::cache::{Key, Store};
use qvl::conversation::{Conversation, SessionFile, Shown};
use qvl::gguf::{Array, DEFAULT_ALIGNMENT, Layout, Metadata, TensorSpec, Value};
use qvl::grounding::{GRAMMAR, GRAMMAR_AFTER_BOX};
use qvl::image::ImageSource;
use qvl::names::{adapter, general, text, text_tensor, vision, vocab};
use qvl::quant::GgmlType;
use qvl::session::{Mark, Seen, Snapshot, TextFile};
use qvl::tokenizer::{Alphabet, N_SPECIAL, TYPE_CONTROL, TYPE_NORMAL, TYPE_UNUSED, TokenId, Tokenizer, special_names};
use qvl::vision::ImageEmbedding;

use super::file;

/// The name of the cache's entries.
pub const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// Bytes behind a file that [`sealed`](super::sealed) appends.
const N_SEAL: usize = 32;
/// Rows of the vocabulary; slots of a picture; width of the model.
const N_ROWS: usize = 512;
const N_QUERIES: usize = 4;
const N_EMBD: u64 = 32;

/// The lines of a rank file for the single bytes.
pub static SINGLE_BYTES: LazyLock<String> =
    LazyLock::new(|| (0..=255u8).map(|byte| format!("{} {byte}\n", STANDARD.encode([byte]))).collect());

/// The seeds of a target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "batch" => texts(&BATCHES),
        "boxes" => texts(&ANSWERS),
        "cache" => cache(),
        "gguf" => vec![text_header(), adapter_file(), mmproj_header(), any_values()],
        "grammar" => texts(&[GRAMMAR, GRAMMAR_AFTER_BOX, GRAMMARS[0], GRAMMARS[1], GRAMMARS[2]]),
        "index" => texts(&INDICES),
        "picture" => pictures(),
        "pickle" => PICKLES.map(|p| p.to_vec()).into_iter().chain([pickle()]).collect(),
        "prompt" => texts(&PROMPTS),
        "safetensors" => vec![safetensors_file(false), safetensors_file(true)],
        "session" => vec![session(false), session(true), CHAT.as_bytes().to_vec()],
        "source" => texts(&SOURCES),
        "torch" => vec![torch_archive(&pickle()), include_bytes!("../../tests/data/torch/layouts.bin").to_vec()],
        "vocabulary" => {
            let more = ["ab", " a", "abab", "图", "\u{301}"];
            let line = |(i, token): (usize, &&str)| format!("{} {}\n", STANDARD.encode(token), 256 + i);
            let more: String = more.iter().enumerate().map(line).collect();
            vec![more.clone().into_bytes(), more.replace('\n', "\r\n").into_bytes()]
        }
        other => panic!("no target {other}"),
    }
}

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

const ANSWERS: [&str; 4] = [
    "<ref>a cat</ref><box>(12,34),(567,890)</box> and <box>( 0 , 0 ),(1000,1000)</box>",
    "<ref>文字</ref><quad>(1,2),(9,3),(8,7),(2,6)</quad>, <box>(1,2)</box><box>(-5,2),(3,99999999999999999999)</box>",
    "10,20,30.5,40",
    "1: 0.5,2,600,479",
];

const PROMPTS: [&str; 5] = [
    "hello world, 图片 e\u{301} \u{1100}\u{1161} <|im_start|>user\n\n  x\r\n\t1234567 don't",
    "Picture 1: <img>a/b.png</img>\nWhat is <ref>this</ref><box>(1,2),(3,4)</box>?",
    "<img>a</img><img>e\u{301}.jpg</img></img><imgpad><quad><|extra_7|><|endoftext|>",
    "<img>unclosed <ref> {} \u{10FFFF}\u{feff}",
    "   \n \n\n a  b\u{a0}c\u{3000}'LL 've ١٢٣ ½",
];

const BATCHES: [&str; 2] = [
    "\u{feff}{\"id\": 1, \"image\": \"a.png\", \"prompt\": \"What?\", \"temp\": 0, \"n\": 5, \"seed\": 7, \"system\": \"s\"}\r\n\
     {\"images\": [\"a.png\", \"b.png\"], \"question\": \"x\", \"region\": [[1, 2, 3, 4], \"1:1,2,3,4\"], \"mine\": [1]}\n\n\
     {\"id\": \"a\", \"image\": \"data:image/png;base64,AAAA\", \"answer\": null}\n{\"id\": 1}\nno JSON\n",
    "{\"id\": \"a\", \"image\": \"http://x/a.png\"}\n{\"id\": [1]}\n{\"image\": 3}\n{\"region\": [1, 2, 1, 4]}\n{\"temp\": -1e999}",
];

const GRAMMARS: [&str; 3] = [
    "root ::= (\"a\" | [b-dé] | \"\\x41\" [^\\n]) ws root? # tail\nws ::= [ \\t\\n]{0,3} | \"\\u56FE\"+",
    "{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"integer\", \"minimum\": -3, \"maximum\": 120}, \"b\": {\"enum\": \
     [\"x\", null, 1.5]}}, \"required\": [\"a\"], \"additionalProperties\": false}",
    "{\"$ref\": \"#/$defs/l\", \"$defs\": {\"l\": {\"type\": \"array\", \"items\": {\"anyOf\": [{\"type\": \"string\", \
     \"minLength\": 1, \"maxLength\": 4}, {\"$ref\": \"#/$defs/l\"}]}, \"minItems\": 1, \"maxItems\": 3}}}",
];

const INDICES: [&str; 2] = [
    "{\"metadata\": {\"total_size\": 12}, \"weight_map\": {\"transformer.wte.weight\": \"model-00001-of-00002.safetensors\", \
     \"lm_head.weight\": \"model-00002-of-00002.safetensors\"}}",
    "{\"weight_map\": {\"a\": \"../b.safetensors\", \"c\": 3}}",
];

const SOURCES: [&str; 4] = [
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==",
    "data:,P5%201%201%20255%0AA",
    "file:///home/me/a%20b.png",
    "https://example.org/photo.jpg?x=1#y",
];

const CHAT: &str = "{\"format\": \"qvl-chat\", \"version\": 1, \"system\": \"s\", \"turns\": [{\"pictures\": [\"a.png\", \
                    \"data:,x\"], \"question\": \"q\", \"answer\": \"图\"}]}";

/// Opcodes that [`pickle`] does not use.
const PICKLES: [&[u8]; 3] = [
    b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00bM\x02\x01u.",
    b"\x80\x04\x95\x20\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94J\xff\xff\xff\x7f\x8c\x01b\x94\x8a\x02\x00\x01\x8c\x01c\x94]\x94(K\x01K\x02e\x8c\x01d\x94K\x01K\x02\x86\x94u.",
    b"\x80\x02cposix\nsystem\nq\x00X\x02\x00\x00\x00lsq\x01\x85q\x02Rq\x03.",
];

/// The toy vocabulary's tokens and types.
fn lists() -> (Vec<String>, Vec<i32>) {
    let alphabet = Alphabet::new();
    let longer =
        ["he", "ll", "hell", "hello", " w", "or", " wor", "é", "Pi", "user", "system", "assistant", "\n\n", "图"];
    let mut tokens: Vec<String> = (0..=255u8).rev().map(|byte| alphabet.spell(&[byte])).collect();
    tokens.extend(longer.iter().map(|token| alphabet.spell(token.as_bytes())));
    let mut types = vec![TYPE_NORMAL; tokens.len()];
    tokens.extend(special_names());
    types.resize(tokens.len(), TYPE_CONTROL);
    assert_eq!(tokens.len(), 256 + longer.len() + N_SPECIAL);
    tokens.extend((tokens.len()..N_ROWS).map(|id| format!("[PAD{id}]")));
    types.resize(tokens.len(), TYPE_UNUSED);
    (tokens, types)
}

/// The toy vocabulary.
pub fn tokenizer() -> Tokenizer {
    let (tokens, types) = lists();
    Tokenizer::new(tokens, &types, 8).expect("the toy vocabulary")
}

fn text_metadata(tokens: Vec<String>, types: Vec<i32>) -> Metadata {
    let mut m = Metadata::default();
    let mut set = |key: &str, value: Value| m.set(key, value);
    let string = |text: &str| Value::String(text.to_owned());
    set(general::ARCHITECTURE, string(text::ARCHITECTURE));
    set(general::NAME, string("toy"));
    set(general::VISION_ID, string("none"));
    for (key, n) in [
        (text::CONTEXT_LENGTH, 64),
        (text::EMBEDDING_LENGTH, N_EMBD as u32),
        (text::BLOCK_COUNT, 1),
        (text::FEED_FORWARD_LENGTH, 64),
        (text::HEAD_COUNT, 2),
        (text::ROPE_DIMENSION_COUNT, 16),
        (text::SEQ_LENGTH, 32),
        (text::N_QUERIES, N_QUERIES as u32),
    ] {
        set(key, Value::U32(n));
    }
    set(text::RMS_EPS, Value::F32(1e-6));
    set(text::ROPE_FREQ_BASE, Value::F32(10_000.0));
    set(text::CHAT_FORMAT, string("chatml"));
    set(vocab::MODEL, string("gpt2"));
    set(vocab::PRE, string("qwen2"));
    set(vocab::TOKENS, Value::Array(Array::String(tokens)));
    set(vocab::TOKEN_TYPE, Value::Array(Array::I32(types)));
    set(vocab::MERGES, Value::Array(Array::String(vec!["h e".into(), "l l".into()])));
    m
}

/// Tensors of a text model of one layer.
fn text_tensors(n_rows: u64) -> Vec<TensorSpec> {
    let (d, f) = (N_EMBD, 32);
    let spec = |name: &str, dims: &[u64]| {
        let ty = if dims.len() == 1 { GgmlType::F32 } else { GgmlType::Q8_0 };
        TensorSpec { name: name.to_owned(), dims: dims.to_vec(), ty }
    };
    let shapes: [&[u64]; 8] = [&[d], &[d, 3 * d], &[3 * d], &[d, d], &[d], &[d, f], &[d, f], &[f, d]];
    let layer = text_tensor::PARTS.iter().zip(shapes).map(|(part, dims)| spec(&text_tensor::blk(0, part), dims));
    let ends = [
        (text_tensor::TOKEN_EMBD, &[d, n_rows][..]),
        (text_tensor::OUTPUT_NORM, &[d]),
        (text_tensor::OUTPUT, &[d, n_rows]),
    ];
    ends.iter().map(|(name, dims)| spec(name, dims)).chain(layer).collect()
}

/// A file of these, whose tensors are zeros.
fn gguf_file(metadata: &Metadata, tensors: &[TensorSpec]) -> Vec<u8> {
    let layout = Layout::new(metadata, tensors, DEFAULT_ALIGNMENT).expect("a layout");
    let mut bytes = layout.header;
    bytes.resize(layout.file_bytes as usize, 0);
    bytes
}

/// A text model, complete and tiny.
pub fn text_model() -> Vec<u8> {
    let (tokens, types) = lists();
    gguf_file(&text_metadata(tokens, types), &text_tensors(N_ROWS as u64))
}

/// The same with a vocabulary of two: short.
fn text_header() -> Vec<u8> {
    gguf_file(&text_metadata(vec!["a".into(), "b".into()], vec![1, 1]), &text_tensors(2))
}

fn adapter_file() -> Vec<u8> {
    let mut m = Metadata::default();
    for (key, value) in [
        (general::ARCHITECTURE, text::ARCHITECTURE),
        (general::TYPE, adapter::GENERAL_TYPE),
        (adapter::TYPE, adapter::LORA),
    ] {
        m.set(key, Value::String(value.to_owned()));
    }
    m.set(adapter::ALPHA, Value::F32(2.0));
    let weight = text_tensor::blk(0, text_tensor::PARTS[3]);
    let spec =
        |end: &str, dims: [u64; 2]| TensorSpec { name: format!("{weight}{end}"), dims: dims.into(), ty: GgmlType::F32 };
    gguf_file(&m, &[spec(adapter::A, [N_EMBD, 2]), spec(adapter::B, [2, N_EMBD])])
}

fn mmproj_header() -> Vec<u8> {
    let mut m = Metadata::default();
    m.set(general::ARCHITECTURE, Value::String(vision::ARCHITECTURE.to_owned()));
    m.set(vision::PROJECTOR_TYPE, Value::String(vision::PROJECTOR.to_owned()));
    m.set(vision::USE_GELU, Value::Bool(true));
    for (key, n) in [
        (vision::IMAGE_SIZE, 28),
        (vision::PATCH_SIZE, 14),
        (vision::EMBEDDING_LENGTH, 32),
        (vision::FEED_FORWARD_LENGTH, 64),
        (vision::BLOCK_COUNT, 1),
        (vision::HEAD_COUNT, 2),
        (vision::PROJECTION_DIM, 32),
        (vision::N_QUERIES, 4),
        (vision::RESAMPLER_HEAD_COUNT, 2),
    ] {
        m.set(key, Value::U32(n));
    }
    m.set(vision::LAYER_NORM_EPS, Value::F32(1e-6));
    m.set(vision::IMAGE_MEAN, Value::Array(Array::F32(vec![0.5; 3])));
    m.set(vision::IMAGE_STD, Value::Array(Array::F32(vec![0.25; 3])));
    gguf_file(&m, &[])
}

/// Every type of value.
fn any_values() -> Vec<u8> {
    let mut m = Metadata::default();
    let all = [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::I32(-3),
        Value::U64(1 << 40),
        Value::I64(-(1 << 40)),
        Value::F64(f64::NAN),
        Value::Array(Array::U8(vec![1, 2])),
        Value::Array(Array::I16(vec![1, -2])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::F64(vec![1.5])),
        Value::Array(Array::String(vec!["".into(), "图".into()])),
    ];
    all.into_iter().enumerate().for_each(|(i, value)| m.set(format!("k{i}"), value));
    let spec = |name: &str, dims: &[u64], ty| TensorSpec { name: name.into(), dims: dims.into(), ty };
    gguf_file(&m, &[spec("a", &[256, 1, 2, 1], GgmlType::Q4_K), spec("b", &[1], GgmlType::I8)])
}

fn safetensors_file(metadata: bool) -> Vec<u8> {
    use safetensors::tensor::{Dtype, TensorView, serialize};
    let data = [0u8; 24];
    let view = |dtype, shape: &[usize], n| TensorView::new(dtype, shape.to_vec(), &data[..n]).expect("a view");
    let tensors = [
        ("a.weight", view(Dtype::F32, &[2, 3], 24)),
        ("b", view(Dtype::BF16, &[], 2)),
        ("c", view(Dtype::I32, &[0, 7], 0)),
        ("d", view(Dtype::U8, &[1, 1, 3], 3)),
    ];
    let about = metadata.then(|| [("format".to_owned(), "pt".to_owned())].into());
    serialize(tensors, about).expect("a file in memory")
}

/// The pickle of a state dict with two views of storage 0 and one of storage 1.
fn pickle() -> Vec<u8> {
    let mut p = b"\x80\x02ccollections\nOrderedDict\n)Rq\x00(".to_vec();
    let text = |p: &mut Vec<u8>, text: &str| {
        p.push(b'X');
        p.extend((text.len() as u32).to_le_bytes());
        p.extend(text.bytes());
    };
    for (name, storage, class, n, first, shape, strides) in [
        ("a.weight", "0", "FloatStorage", 6, 0, [2, 3], [3, 1]),
        ("b.weight", "0", "FloatStorage", 6, 1, [2, 2], [1, 2]),
        ("c.weight", "1", "HalfStorage", 4, 0, [1, 4], [4, 1]),
    ] {
        text(&mut p, name);
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut p, "storage");
        p.extend(format!("ctorch\n{class}\n").bytes());
        text(&mut p, storage);
        text(&mut p, "cpu");
        p.extend([b'K', n, b't', b'Q', b'K', first]);
        [shape, strides].iter().for_each(|pair| p.extend([b'K', pair[0], b'K', pair[1], 0x86]));
        p.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    p.extend(b"u.");
    p
}

/// An archive as `torch.save` writes it, with this pickle and two storages.
pub fn torch_archive(pickle: &[u8]) -> Vec<u8> {
    let entries: [(&str, &[u8]); 5] = [
        ("archive/data.pkl", pickle),
        ("archive/byteorder", b"little"),
        ("archive/data/0", &[0; 24]),
        ("archive/data/1", &[0; 8]),
        ("archive/version", b"3\n"),
    ];
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let place = (file.len() as u32).to_le_bytes();
        let sizes = [(bytes.len() as u32).to_le_bytes(); 2].concat();
        let n_name = (name.len() as u16).to_le_bytes();
        file.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend([&sizes[..], &n_name, &[0; 2], name.as_bytes(), bytes].concat());
        directory.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        directory.extend([&sizes[..], &n_name, &[0; 12], &place, name.as_bytes()].concat());
    }
    let (n, start) = ((directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes());
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([&[entries.len() as u8, 0, entries.len() as u8, 0][..], &n, &start, &[0, 0]].concat());
    file
}

fn embedding() -> ImageEmbedding {
    let data = (0..N_QUERIES * N_EMBD as usize).map(|i| i as f32 / 8.0).collect();
    ImageEmbedding { n_queries: N_QUERIES, d_out: N_EMBD as usize, data }
}

/// A session with a picture or without one, without its checksum.
fn session(picture: bool) -> Vec<u8> {
    let text = TextFile::open(&file("seed.gguf", &text_model())).expect("the model");
    let mut conversation = Conversation::new("system");
    let seen = Seen::new(embedding());
    let mut read = vec![Mark::Token(TokenId(3)), Mark::Token(TokenId(4))];
    if picture {
        let source = ImageSource::Path("a/b.png".into());
        conversation.show(Shown { source, size: (640, 480), seen: seen.clone() });
        read.extend((0..N_QUERIES as u32).map(|row| Mark::Row(seen.id, row)));
    }
    conversation.push("question", "answer");
    let snapshot = Snapshot { alpha: 1.0, read, state: b"state".into() };
    let mut bytes = Vec::new();
    let id = text.id().expect("its name");
    SessionFile { conversation, snapshot }.write(&text, &id, &mut bytes).expect("a session in memory");
    bytes.truncate(bytes.len() - N_SEAL);
    bytes
}

/// An embedding and a prompt, without their checksums.
fn cache() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::new(dir.path().to_owned(), 1 << 20);
    let key: Key = KEY.parse().expect("a key");
    let small = ImageEmbedding { n_queries: 2, d_out: 3, data: vec![0.5; 6] };
    store.put(&key, &small).expect("an entry");
    store.put_prompt(&key, b"what was read").expect("an entry");
    let read = |end: &str| {
        let mut bytes = std::fs::read(dir.path().join(format!("{KEY}{end}"))).expect("the entry");
        bytes.truncate(bytes.len() - N_SEAL);
        bytes
    };
    vec![read(".emb"), read(".kv")]
}

/// 9 × 6 pixels in every format and some of their kinds.
fn pictures() -> Vec<Vec<u8>> {
    let colour =
        DynamicImage::ImageRgb8(image::RgbImage::from_fn(9, 6, |x, y| image::Rgb([x as u8 * 28, y as u8 * 40, 90])));
    let kinds = [
        (
            colour.clone(),
            vec![
                ImageFormat::Png,
                ImageFormat::Jpeg,
                ImageFormat::WebP,
                ImageFormat::Bmp,
                ImageFormat::Tiff,
                ImageFormat::Pnm,
                ImageFormat::Qoi,
            ],
        ),
        (
            DynamicImage::ImageRgba8(colour.to_rgba8()),
            vec![ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff],
        ),
        (
            DynamicImage::ImageLuma8(colour.to_luma8()),
            vec![ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Tiff, ImageFormat::Pnm],
        ),
        (DynamicImage::ImageRgb16(colour.to_rgb16()), vec![ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Pnm]),
        (DynamicImage::ImageLumaA16(colour.to_luma_alpha16()), vec![ImageFormat::Png]),
    ];
    let mut all = Vec::new();
    for (picture, formats) in kinds {
        for format in formats {
            let mut bytes = Cursor::new(Vec::new());
            picture.write_to(&mut bytes, format).expect("a picture in memory");
            all.push(bytes.into_inner());
        }
    }
    // A JPEG that is to be turned.
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let jpeg = &all[1];
    let length = (exif.len() as u16 + 2).to_be_bytes();
    all.push([&jpeg[..2], b"\xff\xe1", &length, exif, &jpeg[2..]].concat());
    all.push(b"P1\n# plain\n3 2\n1 0 1 0 1 0\n".to_vec());
    all.push(b"P3 2 1 15 1 2 3 4 5 15\n".to_vec());
    all
}
