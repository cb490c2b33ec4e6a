//! The directory of a zip archive, proven as far as `torch.save` uses the format: entries that are stored as they are.
//!
//! Source: PKWARE's APPNOTE 6.3.10, sections 4.3 (records) and 4.5.3 (zip64).

use std::collections::HashMap;
use std::ops::Range;

use byteorder::{ByteOrder, LE};
use qvl::error::{Error, Result};

/// More entries than any checkpoint's shard has tensors.
const MAX_ENTRIES: u64 = 1 << 16;

const END: (&[u8; 4], usize) = (b"PK\x05\x06", 22);
const ZIP64_LOCATOR: (&[u8; 4], usize) = (b"PK\x06\x07", 20);
const ZIP64_END: (&[u8; 4], usize) = (b"PK\x06\x06", 56);
const CENTRAL: (&[u8; 4], usize) = (b"PK\x01\x02", 46);
const LOCAL: (&[u8; 4], usize) = (b"PK\x03\x04", 30);

/// A comment stands behind the end record; its length is 16 bits.
const MAX_COMMENT: usize = 0xffff;
const STORED: u16 = 0;
const ENCRYPTED: u16 = 1;
const ZIP64_EXTRA: u16 = 1;

/// The entries of an archive. Having one says: every range lies inside the file, holds the bytes of its entry as they
/// are, and no two ranges overlap.
pub struct Archive {
    entries: HashMap<String, Range<u64>>,
}

impl Archive {
    /// Proves the directory of `file`. Errors (kind model): not an archive, cut off, compressed, encrypted or in several
    /// parts; names that occur twice, ranges outside of the file or over each other. Cost: reads the directory and one
    /// local header an entry.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let directory = directory(file)?;
        let mut at = directory.bytes.start;
        let mut entries = HashMap::new();
        let mut spans = Vec::new();
        for _ in 0..directory.n_entries {
            let entry = central(file, at, directory.bytes.end)?;
            let (span, data) = local(file, &entry, directory.bytes.start).map_err(|e| e.of(&entry.name))?;
            spans.push(span);
            at = entry.end;
            if entries.insert(entry.name.clone(), data).is_some() {
                return Err(damaged(format!("{} is in the archive twice", entry.name)));
            }
        }
        if at != directory.bytes.end {
            return Err(damaged("its directory holds more than its entries"));
        }
        spans.sort_by_key(|span| span.start);
        if spans.windows(2).any(|pair| pair[0].end > pair[1].start) {
            return Err(damaged("its entries overlap"));
        }
        Ok(Archive { entries })
    }

    /// Where the bytes of an entry lie in the file.
    pub fn entry(&self, name: &str) -> Option<Range<u64>> {
        self.entries.get(name).cloned()
    }

    /// Names of all entries, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

struct Directory {
    n_entries: u64,
    bytes: Range<u64>,
}

struct Entry {
    name: String,
    /// Bytes of the entry.
    size: u64,
    /// Where its local header begins.
    header: u64,
    /// Where its record in the directory ends.
    end: u64,
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::model(format!("damaged zip archive: {what}; download the file again"))
}

/// The record at `at`, of the length that its kind has at least.
fn record<'a>(file: &'a [u8], at: u64, (magic, n): (&[u8; 4], usize)) -> Option<&'a [u8]> {
    let at = usize::try_from(at).ok()?;
    file.get(at..at.checked_add(n)?).filter(|record| record.starts_with(magic))
}

/// Finds the directory: by the end record or, where a field of that is full, by the one of zip64.
fn directory(file: &[u8]) -> Result<Directory> {
    let first = file.len().saturating_sub(END.1 + MAX_COMMENT);
    let is_end = |at: &usize| {
        let comment = |record: &[u8]| usize::from(LE::read_u16(&record[20..]));
        record(file, *at as u64, END).is_some_and(|record| at + END.1 + comment(record) == file.len())
    };
    let at = (first..file.len()).rev().find(is_end).ok_or_else(|| {
        Error::model(format!("the shard is truncated or corrupt ({} bytes); download it again", file.len()))
    })?;
    let end = &file[at..at + END.1];
    let in_parts = LE::read_u16(&end[4..]) != 0 || LE::read_u16(&end[6..]) != 0;
    let locator = (at as u64).checked_sub(ZIP64_LOCATOR.1 as u64).and_then(|at| record(file, at, ZIP64_LOCATOR));
    let (n_entries, size, start, limit) = match locator {
        Some(locator) => {
            let at = LE::read_u64(&locator[8..]);
            let end = record(file, at, ZIP64_END).ok_or_else(|| damaged("its zip64 end record is missing"))?;
            (LE::read_u64(&end[32..]), LE::read_u64(&end[40..]), LE::read_u64(&end[48..]), at)
        }
        None => {
            let (size, start) = (LE::read_u32(&end[12..]), LE::read_u32(&end[16..]));
            (LE::read_u16(&end[10..]).into(), size.into(), start.into(), at as u64)
        }
    };
    if in_parts {
        return Err(Error::model("a zip archive in several parts; only whole ones are read"));
    }
    if n_entries > MAX_ENTRIES {
        return Err(damaged(format!("{n_entries} entries (expected at most {MAX_ENTRIES})")));
    }
    match start.checked_add(size) {
        Some(end) if end <= limit => Ok(Directory { n_entries, bytes: start..end }),
        _ => Err(damaged("its directory is not inside the file")),
    }
}

/// The directory's record at `at`.
fn central(file: &[u8], at: u64, limit: u64) -> Result<Entry> {
    let cut = || damaged("its directory is cut off");
    let head = record(file, at, CENTRAL).ok_or_else(cut)?;
    let [n_name, n_extra, n_comment] = [28, 30, 32].map(|i| usize::from(LE::read_u16(&head[i..])));
    let end = at + (CENTRAL.1 + n_name + n_extra + n_comment) as u64;
    if end > limit {
        return Err(cut());
    }
    // The directory ends inside the file, which is in memory.
    let variable = &file[at as usize + CENTRAL.1..end as usize];
    let name = String::from_utf8_lossy(&variable[..n_name]).into_owned();
    let (flags, method) = (LE::read_u16(&head[8..]), LE::read_u16(&head[10..]));
    if method != STORED {
        return Err(Error::model(format!(
            "{name} is compressed (zip method {method}); only archives as torch.save writes them are read: unpack this \
             one and pack it again without compression (zip -0 -r)"
        )));
    }
    if flags & ENCRYPTED != 0 {
        return Err(Error::model(format!("{name} is encrypted; only archives as torch.save writes them are read")));
    }
    let [packed, size, header] = [20, 24, 42].map(|i| LE::read_u32(&head[i..]));
    let extra = zip64_extra(&variable[n_name..n_name + n_extra]);
    // The extra field has, in this order, those values that are full in the record.
    let mut wide = extra.chunks_exact(8).map(LE::read_u64);
    let mut value = |narrow: u32| match narrow {
        u32::MAX => wide.next().ok_or_else(|| damaged(format!("{name} has no zip64 sizes"))),
        n => Ok(n.into()),
    };
    let (size, packed) = (value(size)?, value(packed)?);
    let header = value(header)?;
    if packed != size {
        return Err(damaged(format!("{name} is stored as it is but has two sizes, {packed} and {size}")));
    }
    Ok(Entry { name, size, header, end })
}

/// The body of the zip64 field among extra fields; empty without one.
fn zip64_extra(mut extra: &[u8]) -> &[u8] {
    while extra.len() >= 4 {
        let (id, n) = (LE::read_u16(extra), usize::from(LE::read_u16(&extra[2..])));
        let Some(body) = extra.get(4..4 + n) else { break };
        if id == ZIP64_EXTRA {
            return body;
        }
        extra = &extra[4 + n..];
    }
    &[]
}

/// (header and data, data) of an entry, inside the first `limit` bytes of the file.
fn local(file: &[u8], entry: &Entry, limit: u64) -> Result<(Range<u64>, Range<u64>)> {
    let wrong = |what: &str| damaged(format!("the entry {what}"));
    let head = record(file, entry.header, LOCAL).ok_or_else(|| wrong("has no local header where one should be"))?;
    let [n_name, n_extra] = [26, 28].map(|i| usize::from(LE::read_u16(&head[i..])));
    let name = entry.header as usize + LOCAL.1;
    if file.get(name..name + n_name).is_none_or(|name| String::from_utf8_lossy(name) != entry.name) {
        return Err(wrong("has another name in its local header"));
    }
    let start = (name + n_name + n_extra) as u64;
    match start.checked_add(entry.size) {
        Some(end) if end <= limit => Ok((entry.header..end, start..end)),
        _ => Err(wrong("is not inside the file")),
    }
}
