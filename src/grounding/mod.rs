//! Regions in answers: `<ref>phrase</ref><box>(x1,y1),(x2,y2)</box>` and `<quad>` with four corners, numbers from 0 to
//! 1000 of the picture's width and height; their drawing; and regions in questions. Source: spec sections 7 and 9.

mod canvas;
mod draw;
mod export;
mod labels;
mod selection;
mod text;

pub use draw::draw;
pub use export::{Frame, coco, crop, csv};
pub use selection::{Selection, n_places, select};

use serde::Serialize;

/// The rules below the root.
macro_rules! rules {
    () => {
        r#"
region ::= ("<ref>" text "</ref>")? (box | quad)
box    ::= "<box>" pair "</box>"
quad   ::= "<quad>" pair "," pair "</quad>"
pair   ::= "(" corner "),(" corner ")"
corner ::= number "," number
number ::= [0-9] | [1-9] [0-9]{1,2} | "1000"
text   ::= [^<]*
"#
    };
}

/// Answers in which every region is well formed, as GBNF for [`Grammar::parse`](crate::grammar::Grammar::parse): text,
/// boxes and quads in any order, each region with a phrase in front or without. No other `<` is possible.
///
/// A model may write the tags as special tokens or letter by letter; the text is the same.
pub const GRAMMAR: &str = concat!("root ::= text (region text)*", rules!());

/// The rest of an answer that the prompt has begun with `<ref>PHRASE</ref><box>`, likewise: the box, and more regions of the
/// same phrase.
pub const GRAMMAR_AFTER_BOX: &str = concat!("root ::= pair \"</box>\" (box | quad)*", rules!());

/// A region that an answer named.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Region {
    /// The phrase in front of it; a second box after one phrase has the same.
    pub label: Option<String>,
    /// Corners (x, y) in thousandths, as the model wrote them: two of a box, four of a quad.
    pub corners_1000: Vec<[i64; 2]>,
}

impl Region {
    /// Smallest box around the corners in thousandths: x1, y1, x2, y2.
    pub fn box_1000(&self) -> [i64; 4] {
        let axis = |i: usize| self.corners_1000.iter().map(move |c| c[i]);
        let (low, high) = (|i| axis(i).min().unwrap_or(0), |i| axis(i).max().unwrap_or(0));
        [low(0), low(1), high(0), high(1)]
    }

    /// The same box in pixels of a picture of `width` × `height`, truncated as the reference draws it and kept inside.
    pub fn box_pixels(&self, width: u32, height: u32) -> [i64; 4] {
        let [x1, y1, x2, y2] = self.box_1000();
        [to_pixel(x1, width), to_pixel(y1, height), to_pixel(x2, width), to_pixel(y2, height)]
    }

    /// The corners (x, y) of a quad in thousandths, as the model wrote them; a box has none.
    pub fn quad_1000(&self) -> Option<[[i64; 2]; 4]> {
        self.corners_1000.as_slice().try_into().ok()
    }

    /// The same corners in pixels of a picture of `width` × `height`, truncated and kept inside like a box's.
    pub fn quad_pixels(&self, width: u32, height: u32) -> Option<[[i64; 2]; 4]> {
        Some(self.quad_1000()?.map(|[x, y]| [to_pixel(x, width), to_pixel(y, height)]))
    }

    /// Four corners (x, y) in pixels of a picture of `width` × `height`, each the next one's neighbour: a quad's own, or those
    /// of the box.
    fn polygon(&self, width: u32, height: u32) -> [[i64; 2]; 4] {
        let [x1, y1, x2, y2] = self.box_pixels(width, height);
        self.quad_pixels(width, height).unwrap_or([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    }
}

/// Thousandths of `extent` to pixels, 0 to `extent`, truncated.
fn to_pixel(v: i64, extent: u32) -> i64 {
    (v.clamp(0, 1000) as f64 / 1000.0 * f64::from(extent)) as i64
}

/// All well-formed regions of `text` in order, and how many malformed ones were passed over.
///
/// A phrase belongs to the regions that follow it directly. Cost: one pass.
pub fn regions(text: &str) -> (Vec<Region>, usize) {
    let (mut found, mut n_malformed) = (Vec::new(), 0);
    let mut label: Option<String> = None;
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        if !rest[..at].trim().is_empty() {
            label = None;
        }
        rest = &rest[at..];
        if let Some((inner, after)) = tagged(rest, "<ref>", "</ref>") {
            label = Some(inner.trim().to_owned());
            rest = after;
        } else if let Some((inner, after)) = tagged(rest, "<box>", "</box>").or(tagged(rest, "<quad>", "</quad>")) {
            let n_corners = if rest.starts_with("<box>") { 2 } else { 4 };
            match corners(inner).filter(|c| c.len() == n_corners) {
                Some(corners_1000) => found.push(Region { label: label.clone(), corners_1000 }),
                None => n_malformed += 1,
            }
            rest = after;
        } else {
            n_malformed += usize::from(rest.starts_with("<box>") || rest.starts_with("<quad>"));
            label = None;
            rest = &rest[1..];
        }
    }
    (found, n_malformed)
}

fn tagged<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, &'a str)> {
    text.strip_prefix(open)?.split_once(close)
}

/// `(1,2),(3,4)` to pairs; white space may stand between all parts.
fn corners(text: &str) -> Option<Vec<[i64; 2]>> {
    let pair = |(nth, part): (usize, &str)| {
        let part = part.trim_start();
        let part = if nth == 0 { part } else { part.strip_prefix(',')?.trim_start() };
        let (x, y) = part.strip_prefix('(')?.split_once(',')?;
        let number = |s: &str| s.trim().parse::<i64>().ok().filter(|n| n.abs() <= 1_000_000);
        Some([number(x)?, number(y)?])
    };
    text.trim_end().strip_suffix(')')?.split(')').enumerate().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::grammar::{Grammar, Matcher};
    use crate::tokenizer::TokenId;

    fn check(text: &str, expect: &[(Option<&str>, [i64; 4])], malformed: usize) {
        let (found, n_malformed) = regions(text);
        let found: Vec<_> = found.iter().map(|r| (r.label.as_deref(), r.box_1000())).collect();
        assert_eq!((found, n_malformed), (expect.to_vec(), malformed), "{text}");
    }

    /// Random answers of a vocabulary with all tags, which are taken often.
    #[test]
    fn the_grammar_knows_only_well_formed_regions() {
        let tokenizer = crate::tokenizer::samples::toy();
        let ids = tokenizer.special_ids();
        let vocabulary = Arc::new(tokenizer.vocabulary(&[ids.eod, ids.im_end, ids.im_start]));
        let grammar = Arc::new(Grammar::parse(GRAMMAR).unwrap());
        let (mut state, mut n_regions, mut n_quads) = (7u64, 0, 0);
        for _ in 0..20 {
            let (mut matcher, mut answer) = (Matcher::new(grammar.clone(), vocabulary.clone()).unwrap(), Vec::new());
            while answer.len() < 2000 || !matcher.may_end() {
                let mut allowed = matcher.allowed().unwrap();
                allowed.retain(|id| TokenId(*id) < ids.eod || ids.is_grounding(TokenId(*id)));
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let tag = allowed.iter().find(|id| ids.is_grounding(TokenId(**id))).filter(|_| state >> 62 == 0);
                let id = *tag.unwrap_or(&allowed[(state >> 33) as usize % allowed.len()]);
                answer.extend_from_slice(tokenizer.bytes(TokenId(id)).unwrap());
                matcher.accept(id);
            }
            let text = String::from_utf8(answer).unwrap();
            let (found, n_malformed) = regions(&text);
            assert_eq!(n_malformed, 0, "{text}");
            n_quads += found.iter().filter(|r| r.quad_1000().is_some()).count();
            assert!(found.iter().flat_map(|r| &r.corners_1000).flatten().all(|n| (0..=1000).contains(n)), "{text}");
            n_regions += found.len();
        }
        assert!(n_regions > 500 && n_quads > 100, "{n_regions}, {n_quads} of them quads");
    }

    #[test]
    fn reads_boxes_and_quads() {
        check("", &[], 0);
        check("<ref>击掌</ref><box>(536,509),(588,602)</box>", &[(Some("击掌"), [536, 509, 588, 602])], 0);
        check(
            "<ref> Two</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box> and <box>(9,9),(10,10)</box>",
            &[(Some("Two"), [1, 2, 3, 4]), (Some("Two"), [5, 6, 7, 8]), (None, [9, 9, 10, 10])],
            0,
        );
        check("<quad>(1,2),(9,3),(8,7),(2,6)</quad>", &[(None, [1, 2, 9, 7])], 0);
        // As the paper prints them.
        check("<ref>It is</ref><quad> (1,2), (9,3), (8,7),\n(2,6)</quad>", &[(Some("It is"), [1, 2, 9, 7])], 0);
        check("<box>(1,2)</box><box>(a,b),(c,d)</box><box>(1,2),(3", &[], 3);
        check("<box>(1,2)(3,4)</box><box>(1,2),(3,4),</box><box>()</box><box>)</box><box></box>", &[], 5);
        check("<quad>(1,2),(9,3)</quad><box>(1,2),(9,3),(8,7),(2,6)</box>", &[], 2);
        check("1 < 2 <br> <ref>x</ref> y <box>( 1 , 2 ),(3,4)</box>", &[(None, [1, 2, 3, 4])], 0);
    }

    #[test]
    fn pixels_are_truncated_and_kept_inside() {
        let region = Region { label: None, corners_1000: vec![[536, 509], [588, 602]] };
        assert_eq!(region.box_pixels(640, 480), [343, 244, 376, 288]);
        let outside = Region { label: None, corners_1000: vec![[-5, 0], [2000, 999]] };
        assert_eq!(outside.box_pixels(100, 100), [0, 0, 100, 99]);
        assert_eq!(outside.quad_pixels(100, 100), None);
        let quad = Region { label: None, corners_1000: vec![[505, -5], [1000, 509], [500, 2000], [0, 500]] };
        assert_eq!(quad.quad_pixels(100, 100), Some([[50, 0], [100, 50], [50, 100], [0, 50]]));
        assert_eq!(quad.box_pixels(100, 100), [0, 0, 100, 100]);
    }
}
