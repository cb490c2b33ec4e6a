//! What an entry is made of, as one number.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::ggml::simd_features;
use crate::gguf::Gguf;
use crate::image::Picture;
use crate::mmap::MappedFile;
use crate::vision::Attention;

/// Raise it when entries change, or when the same picture gets other numbers within one version of the crate (another
/// ggml, another graph): old entries are never found again then, and age out.
const FORMAT: u32 = 1;

/// Names an entry: SHA-256 over everything that it depends on. Two pictures of one key are the same picture, seen by
/// the same weights in the same way; two prompts begin with the same, read by the same weights in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

/// Tells mmproj files apart without touching a weight.
///
/// It is a hash of the header (metadata and tensor list; `qvl.vision_id` in it is a hash over the beginnings of the
/// weights), the file's length and its modification time. A file that is changed with all of these kept is not noticed.
pub struct MmprojId([u8; 32]);

impl MmprojId {
    /// Of a mapped file and its header. Cost: reads the header, some tens of KiB.
    pub fn new(file: &MappedFile, gguf: &Gguf) -> Self {
        let n_header = usize::try_from(gguf.data_offset()).unwrap_or(usize::MAX).min(file.len());
        let mut hash = Sha256::new();
        hash.update(&file[..n_header]);
        hash.update((file.len() as u64).to_le_bytes());
        hash.update(nanoseconds(file.modified()).to_le_bytes());
        MmprojId(hash.finalize().into())
    }
}

impl Key {
    /// Of a picture as it goes into the tower: upright and resized. Cost: a hash over its pixels (600 KB for the real
    /// model: a millisecond or two).
    ///
    /// `computed_by` names what computes it. It, the version of this crate and the SIMD that ggml was built with count as well: they round differently.
    pub fn new(mmproj: &MmprojId, attention: Attention, computed_by: &str, picture: &Picture) -> Self {
        let mut hash = of_this_build(b"qvl embedding");
        // Its length first: what follows cannot be mistaken for a part of it.
        hash.update((computed_by.len() as u64).to_le_bytes());
        hash.update(computed_by);
        hash.update(mmproj.0);
        hash.update(match attention {
            Attention::Exact => [0],
            Attention::Flash => [1],
        });
        hash.update(picture.width().to_le_bytes());
        hash.update(picture.height().to_le_bytes());
        hash.update(picture.pixels());
        Key(hash.finalize().into())
    }

    /// Of what a text model holds after the beginning of a prompt that has this name. Version and SIMD count here, too.
    pub fn of_prompt(name: &[u8; 32]) -> Self {
        let mut hash = of_this_build(b"qvl prompt");
        hash.update(name);
        Key(hash.finalize().into())
    }

    /// Of anything.
    #[cfg(test)]
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        Key(Sha256::digest(bytes).into())
    }

    /// The hash itself.
    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A hash of what `what` is in, made by this version of the crate for this machine's SIMD.
fn of_this_build(what: &[u8]) -> Sha256 {
    let mut hash = Sha256::new();
    hash.update(what);
    hash.update(FORMAT.to_le_bytes());
    let built = simd_features().into_iter().filter(|f| f.built).map(|f| f.name).collect::<Vec<_>>().join(",");
    let build = format!("{} {} {built}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    // Its length first: what follows cannot be mistaken for a part of it.
    hash.update((build.len() as u64).to_le_bytes());
    hash.update(build);
    hash
}

impl fmt::Display for Key {
    /// 64 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Key {
    type Err = ();

    /// Of 64 lower-case hexadecimal digits, and nothing else.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(()),
        };
        let digits: [u8; 64] = text.as_bytes().try_into().map_err(|_| ())?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Key(bytes))
    }
}

/// Nanoseconds since 1970, before it negative; i128's least value where the system does not tell.
fn nanoseconds(time: Option<SystemTime>) -> i128 {
    let Some(time) = time else { return i128::MIN };
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    fn id(path: &Path) -> [u8; 32] {
        let file = MappedFile::open(path).unwrap();
        MmprojId::new(&file, &Gguf::parse(&file).unwrap()).0
    }

    /// A header of no tensor: magic, version, two counts and one key, 65 bytes with the text; then data that nobody reads.
    fn write(path: &Path, text: &str, data: &[u8], modified: SystemTime) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend_from_slice(&[0, 1].map(u64::to_le_bytes).concat());
        bytes.extend_from_slice(&1u64.to_le_bytes());
        bytes.extend_from_slice(b"k");
        bytes.extend_from_slice(&8u32.to_le_bytes());
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend_from_slice(data);
        std::fs::write(path, bytes).unwrap();
        File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    }

    #[test]
    fn an_mmproj_is_told_by_header_length_and_time_and_by_no_weight() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let time = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let of = |text: &str, data: &[u8], time: SystemTime| {
            write(&path, text, data, time);
            id(&path)
        };
        let first = of("abc", &[1; 64], time);
        assert_eq!(of("abc", &[2; 64], time), first);
        assert_ne!(of("abd", &[1; 64], time), first);
        assert_ne!(of("abc", &[1; 65], time), first);
        assert_ne!(of("abc", &[1; 64], time + Duration::from_nanos(100)), first);
        // Times before 1970 are times, too.
        assert_ne!(of("abc", &[1; 64], UNIX_EPOCH - Duration::from_secs(1_000_000)), first);
    }

    #[test]
    fn everything_counts() {
        let picture = |width, height, seed: u8| Picture::new(width, height, vec![seed; 24]).unwrap();
        let by = |id: u8, attention, by, picture: &Picture| Key::new(&MmprojId([id; 32]), attention, by, picture);
        let of = |id, attention, picture: &Picture| by(id, attention, "ggml", picture);
        let keys = [
            of(1, Attention::Exact, &picture(2, 4, 7)),
            of(2, Attention::Exact, &picture(2, 4, 7)),
            of(1, Attention::Flash, &picture(2, 4, 7)),
            of(1, Attention::Exact, &picture(4, 2, 7)),
            of(1, Attention::Exact, &picture(2, 4, 8)),
            by(1, Attention::Exact, "avx512", &picture(2, 4, 7)),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key), "{i}");
        }
        assert_eq!(of(1, Attention::Exact, &picture(2, 4, 7)), keys[0]);
        assert_ne!(Key::of_prompt(&[1; 32]), Key::of_prompt(&[2; 32]));
    }

    #[test]
    fn text_and_back() {
        let key = Key::of_bytes(b"x");
        let text = key.to_string();
        assert_eq!(text.parse(), Ok(key));
        for bad in [&text[1..], &text.to_uppercase(), &format!("{text}0"), "", &format!("{}é", &text[2..])] {
            assert_eq!(bad.parse::<Key>(), Err(()), "{bad}");
        }
    }
}
