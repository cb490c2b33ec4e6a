//! The GGUF format, version 3, little-endian: metadata, tensor list, tensor data. Knows no model and no C library.
//!
//! Source: the GGUF specification in ggml's `docs/gguf.md`.

mod checksum;
mod parts;
mod reader;
mod rewrite;
mod value;
mod writer;

pub use checksum::Checksum;
pub(crate) use parts::all_paths;
pub use parts::{Part, part_path};
pub use reader::{Gguf, TensorInfo};
pub use rewrite::rewrite;
pub use value::{Array, Value, ValueType};
pub use writer::{Layout, Metadata, TensorSpec};

/// The first four bytes of every file.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// The version that is written; versions 2 and 3 are read (they differ only for big-endian files).
pub const VERSION: u32 = 3;
/// Where tensor data starts and each tensor in it: a multiple of this many bytes, unless the file says otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Most dimensions a tensor may have.
pub const MAX_DIMS: usize = 4;
/// Longest tensor name in bytes, as ggml's fixed buffers hold it (64 with the terminating zero).
pub const MAX_NAME_BYTES: usize = 63;
