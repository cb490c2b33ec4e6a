//! The language model in several files, in llama.cpp's convention: for file systems and hosts that take no larger ones.

use std::path::Path;

use qvl::error::{Error, Result};
use qvl::gguf::{DEFAULT_ALIGNMENT, Layout, Metadata, Part, TensorSpec, part_path};

use crate::args::Args;
use crate::plan::{FilePlan, PlannedTensor};
use crate::report::bytes_text;

/// How large a file may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, header and all.
    pub n_bytes: Option<u64>,
    /// Tensors.
    pub n_tensors: Option<u32>,
    /// Whether the first file gets a report when all are written, which it must have room for.
    pub report: bool,
}

impl Limits {
    /// Those of the command line.
    pub fn of(args: &Args) -> Self {
        Limits { n_bytes: args.split_max_size, n_tensors: args.split_max_tensors, report: args.report.is_some() }
    }

    /// Whether there is one.
    pub fn is_some(self) -> bool {
        self.n_bytes.is_some() || self.n_tensors.is_some()
    }
}

/// A file to be written: what is in it, and where.
pub struct Planned {
    /// Its tensors and name.
    pub plan: FilePlan,
    /// Their places.
    pub layout: Layout,
}

/// The files of a plan: one, or as many as the limits ask for, of which the first has the metadata. Errors (kind usage): a tensor or
/// the metadata alone is larger than a file may be.
pub fn files(plan: &FilePlan, metadata: &Metadata, limits: Limits) -> Result<Vec<Planned>> {
    let whole = plan.layout(metadata)?;
    let n_tensors = plan.tensors.len();
    /// The keys of a report with the names of two files.
    const REPORT_BYTES: u64 = 2048;
    let more = if limits.report { REPORT_BYTES } else { 0 };
    let fits = limits.n_bytes.is_none_or(|most| whole.file_bytes + more <= most)
        && limits.n_tensors.is_none_or(|most| n_tensors <= most as usize);
    if fits {
        return Ok(vec![Planned { plan: plan.clone(), layout: whole }]);
    }
    let shares = shares(&plan.tensors, whole.header.len() as u64 + more, limits)?;
    let count = shares.len();
    let stem = plan.file_name.strip_suffix(".gguf").unwrap_or(&plan.file_name);
    let file = |(no, tensors): (usize, Vec<PlannedTensor>)| {
        let file_name = part_path(Path::new(stem), no, count).to_string_lossy().into_owned();
        let part = FilePlan { file_name, tensors, ..plan.clone() };
        let mut keys = if no == 0 { metadata.clone() } else { Metadata::default() };
        Part { no, count, n_tensors }.record(&mut keys);
        let layout = if no == 0 {
            part.layout(&keys)?
        } else {
            let specs: Vec<TensorSpec> = part.tensors.iter().map(PlannedTensor::spec).collect();
            Layout::new(&keys, &specs, DEFAULT_ALIGNMENT)?
        };
        Ok(Planned { plan: part, layout })
    };
    shares.into_iter().enumerate().map(file).collect()
}

/// Tensors in order, as many in a file as it may hold. The first one also has to hold a header of at most `header_bytes`.
fn shares(tensors: &[PlannedTensor], header_bytes: u64, limits: Limits) -> Result<Vec<Vec<PlannedTensor>>> {
    /// An entry in the list of tensors: name, extents, type and offset, with their lengths.
    const ENTRY_BYTES: u64 = 128;
    /// The header of a part that is not the first, without its tensors.
    const KEYS_BYTES: u64 = 512;
    let most_bytes = limits.n_bytes.unwrap_or(u64::MAX);
    let most_tensors = limits.n_tensors.map_or(usize::MAX, |n| n as usize);
    let too_large = |what: String, n: u64| {
        Error::usage(format!(
            "{what} takes {}, more than the {} of --split-max-size",
            bytes_text(n),
            bytes_text(most_bytes)
        ))
    };
    if header_bytes > most_bytes {
        return Err(too_large("the metadata alone".into(), header_bytes));
    }
    let mut shares = vec![Vec::new()];
    let mut n_bytes = header_bytes + KEYS_BYTES;
    for tensor in tensors {
        let size = tensor.n_bytes.next_multiple_of(DEFAULT_ALIGNMENT) + ENTRY_BYTES;
        let share = shares.last_mut().map_or(0, |share: &mut Vec<PlannedTensor>| share.len());
        if n_bytes.saturating_add(size) > most_bytes || share >= most_tensors {
            if size + KEYS_BYTES > most_bytes {
                return Err(too_large(format!("tensor {} alone", tensor.name), tensor.n_bytes));
            }
            shares.push(Vec::new());
            n_bytes = KEYS_BYTES;
        }
        n_bytes += size;
        shares.last_mut().into_iter().for_each(|share| share.push(tensor.clone()));
    }
    Ok(shares)
}
