//! `--annotate`: the last picture with the answer's regions drawn on it.

use std::io::{BufWriter, Write};
use std::path::Path;

use qvl::error::{Error, Result};
use qvl::grounding::{self, Region};
use qvl::image::{FileFormat, ImageSource, Picture, encode};

use super::{output, print_error};

/// A picture to be written. Having one means: its format is known, and a file could be made there.
pub struct Annotation<'a> {
    path: &'a Path,
    format: FileFormat,
}

impl<'a> Annotation<'a> {
    /// Proves what can be proven before anything is loaded. Errors: an extension of no known format (kind usage), a
    /// place where nothing can be written.
    pub fn new(path: &'a Path) -> Result<Self> {
        let format = FileFormat::of(path)?;
        output::check(path)?;
        Ok(Annotation { path, format })
    }

    /// Proves that the last of these `pictures`, read from `sources`, can be written. Errors (kind usage): there is none,
    /// it is too large for the format, or it would overwrite one of them.
    pub fn check(&self, sources: &[ImageSource], pictures: &[Picture]) -> Result<()> {
        let last = pictures.last().ok_or_else(|| Error::usage("--annotate needs a picture; show one with -i"))?;
        self.format.check_size(last).map_err(|e| e.at(self.path))?;
        let is_target = |path: &Path| match (path.canonicalize(), self.path.canonicalize()) {
            (Ok(shown), Ok(target)) => shown == target,
            _ => false,
        };
        if sources.iter().filter_map(ImageSource::path).any(is_target) {
            return Err(Error::usage("this is the picture that is shown; writing here would replace it").at(self.path));
        }
        Ok(())
    }

    /// Draws regions on the picture and writes it, and says on stderr what was drawn. `found`: what
    /// [`grounding::regions`] found in the answer. Cost: no copy of the pixels.
    pub fn write(&self, mut picture: Picture, found: &(Vec<Region>, usize), quiet: bool) -> Result<()> {
        let (regions, n_malformed) = found;
        grounding::draw(&mut picture, regions);
        let failed = |e: std::io::Error| Error::other("cannot write").because(e).at(self.path);
        let mut out = BufWriter::new(output::temporary(self.path)?);
        encode(&picture, self.format, &mut out).map_err(|e| e.at(self.path))?;
        out.flush().map_err(failed)?;
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.persist(self.path).map_err(failed)?;
        if !quiet {
            print_error(&format!("wrote {}: {}\n", self.path.display(), summary(regions.len(), *n_malformed)));
        }
        Ok(())
    }
}

/// What is on the picture, and what is not.
fn summary(n_regions: usize, n_malformed: usize) -> String {
    let drawn = match n_regions {
        0 => "the answer has no regions".to_owned(),
        1 => "1 region".to_owned(),
        n => format!("{n} regions"),
    };
    match n_malformed {
        0 => drawn,
        n => format!("{drawn} ({n} malformed, not drawn)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_on_the_written_picture() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.png");
        let found = grounding::regions("<ref>dog</ref><box>(100,200),(600,900)</box><box>(1,2)</box>");
        let mut expect = Picture::new(300, 200, vec![200; 300 * 200 * 3]).expect("has its length");
        let annotation = Annotation::new(&path).expect("can be written");
        annotation.write(expect.clone(), &found, true).expect("is written");
        grounding::draw(&mut expect, &found.0);
        let written = qvl::image::load(&path, qvl::image::Orientation::AsStored).expect("is read");
        assert!(written == expect);
        #[cfg(unix)]
        {
            // Readable for others like any file, if the umask lets it.
            let mode = |path: &Path| std::os::unix::fs::MetadataExt::mode(&path.metadata().expect("is there"));
            let other = dir.path().join("other");
            std::fs::write(&other, "").expect("is written");
            assert_eq!(mode(&path), mode(&other));
        }
    }

    #[test]
    fn says_what_is_on_the_picture() {
        let check = |n_regions, n_malformed, expect: &str| assert_eq!(summary(n_regions, n_malformed), expect);
        check(0, 0, "the answer has no regions");
        check(1, 0, "1 region");
        check(2, 1, "2 regions (1 malformed, not drawn)");
        check(0, 3, "the answer has no regions (3 malformed, not drawn)");
    }
}
