//! What there is to do: lines of a JSONL file, or the pictures of a directory.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use qvl::error::{Error, Result};
use qvl::grounding::Selection;
use qvl::image::{self, ImageSource};
use serde::Deserialize;
use serde_json::Value;

/// Longest line in bytes; pictures may stand in it as data: addresses.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// One thing to ask.
#[derive(Debug)]
pub struct Item {
    /// Names it in the output: a string or a number.
    pub id: Value,
    /// Pictures, in the order in which they are shown.
    pub images: Vec<ImageSource>,
    /// The question.
    pub prompt: String,
    /// Parts of the pictures that it is about.
    pub regions: Vec<Selection>,
    /// What this item asks of the generation, beside the command line.
    pub wishes: Wishes,
    /// What the answer should be, where somebody knows. Of no concern to a batch, whatever stands there.
    pub answer: Option<Value>,
}

/// Settings that a line may change for itself; they beat the command line's.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Wishes {
    /// Tokens at most.
    #[serde(alias = "n", alias = "max_tokens")]
    pub predict: Option<usize>,
    /// Temperature.
    #[serde(alias = "temperature")]
    pub temp: Option<f32>,
    /// Seed.
    pub seed: Option<u32>,
    /// System message.
    pub system: Option<String>,
}

/// A line as it is written. Other keys are the user's own and are passed over.
#[derive(Deserialize)]
struct Line {
    id: Option<Value>,
    image: Option<String>,
    images: Option<Vec<String>>,
    #[serde(alias = "question")]
    prompt: Option<String>,
    region: Option<Value>,
    answer: Option<Value>,
    #[serde(flatten)]
    wishes: Wishes,
}

/// A part of the work, for one of several machines: every `of`-th item from item `nth`, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    nth: usize,
    of: usize,
}

impl Shard {
    /// `2/5`.
    pub fn parse(text: &str) -> std::result::Result<Shard, String> {
        let number = |s: &str| s.parse::<usize>().ok();
        match text.split_once('/').and_then(|(nth, of)| Some((number(nth)?, number(of)?))) {
            Some((nth, of)) if (1..=of).contains(&nth) => Ok(Shard { nth, of }),
            _ => Err("expected i/n with i from 1 to n, like 2/5".to_owned()),
        }
    }

    /// Whether item `index`, counted from 0, is in it.
    fn has(self, index: usize) -> bool {
        index % self.of == self.nth - 1
    }
}

/// Items in order: each with the id that names it, or what is wrong with it.
pub struct Items {
    source: Source,
    shard: Shard,
    prompt: Option<String>,
    /// Items so far, those of other shards included.
    n_seen: usize,
    /// Their ids.
    ids: HashSet<String>,
}

enum Source {
    Lines { lines: BufReader<File>, path: PathBuf, n_lines: usize },
    Files(std::vec::IntoIter<PathBuf>),
}

/// What an item is called in the output, and the item.
pub type Named = (Value, Result<Item>);

impl Items {
    /// The items of a file or directory. `prompt` is asked where a line has none. Errors (kind usage): it cannot be read, or
    /// is a directory without pictures or prompt.
    pub fn open(path: &Path, prompt: Option<&str>, shard: Shard) -> Result<Self> {
        let source = if path.is_dir() {
            if prompt.is_none() {
                return Err(Error::usage("what is the question about these pictures? give it with -p").at(path));
            }
            let files = image::files_in(path)?;
            if files.is_empty() {
                return Err(Error::usage("no pictures in this directory").at(path));
            }
            Source::Files(files.into_iter())
        } else {
            let file = File::open(path).map_err(|e| Error::usage("cannot read the input").because(e).at(path))?;
            Source::Lines { lines: BufReader::new(file), path: path.to_owned(), n_lines: 0 }
        };
        Ok(Items { source, shard, prompt: prompt.map(str::to_owned), n_seen: 0, ids: HashSet::new() })
    }

    /// How many there are. Cost: reads the whole input once.
    pub fn count(path: &Path, shard: Shard) -> Result<usize> {
        let mut items = Items::open(path, Some(""), shard)?;
        let mut n = 0;
        while items.next()?.is_some() {
            n += 1;
        }
        Ok(n)
    }

    /// The next one of this shard. Errors: the input cannot be read any further. What is wrong with a line is said in its
    /// place, and the next one can be asked for.
    pub fn next(&mut self) -> Result<Option<Named>> {
        loop {
            let index = self.n_seen;
            let Some(mut named) = self.any()? else { return Ok(None) };
            self.n_seen += 1;
            if !self.ids.insert(named.0.to_string()) {
                // Under its own name it would be taken for the other, and never be done.
                let message = format!("the id {} was used before; give each item its own", named.0);
                named = (Value::from(format!("item {}", index + 1)), Err(Error::usage(message)));
            }
            if self.shard.has(index) {
                return Ok(Some(named));
            }
        }
    }

    fn any(&mut self) -> Result<Option<Named>> {
        match &mut self.source {
            Source::Files(files) => Ok(files.next().map(|path| {
                let id = Value::from(path.file_name().unwrap_or_default().to_string_lossy());
                let prompt = self.prompt.clone().unwrap_or_default();
                let images = vec![ImageSource::Path(path)];
                let (regions, wishes) = (Vec::new(), Wishes::default());
                let item = Item { id: id.clone(), images, prompt, regions, wishes, answer: None };
                (id, Ok(item))
            })),
            Source::Lines { lines, path, n_lines } => loop {
                let mut bytes = Vec::new();
                let failed = |e| Error::usage("cannot read the input").because(e).at(path);
                let n = lines.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes).map_err(failed)?;
                if n == 0 {
                    return Ok(None);
                }
                *n_lines += 1;
                if n as u64 > MAX_LINE_BYTES && !bytes.ends_with(b"\n") {
                    lines.skip_until(b'\n').map_err(failed)?;
                }
                // Editors on Windows put a byte order mark in front of a file.
                if *n_lines == 1 && bytes.starts_with("\u{feff}".as_bytes()) {
                    bytes.drain(.."\u{feff}".len());
                }
                let text = String::from_utf8_lossy(&bytes);
                if text.trim().is_empty() {
                    continue;
                }
                let dir = path.parent().unwrap_or(Path::new(""));
                return Ok(Some(item(&bytes, *n_lines, dir, self.prompt.as_deref())));
            },
        }
    }
}

/// The item of line `number`, counted from 1.
fn item(bytes: &[u8], number: usize, dir: &Path, prompt: Option<&str>) -> Named {
    // A line that is no JSON at all is named by its number.
    let unnamed = Value::from(format!("line {number}"));
    let wrong = |what: String| Error::usage(format!("line {number}: {what}"));
    if bytes.len() as u64 > MAX_LINE_BYTES {
        return (unnamed, Err(wrong("it is longer than 256 MiB".to_owned())));
    }
    let line: Line = match serde_json::from_slice(bytes) {
        Ok(line) => line,
        Err(e) => {
            // The id of a line whose other parts are wrong is worth having.
            let id = serde_json::from_slice::<Value>(bytes).ok().and_then(|v| v.get("id").cloned()).filter(is_name);
            return (id.unwrap_or(unnamed), Err(wrong(format!("not an item: {e}"))));
        }
    };
    let id = match line.id {
        None | Some(Value::Null) => unnamed,
        Some(id) if is_name(&id) => id,
        Some(_) => return (unnamed, Err(wrong("its id is neither text nor a number".to_owned()))),
    };
    let images = match (line.image, line.images) {
        (Some(_), Some(_)) => return (id, Err(wrong("it has both image and images; give one of them".to_owned()))),
        (Some(one), None) => vec![one],
        (None, more) => more.unwrap_or_default(),
    };
    let images: Result<Vec<_>> = images.iter().map(|image| source(image, dir)).collect();
    let images = match images {
        Ok(images) => images,
        Err(e) => return (id, Err(wrong(e.to_string()))),
    };
    let regions = match line.region.as_ref().map_or(Ok(Vec::new()), regions) {
        Ok(regions) => regions,
        Err(e) => return (id, Err(wrong(e.to_string()))),
    };
    let Some(prompt) = line.prompt.or_else(|| prompt.map(str::to_owned)) else {
        return (id, Err(wrong("it has no prompt; give one for all with -p".to_owned())));
    };
    let temp_is_sound = line.wishes.temp.is_none_or(|t| (0.0..=100.0).contains(&t));
    if !temp_is_sound {
        return (id, Err(wrong("its temp is not a number from 0 to 100".to_owned())));
    }
    (id.clone(), Ok(Item { id, images, prompt, regions, wishes: line.wishes, answer: line.answer }))
}

fn is_name(id: &Value) -> bool {
    id.is_string() || id.is_number()
}

/// The regions of a line: one, or a list of them; each as `[x1, y1, x2, y2]`, or as text like `--region` takes it.
fn regions(value: &Value) -> Result<Vec<Selection>> {
    let list = match value {
        Value::Array(list) if list.first().is_none_or(|value| !value.is_number()) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let one = |value: &Value| match value {
        Value::String(text) => Selection::parse(text),
        _ => match serde_json::from_value::<[f64; 4]>(value.clone()) {
            Ok(corners) => Selection::new(corners),
            Err(_) => Err(Error::usage(format!("expected a region [x1, y1, x2, y2] in pixels, found {value}"))),
        },
    };
    list.iter().map(one).collect()
}

/// A picture of a line. Nothing is fetched: the user typed no address. A path that is not there as it stands may be meant
/// from where the input lies.
fn source(text: &str, dir: &Path) -> Result<ImageSource> {
    match ImageSource::of_argument(text.as_ref())? {
        ImageSource::Url(_) => {
            Err(Error::image("addresses in a batch are not fetched; download the picture first").of(text))
        }
        ImageSource::Path(path) if path.is_relative() && !path.exists() && dir.join(&path).exists() => {
            Ok(ImageSource::Path(dir.join(path)))
        }
        // Standard input is no picture of a line.
        ImageSource::Stdin => Ok(ImageSource::Path(text.into())),
        source => Ok(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(line: &str) -> Named {
        item(line.as_bytes(), 7, Path::new("nowhere"), Some("What?"))
    }

    #[test]
    fn lines_are_items() {
        let (id, item) = read(r#"{"id": 3, "image": "a.png", "prompt": "Who?", "temp": 0, "n": 5, "mine": [1]}"#);
        let item = item.unwrap();
        assert_eq!(
            (id, item.prompt.as_str(), item.wishes.temp, item.wishes.predict),
            (json!(3), "Who?", Some(0.0), Some(5))
        );
        assert_eq!(item.images, [ImageSource::Path("a.png".into())]);
        let regions = |text: &str| read(&format!(r#"{{"image": "a.png", "region": {text}}}"#)).1.unwrap().regions;
        let one = Selection::parse("1,2,3,4.5").unwrap();
        assert_eq!(regions("[3, 4.5, 1, 2]"), std::slice::from_ref(&one));
        assert_eq!(regions(r#"[[1, 2, 3, 4.5], "1,2,3,4.5"]"#), [one.clone(), one]);
        assert_eq!(regions(r#""2:1,2,3,4""#), [Selection::parse("2:1,2,3,4").unwrap()]);
        assert_eq!((regions("null"), regions("[]")), (Vec::new(), Vec::new()));
        let (id, item) = read(r#"{"images": ["a.png", "-"]}"#);
        assert_eq!((id, item.unwrap().prompt.as_str()), (json!("line 7"), "What?"));
    }

    #[test]
    fn wrong_lines_are_named() {
        let check = |line: &str, id: Value, part: &str| {
            let (found, item) = read(line);
            let error = item.unwrap_err().to_string();
            assert!(found == id && error.starts_with("line 7: ") && error.contains(part), "{found} {error}");
        };
        check("{", json!("line 7"), "not an item");
        check("[1]", json!("line 7"), "not an item");
        check(r#"{"id": "a", "image": 3}"#, json!("a"), "not an item");
        check(r#"{"id": ["a"], "image": "x"}"#, json!("line 7"), "its id");
        check(r#"{"id": 1, "image": "x", "images": []}"#, json!(1), "both image and images");
        check(r#"{"id": 1, "image": "http://x/a.png"}"#, json!(1), "not fetched");
        check(r#"{"id": 1, "image": "s3://x/a.png"}"#, json!(1), "not read");
        check(r#"{"id": 1, "temp": -1}"#, json!(1), "temp");
        check(r#"{"id": 1, "region": [1, 2, 3]}"#, json!(1), "expected a region [x1, y1, x2, y2] in pixels");
        check(r#"{"id": 1, "region": [[1, 2, 3, 4], 5]}"#, json!(1), "found 5");
        check(r#"{"id": 1, "region": "1,2"}"#, json!(1), "expected x1,y1,x2,y2");
        check(r#"{"id": 1, "region": [1, 2, 1, 4]}"#, json!(1), "nothing inside");
        let (_, item) = super::item(b"{\"id\": 1}", 7, Path::new(""), None);
        assert!(item.unwrap_err().to_string().contains("no prompt"));
    }

    #[test]
    fn shards_are_disjoint_and_complete() {
        for bad in ["0/3", "4/3", "1/0", "a/b", "3", ""] {
            assert!(Shard::parse(bad).is_err(), "{bad}");
        }
        let shards: Vec<Shard> = (1..=3).map(|i| Shard::parse(&format!("{i}/3")).unwrap()).collect();
        for index in 0..20 {
            assert_eq!(shards.iter().filter(|s| s.has(index)).count(), 1);
            assert!(Shard::parse("1/1").unwrap().has(index));
        }
    }
}
