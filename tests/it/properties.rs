//! What must hold of anything: random values, each from its seed.

use qvl::gguf::{Array, DEFAULT_ALIGNMENT, Gguf, Layout, Metadata, TensorSpec, Value};
use qvl::grounding::{Region, Selection, regions, select};
use qvl::quant::GgmlType;
use qvl::session::TextFile;
use qvl::tokenizer::{Special, Specials, StreamDecoder};

use crate::models::random;
use crate::random::Random;

impl Random {
    /// Text of up to `n` characters: letters, blanks, Chinese, characters that combine, tags.
    pub fn text(&mut self, n: usize) -> String {
        const PARTS: [&str; 16] = [
            "a",
            "hello",
            " ",
            "  ",
            "\n",
            "\r\n",
            "7",
            "12",
            "图片",
            "e\u{301}",
            "\u{1100}\u{1161}",
            "<ref>",
            "</box>",
            "'ll",
            "\u{feff}",
            "😀",
        ];
        let n = self.below(n + 1);
        let one = |_| match self.below(4) {
            0 => char::from_u32((self.next() % 0x11_0000) as u32).unwrap_or('\u{fffd}').to_string(),
            1 => char::from(self.below(128) as u8).to_string(),
            _ => PARTS[self.below(PARTS.len())].to_owned(),
        };
        (0..n).map(one).collect()
    }

    fn numbers<T>(&mut self, f: impl Fn(u64) -> T) -> Vec<T> {
        (0..self.below(5)).map(|_| f(self.next())).collect()
    }

    fn value(&mut self) -> Value {
        let n = self.next();
        match self.below(24) {
            0 => Value::U8(n as u8),
            1 => Value::I8(n as i8),
            2 => Value::U16(n as u16),
            3 => Value::I16(n as i16),
            4 => Value::U32(n as u32),
            5 => Value::I32(n as i32),
            6 => Value::F32(n as f32 / 3.0),
            7 => Value::Bool(n.is_multiple_of(2)),
            8 => Value::U64(n),
            9 => Value::I64(n as i64),
            10 => Value::F64(n as f64 / 3.0),
            11 => Value::Array(Array::U8(self.numbers(|n| n as u8))),
            12 => Value::Array(Array::I8(self.numbers(|n| n as i8))),
            13 => Value::Array(Array::U16(self.numbers(|n| n as u16))),
            14 => Value::Array(Array::I16(self.numbers(|n| n as i16))),
            15 => Value::Array(Array::U32(self.numbers(|n| n as u32))),
            16 => Value::Array(Array::I32(self.numbers(|n| n as i32))),
            17 => Value::Array(Array::F32(self.numbers(|n| n as f32))),
            18 => Value::Array(Array::U64(self.numbers(|n| n))),
            19 => Value::Array(Array::I64(self.numbers(|n| n as i64))),
            20 => Value::Array(Array::F64(self.numbers(|n| n as f64))),
            21 => Value::Array(Array::Bool(self.numbers(|n| n.is_multiple_of(2)))),
            22 => Value::Array(Array::String((0..self.below(4)).map(|_| self.text(5)).collect())),
            _ => Value::String(self.text(12)),
        }
    }
}

/// parse(write(x)) = x, and everything lies where the layout says.
#[test]
fn gguf_files_are_read_as_they_were_written() {
    const TYPES: [GgmlType; 6] =
        [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::I8];
    for seed in 0..500 {
        let mut r = Random(seed);
        let mut metadata = Metadata::default();
        for k in 0..r.below(12) {
            metadata.set(format!("key.{k}.图"), r.value());
        }
        let mut tensors = Vec::new();
        for k in 0..r.below(9) {
            let ty = TYPES[r.below(TYPES.len())];
            let mut dims = vec![ty.block_size() * (1 + r.below(3) as u64)];
            dims.extend((0..r.below(4)).map(|_| 1 + r.below(4) as u64));
            tensors.push(TensorSpec { name: format!("t{k}.{}", "x".repeat(r.below(50))), dims, ty });
        }
        let alignment = DEFAULT_ALIGNMENT << r.below(4);
        let layout = Layout::new(&metadata, &tensors, alignment).unwrap();
        let mut file = layout.header.clone();
        file.resize(layout.file_bytes as usize, 0);
        let gguf = Gguf::parse(&file).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        metadata.set("general.alignment", Value::U32(alignment as u32));
        assert_eq!(gguf.metadata(), metadata.0, "seed {seed}");
        assert_eq!((gguf.alignment(), gguf.tensors().len()), (alignment, tensors.len()));
        for ((found, spec), (offset, n_bytes)) in gguf.tensors().iter().zip(&tensors).zip(&layout.places) {
            assert_eq!((&found.name, &found.dims, found.ty), (&spec.name, &spec.dims, spec.ty), "seed {seed}");
            assert_eq!((found.offset, found.n_bytes), (*offset, *n_bytes), "seed {seed}");
        }
        // One byte less is an error where the last tensor needs it, never a panic.
        let end = layout.places.last().map_or(0, |(offset, n)| offset + n) as usize;
        assert!(end == 0 || Gguf::parse(&file[..end]).is_ok() && Gguf::parse(&file[..end - 1]).is_err());
    }
}

#[test]
fn text_comes_back_from_its_ids() {
    let file = TextFile::open(&random().text).unwrap();
    let tokenizer = file.tokenizer();
    for seed in 0..2000 {
        let text = Random(seed).text(40);
        let ids = tokenizer.encode(&text, Special::None).unwrap();
        assert_eq!(tokenizer.decode(&ids, Specials::Keep).unwrap(), text, "seed {seed}");
        let mut stream = StreamDecoder::new(tokenizer, Specials::Keep);
        let mut streamed: String = ids.iter().map(|id| stream.push(*id)).collect();
        streamed += &stream.finish();
        assert_eq!(streamed, text, "seed {seed}");
        // With tags it is put in NFC first; once that is done it comes back.
        let ids = tokenizer.encode(&text, Special::Grounding).unwrap();
        let normal = tokenizer.decode(&ids, Specials::Keep).unwrap();
        assert_eq!(tokenizer.encode(&normal, Special::Grounding).unwrap(), ids, "seed {seed}");
    }
}

/// Thousandths are truncated, and pixels of them are, too: a corner comes back at most a pixel and a thousandth of the side
/// further up and to the left, and never outside.
#[test]
fn boxes_come_back_from_thousandths_within_rounding() {
    for seed in 0..5000 {
        let mut r = Random(seed);
        let (width, height) = (2 + r.below(5000), 2 + r.below(5000));
        let mut side = |n: usize| {
            let low = r.below(n - 1);
            (low, low + 1 + r.below(n - low))
        };
        let ((x1, x2), (y1, y2)) = (side(width), side(height));
        let (x2, y2) = (x2.min(width), y2.min(height));
        let given = [x1, y1, x2, y2].map(|v| v as f64);
        let size = (width as u32, height as u32);
        let question = select("{}", &[Selection::new(given).unwrap()], &[size]).unwrap();
        let (found, n_malformed) = regions(&question);
        assert_eq!((found.len(), n_malformed), (1, 0), "{question}");
        let back = found[0].box_pixels(size.0, size.1);
        for ((back, given), extent) in back.into_iter().zip(given).zip([width, height, width, height]) {
            // The last thousandth is 999.
            let off = given - back as f64;
            assert!((0.0..=1.0 + extent as f64 / 1000.0).contains(&off), "seed {seed}: {question}, {given} {back}");
        }
        // Any numbers that a model may write are drawn inside.
        let any = || r.next() as i64 % 1_000_000;
        let corners_1000 = std::iter::repeat_with(any).map(|v| [v, v / 7]).take(2).collect();
        let [a, b, c, d] = Region { label: None, corners_1000 }.box_pixels(size.0, size.1);
        assert!(0 <= a && a <= c && c <= width as i64 && 0 <= b && b <= d && d <= height as i64);
    }
}
