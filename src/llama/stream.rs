//! Layers of a mapped model that leave memory after use: what does not fit is read from the disk anew for every pass.
//!
//! The system alone would do worse: it drops the pages that were used longest ago, which in a pass over all weights are those
//! needed next, so that all of the file is read again for every token. Here the first layers stay and only the others go.
//!
//! llama.cpp maps the file itself and keeps the address to itself; the system tells it (`/proc/self/maps`).

use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Layers that do not stay, of a model that is mapped. Cheap to clone but for its file.
pub(super) struct Stream {
    /// The first layer that does not stay.
    first: usize,
    /// Bytes of each layer in the file, those that stay included.
    layers: Vec<Range<u64>>,
    maps: Vec<Map>,
    /// Each file, and where it begins.
    files: Vec<(File, u64)>,
}

/// A piece of a file in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Map {
    address: usize,
    /// Bytes of the file, counted from the beginning of all.
    range: Range<u64>,
    /// Number of the file.
    nth: usize,
}

#[derive(Clone, Copy)]
enum Advice {
    /// Gone after this.
    Forget,
    /// Wanted soon.
    Fetch,
}

impl Stream {
    /// Over the mappings of files in this process, each where it begins, which a model was just loaded from. All layers from `first` on leave memory.
    /// Errors: the system does not tell where the file is mapped (only Linux does).
    pub(super) fn new(parts: &[(PathBuf, u64)], layers: Vec<Range<u64>>, first: usize) -> Result<Stream> {
        let (mut maps, mut files) = (Vec::new(), Vec::new());
        for (nth, (path, start)) in parts.iter().enumerate() {
            let failed = |what: &str| Error::other(format!("cannot give weights back to the system: {what}")).at(path);
            let file = File::open(path).map_err(|e| failed("the file is gone").because(e))?;
            let real = path.canonicalize().map_err(|e| failed("the file is gone").because(e))?;
            let text = fs::read_to_string("/proc/self/maps").map_err(|e| failed("it tells no addresses").because(e))?;
            let found = maps_of(&text, &real.to_string_lossy());
            // A first part may hold nothing but metadata, and then is not mapped.
            if found.is_empty() && parts.len() == 1 {
                return Err(failed("the file is not mapped"));
            }
            let placed = |map: Map| Map { range: map.range.start + start..map.range.end + start, nth, ..map };
            maps.extend(found.into_iter().map(placed));
            files.push((file, *start));
        }
        let stream = Stream { first, layers, maps, files };
        (first..stream.layers.len()).for_each(|il| stream.advise(il, Advice::Forget));
        Ok(stream)
    }

    /// Layer `il` begins: the one before it is done, the one behind it comes next.
    pub(super) fn begins(&self, il: usize) {
        let n = self.layers.len();
        let (before, next) = ((il + n - 1) % n, (il + 1) % n);
        if before >= self.first && before != il {
            self.advise(before, Advice::Forget);
        }
        if next >= self.first && next != il {
            self.advise(next, Advice::Fetch);
        }
    }

    /// Errors are ignored: pages that stay are no harm to the result.
    fn advise(&self, il: usize, advice: Advice) {
        #[cfg(target_os = "linux")]
        {
            use rustix::{fs as file, mm};
            let page = rustix::param::page_size() as u64;
            // Whole pages inside the layer: its neighbours' are not touched.
            let inside = self.layers[il].start.next_multiple_of(page)..self.layers[il].end / page * page;
            for map in &self.maps {
                let range = inside.start.max(map.range.start)..inside.end.min(map.range.end);
                let Some(n) = range.end.checked_sub(range.start).filter(|n| *n > 0) else { continue };
                let address = map.address + (range.start - map.range.start) as usize;
                let (in_memory, in_cache) = match advice {
                    Advice::Forget => (mm::Advice::LinuxDontNeed, file::Advice::DontNeed),
                    Advice::Fetch => (mm::Advice::WillNeed, file::Advice::WillNeed),
                };
                // SAFETY: these pages are of a read-only shared mapping of a file, made by llama.cpp and alive as long as
                // the model, which outlives the context that calls this. Dropping such pages changes no byte that anybody
                // reads: they come back from the file when they are touched.
                let _ = unsafe { mm::madvise(address as *mut _, n as usize, in_memory) };
                let (file, start) = &self.files[map.nth];
                let _ = file::fadvise(file, range.start - start, std::num::NonZeroU64::new(n), in_cache);
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (il, advice, &self.files, &self.maps);
    }
}

/// Where a file is mapped, from `/proc/self/maps`: `start-end flags offset device inode path`, numbers in hexadecimal digits.
fn maps_of(text: &str, path: &str) -> Vec<Map> {
    let map = |line: &str| {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let flags = fields.next()?;
        let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let (start, end, offset) = (hex(start)?, hex(end)?, hex(fields.next()?)?);
        let name = fields.nth(2)?.trim_start();
        let is_ours = name == path && flags.starts_with("r--s");
        is_ours.then(|| Map { address: start as usize, range: offset..offset + (end - start), nth: 0 })
    };
    text.lines().filter_map(map).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_found() {
        let text = "7f0000000000-7f0000003000 r--s 00001000 fe:00 42                         /a b/model.gguf\n\
                    7f0000005000-7f0000006000 r--p 00000000 fe:00 42                         /a b/model.gguf\n\
                    7f0000007000-7f0000008000 r--s 00000000 fe:00 43                         /a b/model.gguf (deleted)\n\
                    7f0000009000-7f000000a000 rw-p 00000000 00:00 0 \nrubbish\n";
        let expect = Map { address: 0x7f00_0000_0000, range: 0x1000..0x4000, nth: 0 };
        assert_eq!(maps_of(text, "/a b/model.gguf"), [expect]);
    }
}
