//! A GGUF file in raw parts, every one of which can be made wrong. Shares no code with the reader under test.

use std::path::Path;

/// A metadata entry: type id and encoded value are whatever the test says.
#[derive(Clone)]
pub struct Key {
    pub name: Vec<u8>,
    pub ty: u32,
    pub value: Vec<u8>,
}

/// An entry of the tensor list; `offset` is relative to the data.
#[derive(Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    pub dims: Vec<u64>,
    pub ty: u32,
    pub offset: u64,
}

/// A file. Counts are those of the lists unless set.
#[derive(Clone)]
pub struct File {
    pub magic: [u8; 4],
    pub version: u32,
    pub n_tensors: Option<u64>,
    pub n_keys: Option<u64>,
    pub keys: Vec<Key>,
    pub tensors: Vec<Tensor>,
    pub alignment: usize,
    pub data: Vec<u8>,
}

/// A type id and an encoded value.
pub type Encoded = (u32, Vec<u8>);

pub fn u32(n: u32) -> Encoded {
    (4, n.to_le_bytes().to_vec())
}

pub fn i32(n: i32) -> Encoded {
    (5, n.to_le_bytes().to_vec())
}

pub fn u64(n: u64) -> Encoded {
    (10, n.to_le_bytes().to_vec())
}

pub fn f32(x: f32) -> Encoded {
    (6, x.to_le_bytes().to_vec())
}

pub fn bool(byte: u8) -> Encoded {
    (7, vec![byte])
}

pub fn str(text: impl AsRef<[u8]>) -> Encoded {
    (8, bytes(text))
}

pub fn strs(texts: &[Vec<u8>]) -> Encoded {
    (9, [array_head(8, texts.len() as u64), texts.iter().flat_map(bytes).collect()].concat())
}

pub fn i32s(values: &[i32]) -> Encoded {
    (9, [array_head(5, values.len() as u64), values.iter().flat_map(|v| v.to_le_bytes()).collect()].concat())
}

pub fn f32s(values: &[f32]) -> Encoded {
    (9, [array_head(6, values.len() as u64), values.iter().flat_map(|v| v.to_le_bytes()).collect()].concat())
}

/// Element type and count of an array, which then follows.
pub fn array_head(ty: u32, n: u64) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &n.to_le_bytes()].concat()
}

/// A length and as many bytes.
pub fn bytes(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

impl File {
    /// Nothing but a sound header.
    pub fn empty() -> File {
        let (keys, tensors, data) = (Vec::new(), Vec::new(), Vec::new());
        File { magic: *b"GGUF", version: 3, n_tensors: None, n_keys: None, keys, tensors, alignment: 32, data }
    }

    /// Takes a sound file apart.
    pub fn read(path: &Path) -> File {
        let bytes = std::fs::read(path).unwrap();
        let mut r = Reader { bytes: &bytes, at: 8 };
        let (n_tensors, n_keys) = (r.u64(), r.u64());
        let key = |r: &mut Reader| {
            let (name, ty, start) = (r.text(), r.u32(), 0);
            let start = start + r.at;
            r.skip(ty);
            Key { name, ty, value: r.bytes[start..r.at].to_vec() }
        };
        let keys = (0..n_keys).map(|_| key(&mut r)).collect();
        let tensor = |r: &mut Reader| {
            let (name, n_dims) = (r.text(), r.u32());
            let dims = (0..n_dims).map(|_| r.u64()).collect();
            Tensor { name, dims, ty: r.u32(), offset: r.u64() }
        };
        let tensors = (0..n_tensors).map(|_| tensor(&mut r)).collect();
        let data = bytes[r.at.next_multiple_of(32)..].to_vec();
        File { keys, tensors, data, ..File::empty() }
    }

    /// The header, padded to the alignment.
    pub fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for key in &self.keys {
            out.extend(bytes(&key.name));
            out.extend(key.ty.to_le_bytes());
            out.extend(&key.value);
        }
        for tensor in &self.tensors {
            out.extend(bytes(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.ty.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }

    /// The whole file.
    pub fn encode(&self) -> Vec<u8> {
        [self.header(), self.data.clone()].concat()
    }

    /// Appends a key, even one that is there.
    pub fn push(&mut self, name: impl AsRef<[u8]>, (ty, value): Encoded) {
        self.keys.push(Key { name: name.as_ref().to_vec(), ty, value });
    }

    /// Changes a key, or appends it.
    pub fn set(&mut self, name: &str, (ty, value): Encoded) {
        match self.keys.iter_mut().find(|k| k.name == name.as_bytes()) {
            Some(key) => (key.ty, key.value) = (ty, value),
            None => self.push(name, (ty, value)),
        }
    }

    /// Takes a key out, which must be there.
    pub fn remove(&mut self, name: &str) {
        let at = self.keys.iter().position(|k| k.name == name.as_bytes()).unwrap_or_else(|| panic!("no {name}"));
        self.keys.remove(at);
    }

    /// The strings of an array key.
    pub fn strings(&self, name: &str) -> Vec<Vec<u8>> {
        let key = self.keys.iter().find(|k| k.name == name.as_bytes()).unwrap();
        let mut r = Reader { bytes: &key.value, at: 4 };
        (0..r.u64()).map(|_| r.text()).collect()
    }

    /// The i32 values of an array key.
    pub fn ints(&self, name: &str) -> Vec<i32> {
        let key = self.keys.iter().find(|k| k.name == name.as_bytes()).unwrap();
        key.value[12..].chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// The tensor of this name.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name.as_bytes()).unwrap_or_else(|| panic!("no {name}"))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, n: usize) -> &[u8] {
        self.at += n;
        &self.bytes[self.at - n..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> Vec<u8> {
        let n = self.u64() as usize;
        self.take(n).to_vec()
    }

    /// Skips a value of a type.
    fn skip(&mut self, ty: u32) {
        match ty {
            0 | 1 | 7 => self.at += 1,
            2 | 3 => self.at += 2,
            4..=6 => self.at += 4,
            8 => drop(self.text()),
            9 => {
                let (ty, n) = (self.u32(), self.u64());
                (0..n).for_each(|_| self.skip(ty));
            }
            _ => self.at += 8,
        }
    }
}
