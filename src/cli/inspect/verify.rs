//! `qvl inspect --verify`: what a run would prove of a file, and what reading all of it proves.

use qvl::error::{Error, Result};
use qvl::ggml::first_not_finite;
use qvl::gguf::{Checksum, Gguf, TensorInfo};
use qvl::names::{general, text as text_key, vision as vision_key};
use qvl::text::{self, TextHparams};
use qvl::vision::VisionModel;

use super::super::batch::go_on;

/// A file that has been read and is sound.
#[derive(Clone, Copy)]
pub struct Verified {
    /// What stood against damage that leaves every weight a number.
    pub checksum: Stated,
}

/// The checksum in a file's metadata.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stated {
    /// It is that of the data.
    Ok,
    /// There is none: the file is of another program, or of an older version of this one.
    None,
}

impl Stated {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Stated::Ok => "checksum ok",
            Stated::None => "no checksum in the file",
        }
    }

    /// For programs.
    pub fn name(self) -> &'static str {
        match self {
            Stated::Ok => "ok",
            Stated::None => "none",
        }
    }
}

/// Proves what a run would prove, that every weight is a finite number, and that the data is what was written. Errors (kind
/// model) name the key or tensor. Cost: reads the whole file.
pub fn verify(gguf: &Gguf, file: &[u8]) -> Result<Verified> {
    match gguf.opt_str(general::ARCHITECTURE)? {
        _ if text::is_adapter(gguf) => text::check_adapter_form(gguf)?,
        Some(text_key::ARCHITECTURE) => text::check(gguf, &TextHparams::read(gguf)?)?,
        Some(vision_key::ARCHITECTURE) => drop(VisionModel::new(file, gguf)?),
        _ => {}
    }
    let stated = stated(gguf)?;
    let mut found = Checksum::default();
    for tensor in gguf.tensors() {
        go_on()?;
        verify_tensor(tensor, file)?;
        // Right behind the other look at the same bytes, while they are in memory.
        if stated.is_some() {
            found.update(tensor.bytes(file));
        }
    }
    let Some(stated) = stated else { return Ok(Verified { checksum: Stated::None }) };
    let found = found.digits();
    if found != stated {
        return Err(Error::model(format!(
            "the file is damaged: the checksum of its tensors is {found:.16}.. (expected {stated:.16}.., its {}); copy or convert it again",
            general::CHECKSUM
        )));
    }
    Ok(Verified { checksum: Stated::Ok })
}

/// The checksum that the file says it has.
fn stated(gguf: &Gguf) -> Result<Option<&str>> {
    let stated = gguf.opt_str(general::CHECKSUM)?;
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match stated {
        Some(digits) if digits.len() != Checksum::N_DIGITS || !digits.bytes().all(is_digit) => {
            let shown: String = digits.chars().take(Checksum::N_DIGITS).collect();
            let expected = format!("{} lower-case hexadecimal digits", Checksum::N_DIGITS);
            Err(Error::model(format!("metadata key {} is {shown:?} (expected {expected})", general::CHECKSUM)))
        }
        stated => Ok(stated),
    }
}

fn verify_tensor(tensor: &TensorInfo, file: &[u8]) -> Result<()> {
    match first_not_finite(tensor.ty, tensor.bytes(file), tensor.dims[0] as usize) {
        Some((row, at, x)) => {
            Err(Error::model(format!("tensor {:?} holds {x} in row {row}, column {at}", tensor.name)))
        }
        None => Ok(()),
    }
}
