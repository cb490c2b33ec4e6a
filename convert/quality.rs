//! `--report`: what quantising cost, measured before the files get their names, and kept in the text file.
//!
//! `qvl` beside this program runs both models. It is another process: the converter loads no model, and what one takes of the
//! memory is gone before the next.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use qvl::error::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::args::Args;
use crate::convert::convert;
use crate::output::Aside;
use crate::types::FileType;

/// A comparison that can be made: its program and its files are there.
pub struct Comparison {
    program: PathBuf,
    data: PathBuf,
    /// A model or what it said; none is a conversion to f16.
    reference: Option<PathBuf>,
}

impl Comparison {
    /// The one that was asked for, if any. Errors (kind usage): something that it needs is not there.
    pub fn asked(args: &Args) -> Result<Option<Self>> {
        let Some(data) = &args.report else { return Ok(None) };
        let own = std::env::current_exe().map_err(|e| Error::other("cannot find this program").because(e))?;
        let program = own.with_file_name(format!("qvl{}", std::env::consts::EXE_SUFFIX));
        let missing = |path: &Path, what: &str| Error::usage(format!("{what} is not there")).at(path);
        if !program.is_file() {
            return Err(missing(&program, "qvl, which measures for --report,"));
        }
        if let Some(path) = [Some(data), args.reference.as_ref()].into_iter().flatten().find(|path| !path.exists()) {
            return Err(missing(path, "this file"));
        }
        Ok(Some(Comparison { program, data: data.clone(), reference: args.reference.clone() }))
    }

    /// Compares two complete files (of a model in parts, the first), and writes the result into the text file's metadata. Errors are
    /// those of `qvl quality`, and of the conversion to f16 where that is the reference (it lies in the output directory meanwhile).
    pub fn run(&self, args: &Args, files: [&Path; 2], interrupted: &AtomicBool) -> Result<Value> {
        let Some(reference) = &self.reference else {
            let dir = Aside::new(&args.out)?;
            let exact = Args {
                text_type: FileType::F16,
                vision_type: FileType::F16,
                out: dir.path().to_owned(),
                tensor_type: Vec::new(),
                imatrix: None,
                report: None,
                split_max_size: None,
                split_max_tensors: None,
                ..args.clone()
            };
            let (done, _) = convert(&exact, interrupted)?;
            return self.compare(args, files, (done.model(), Some(done.mmproj())), interrupted);
        };
        self.compare(args, files, (reference, None), interrupted)
    }

    fn compare(
        &self,
        args: &Args,
        [text, mmproj]: [&Path; 2],
        (reference, reference_mmproj): (&Path, Option<&Path>),
        interrupted: &AtomicBool,
    ) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command.args(["quality", "-q", "--json", "--save", "-m"]).arg(text).arg("--mmproj").arg(mmproj);
        command.arg("--reference").arg(reference);
        if let Some(path) = reference_mmproj {
            command.arg("--reference-mmproj").arg(path);
        }
        if let Some(n) = args.threads {
            command.args(["-t", &n.to_string()]);
        }
        let failed = |e| Error::other("cannot run it").because(e).at(&self.program);
        let done = command.arg("--").arg(&self.data).stdin(Stdio::null()).output().map_err(failed)?;
        if interrupted.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted; nothing was written"));
        }
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !done.status.success() {
            let kinds =
                [ErrorKind::Usage, ErrorKind::Model, ErrorKind::Image, ErrorKind::Memory, ErrorKind::Interrupted];
            let code = done.status.code().and_then(|code| u8::try_from(code).ok());
            let kind = kinds.into_iter().find(|kind| Some(kind.exit_code()) == code).unwrap_or(ErrorKind::Other);
            let message = said(&done.stderr);
            return Err(Error::new(kind, message.strip_prefix("error: ").unwrap_or(&message).to_owned()).of("--report"));
        }
        serde_json::from_slice(&done.stdout).map_err(|e| Error::other("qvl quality gave no JSON").because(e))
    }
}
