//! Files of `torch.save`, written byte by byte, so that tests need no Python. Source of the form: PyTorch's own files.

// Not every test that shares this file needs all of it.
#![allow(dead_code)]

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// A storage's class and its bytes.
pub struct Storage {
    pub class: &'static str,
    pub n_values: u64,
    pub bytes: Vec<u8>,
}

/// A tensor that looks at a storage.
pub struct Tensor {
    pub name: String,
    pub storage: usize,
    pub first: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
    /// Functions of `torch._utils` that are wrapped around it.
    pub wrapped: &'static [&'static str],
}

/// A state dict.
#[derive(Default)]
pub struct StateDict {
    pub storages: Vec<Storage>,
    pub tensors: Vec<Tensor>,
}

/// Strides of values in the order of the shape.
pub fn row_major(shape: &[u64]) -> Vec<u64> {
    (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect()
}

/// Bytes a value of a storage class that holds weights.
pub fn n_bytes(class: &str) -> usize {
    if class == "HalfStorage" || class == "BFloat16Storage" { 2 } else { 4 }
}

impl StateDict {
    /// A safetensors file's tensors, each with a storage of its own, in the order of their names.
    pub fn of_safetensors(path: &Path) -> Self {
        let file = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let mut names = file.names();
        names.sort();
        let mut dict = StateDict::default();
        for name in names {
            let view = file.tensor(name).unwrap();
            let class = match view.dtype() {
                Dtype::F32 => "FloatStorage",
                Dtype::F16 => "HalfStorage",
                Dtype::BF16 => "BFloat16Storage",
                Dtype::I32 => "IntStorage",
                other => panic!("{other:?}"),
            };
            let shape: Vec<u64> = view.shape().iter().map(|n| *n as u64).collect();
            dict.push(name, class, &shape, view.data().to_vec());
        }
        dict
    }

    /// A tensor with a storage of its own.
    pub fn push(&mut self, name: &str, class: &'static str, shape: &[u64], bytes: Vec<u8>) {
        let storage = self.storages.len();
        self.storages.push(Storage { class, n_values: shape.iter().product(), bytes });
        let (shape, strides) = (shape.to_vec(), row_major(shape));
        self.tensors.push(Tensor { name: name.to_owned(), storage, first: 0, shape, strides, wrapped: &[] });
    }

    /// The pickle of protocol 2.
    pub fn pickle(&self) -> Vec<u8> {
        let mut p = b"\x80\x02".to_vec();
        global(&mut p, "collections", "OrderedDict");
        p.extend(b")Rq\x00(");
        for tensor in &self.tensors {
            text(&mut p, &tensor.name);
            for function in tensor.wrapped {
                global(&mut p, "torch._utils", function);
                p.push(b'(');
            }
            global(&mut p, "torch._utils", "_rebuild_tensor_v2");
            let storage = &self.storages[tensor.storage];
            p.extend(b"((");
            text(&mut p, "storage");
            global(&mut p, "torch", storage.class);
            text(&mut p, &tensor.storage.to_string());
            text(&mut p, "cpu");
            int(&mut p, storage.n_values);
            p.extend(b"tQ");
            int(&mut p, tensor.first);
            tuple(&mut p, &tensor.shape);
            tuple(&mut p, &tensor.strides);
            p.push(0x89);
            global(&mut p, "collections", "OrderedDict");
            p.extend(b")RtR");
            tensor.wrapped.iter().for_each(|_| p.extend(b"\x88}tR"));
        }
        // As a module's own state dict: an attribute beside the tensors.
        p.push(b'u');
        p.extend(b"}");
        text(&mut p, "_metadata");
        global(&mut p, "collections", "OrderedDict");
        p.extend(b")Rsb.");
        p
    }

    /// The entries of the archive.
    pub fn entries(&self) -> Vec<(String, Vec<u8>)> {
        let mut entries =
            vec![("archive/data.pkl".to_owned(), self.pickle()), ("archive/byteorder".to_owned(), b"little".to_vec())];
        let data = |(i, storage): (usize, &Storage)| (format!("archive/data/{i}"), storage.bytes.clone());
        entries.extend(self.storages.iter().enumerate().map(data));
        entries.push(("archive/version".to_owned(), b"3\n".to_vec()));
        entries
    }

    /// Writes it as `torch.save` does.
    pub fn save(&self, path: &Path) {
        fs::write(path, archive(&self.entries())).unwrap();
    }
}

fn global(p: &mut Vec<u8>, module: &str, name: &str) {
    p.extend(format!("c{module}\n{name}\n").bytes());
}

fn text(p: &mut Vec<u8>, text: &str) {
    p.push(b'X');
    p.extend((text.len() as u32).to_le_bytes());
    p.extend(text.bytes());
}

fn int(p: &mut Vec<u8>, n: u64) {
    match n {
        0..=0xff => p.extend([b'K', n as u8]),
        0x100..=0xffff => p.extend([b'M', n as u8, (n >> 8) as u8]),
        0x1_0000..=0x7fff_ffff => {
            p.push(b'J');
            p.extend((n as u32).to_le_bytes());
        }
        _ => {
            p.extend([0x8a, 8]);
            p.extend(n.to_le_bytes());
        }
    }
}

fn tuple(p: &mut Vec<u8>, items: &[u64]) {
    p.push(b'(');
    items.iter().for_each(|n| int(p, *n));
    p.push(b't');
}

/// Sizes and places in an archive: in its records, or behind them as in archives of more than 4 GiB.
#[derive(Clone, Copy, PartialEq)]
pub enum Width {
    Narrow,
    Zip64,
}

/// A zip archive of entries that are stored as they are, their data aligned to 64 bytes.
pub fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    archive_as(entries, Width::Narrow)
}

/// As [`archive`], with fields of this width.
pub fn archive_as(entries: &[(String, Vec<u8>)], width: Width) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    // A number of the records, or what stands there for one that is found elsewhere.
    let field = |n: usize| if width == Width::Zip64 { u32::MAX } else { n as u32 }.to_le_bytes();
    for (name, bytes) in entries {
        let header = file.len();
        let padding = (64 - (file.len() + 30 + name.len() + 4) % 64) % 64;
        let n = bytes.len();
        let name_size = (name.len() as u16).to_le_bytes();
        file.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend([field(n), field(n)].concat());
        file.extend(name_size);
        file.extend((padding as u16 + 4).to_le_bytes());
        file.extend(name.bytes());
        file.extend(b"FB");
        file.extend((padding as u16).to_le_bytes());
        file.resize(file.len() + padding, b'Z');
        file.extend(bytes);
        let mut extra = Vec::new();
        if width == Width::Zip64 {
            extra.extend([1u16, 24].map(u16::to_le_bytes).concat());
            extra.extend([n, n, header].map(|n| (n as u64).to_le_bytes()).concat());
        }
        directory.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        directory.extend([field(n), field(n)].concat());
        directory.extend(name_size);
        directory.extend((extra.len() as u16).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(field(header));
        directory.extend(name.bytes());
        directory.extend(extra);
    }
    let (start, n) = (file.len(), entries.len());
    file.extend(&directory);
    let end = file.len() as u64;
    if width == Width::Zip64 {
        file.extend(b"PK\x06\x06");
        file.extend(44u64.to_le_bytes());
        file.extend([0; 12]);
        file.extend([n, n, directory.len(), start].map(|n| (n as u64).to_le_bytes()).concat());
        file.extend(b"PK\x06\x07\0\0\0\0");
        file.extend(end.to_le_bytes());
        file.extend(1u32.to_le_bytes());
    }
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([n as u16, n as u16].map(u16::to_le_bytes).concat());
    file.extend([field(directory.len()), field(start)].concat());
    file.extend([0, 0]);
    file
}
