//! What the bytes of a file's tensors are, in 64 digits.

use sha2::{Digest, Sha256};

/// SHA-256 over the bytes of all tensors in the order of the tensor list, without what pads them. Metadata and names do not
/// count, so that they may change later. llama.cpp's `gguf-hash` takes the same bytes.
#[derive(Clone, Default)]
pub struct Checksum(Sha256);

impl Checksum {
    /// Length of [`digits`](Self::digits) in bytes.
    pub const N_DIGITS: usize = 64;

    /// Takes the next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// In lower-case hexadecimal.
    pub fn digits(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
