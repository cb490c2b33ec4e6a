//! The output: a line for each item that is done, written whole or not at all, so that a run can go on where another was
//! stopped at any moment.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use qvl::error::{Error, Result};
use serde_json::Value;

/// Whether items that failed before are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// They stay as they are.
    Keep,
    /// They are done again; the line of the failure stays in front of the new one.
    Retry,
}

/// An output file with what it says is done.
pub struct Journal {
    file: File,
    path: PathBuf,
    done: HashSet<String>,
}

impl Journal {
    /// Opens or makes it, for this process alone. A last line without its end, which a killed run left, is cut off. Errors:
    /// it cannot be read or written; another run writes it, or it holds a line that no batch wrote: then it stays as it is.
    pub fn open(path: &Path, failed: Failed) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::usage("the output is a directory; name a file").at(path));
        }
        let cannot = |e: std::io::Error| Error::other("cannot write the output").because(e).at(path);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(cannot)?;
        // Of two runs each would take the line that the other is writing for half a line, and cut it off. The lock is the
        // open file's and ends with the process, however that ends. A file system that knows no locks is no reason to stop:
        // they guard against a mistake.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let what_to_do = "let it end, or name another output (each --shard its own)";
            return Err(Error::other(format!("another qvl batch is writing this output; {what_to_do}")).at(path));
        }
        let (mut done, mut n_kept, mut n_lines) = (HashSet::new(), 0, 0);
        let mut lines = BufReader::new(&file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let n = lines.read_until(b'\n', &mut line).map_err(cannot)?;
            if !line.ends_with(b"\n") {
                break;
            }
            n_kept += n as u64;
            n_lines += 1;
            let value: Value = serde_json::from_slice(&line).unwrap_or(Value::Null);
            let (text, error) = (value.get("text"), value.get("error"));
            match value.get("id").filter(|_| text.or(error).is_some()) {
                Some(_) if failed == Failed::Retry && error.is_some() => {}
                Some(id) => {
                    done.insert(id.to_string());
                }
                None => {
                    let message = format!("line {n_lines} is not from qvl batch; name another output");
                    return Err(Error::usage(message).at(path));
                }
            }
        }
        file.set_len(n_kept).map_err(cannot)?;
        file.seek(SeekFrom::Start(n_kept)).map_err(cannot)?;
        Ok(Journal { file, path: path.to_owned(), done })
    }

    /// Whether an item needs not be done.
    pub fn has(&self, id: &Value) -> bool {
        self.done.contains(&id.to_string())
    }

    /// Waits until the disk has all lines. Errors: it has not; some disks tell only now that they are full.
    pub fn sync(&self) -> Result<()> {
        match self.file.sync_all() {
            // What cannot be waited for is as safe as it can be.
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
            Err(e) => Err(Error::other("cannot write the output").because(e).at(&self.path)),
            Ok(()) => Ok(()),
        }
    }

    /// Appends a line at once. Errors: it cannot be written (a full disk); what was written of it is cut off again.
    pub fn append(&mut self, line: &Value) -> Result<()> {
        let cannot = |e: std::io::Error| Error::other("cannot write the output").because(e).at(&self.path);
        let before = self.file.stream_position().map_err(cannot)?;
        // One call: a kill between two would leave half a line, which the next run would have to cut off.
        if let Err(e) = self.file.write_all(format!("{line}\n").as_bytes()) {
            let _ = self.file.set_len(before);
            return Err(cannot(e));
        }
        if let Some(id) = line.get("id") {
            self.done.insert(id.to_string());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A directory with an output that says this.
    fn written(content: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn half_a_line_is_cut_off_and_written_again() {
        let (_dir, path) = written("{\"id\":1,\"text\":\"\"}\n{\"id\":\"b\",\"te");
        let mut journal = Journal::open(&path, Failed::Keep).unwrap();
        assert!(journal.has(&json!(1)) && !journal.has(&json!("b")) && !journal.has(&json!("1")));
        journal.append(&json!({"id": "b", "text": "x\ny"})).unwrap();
        assert!(journal.has(&json!("b")));
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"id\":1,\"text\":\"\"}\n{\"id\":\"b\",\"text\":\"x\\ny\"}\n"
        );
    }

    #[test]
    fn failures_are_done_or_not() {
        let (_dir, path) = written("{\"id\":1,\"error\":\"no\"}\n{\"id\":2,\"text\":\"\"}\n");
        let journal = Journal::open(&path, Failed::Keep).unwrap();
        assert!(journal.has(&json!(1)) && journal.has(&json!(2)));
        drop(journal);
        let journal = Journal::open(&path, Failed::Retry).unwrap();
        assert!(!journal.has(&json!(1)) && journal.has(&json!(2)));
    }

    #[test]
    fn another_file_is_not_touched() {
        for content in ["{\"id\":1,\"image\":\"a.png\"}\n{\"id\":2", "a,b\n1,2", "what?\n"] {
            let (_dir, path) = written(content);
            assert!(Journal::open(&path, Failed::Keep).is_err(), "{content}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }
}
