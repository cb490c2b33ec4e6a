//! The other way round: a part of a picture that the user points at, as a `<box>` in the question.

use std::num::NonZeroUsize;

use crate::error::{Error, Result};

/// What stands in a question where a box is to be.
const PLACE: &str = "{}";

/// A rectangle of a picture that is shown. Having one says: its corners are in order, and it is not empty. It says nothing
/// about the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Number of the picture, from 1; else it is the last one.
    picture: Option<NonZeroUsize>,
    /// x1, y1, x2, y2 in pixels, finite, x1 < x2 and y1 < y2.
    corners: [f64; 4],
}

impl Selection {
    /// `x1,y1,x2,y2`: two opposite corners in any order, in pixels of the last picture as a person sees it; with `k:` in front
    /// in pixels of picture k, from 1. Errors: kind usage.
    pub fn parse(text: &str) -> Result<Selection> {
        let number = |part: &str| part.trim().parse::<f64>().ok();
        let read = || {
            let (picture, rest) = match text.split_once(':') {
                Some((k, rest)) => (Some(k.trim().parse().ok()?), rest),
                None => (None, text),
            };
            let corners = rest.split(',').map(number).collect::<Option<Vec<_>>>()?.try_into().ok()?;
            Some((picture, corners))
        };
        let Some((picture, corners)) = read() else {
            let expected = "expected x1,y1,x2,y2 in pixels, as 40,60,200,180, or as 2:40,60,200,180 of picture 2";
            return Err(Error::usage(format!("{expected}; found {text:?}")));
        };
        Ok(Selection { picture, ..Selection::new(corners)? })
    }

    /// A rectangle of the last picture by two opposite corners x1, y1, x2, y2 in pixels. Errors (kind usage): it is empty, or
    /// a number is none.
    pub fn new([x1, y1, x2, y2]: [f64; 4]) -> Result<Selection> {
        let corners = [x1.min(x2), y1.min(y2), x1.max(x2), y1.max(y2)];
        let is_area = x1 != x2 && y1 != y2 && [x1, y1, x2, y2].iter().all(|v| v.is_finite());
        match is_area {
            true => Ok(Selection { picture: None, corners }),
            false => Err(Error::usage(format!("the region {x1},{y1},{x2},{y2} has nothing inside"))),
        }
    }

    /// The box in thousandths of its picture, truncated and below 1000 as the model was taught (spec section 9). `sizes`: width
    /// and height in pixels of all pictures that are shown. Errors (kind usage): no such picture, or it is not inside.
    fn to_box(&self, sizes: &[(u32, u32)]) -> Result<String> {
        let number = self.picture.map_or(sizes.len(), NonZeroUsize::get);
        let Some(&(width, height)) = number.checked_sub(1).and_then(|k| sizes.get(k)) else {
            return Err(match sizes.len() {
                0 => Error::usage("a region needs a picture that it is of, and none is shown"),
                n => Error::usage(format!("a region of picture {number}, but the last one is picture {n}")),
            });
        };
        let [x1, y1, x2, y2] = self.corners;
        if x1 < 0.0 || y1 < 0.0 || x2 > f64::from(width) || y2 > f64::from(height) {
            let size = format!("picture {number}, which has {width} x {height} pixels");
            return Err(Error::usage(format!("the region {x1},{y1},{x2},{y2} is not inside {size}")));
        }
        let thousandth = |v: f64, extent: u32| ((v * 1000.0 / f64::from(extent)) as i64).min(999);
        let [x1, x2] = [x1, x2].map(|x| thousandth(x, width));
        let [y1, y2] = [y1, y2].map(|y| thousandth(y, height));
        Ok(format!("<box>({x1},{y1}),({x2},{y2})</box>"))
    }
}

/// How many boxes of a question have a place of their own, `{}`.
pub fn n_places(question: &str) -> usize {
    question.matches(PLACE).count()
}

/// `question` with these selections as boxes: each `{}` in it takes the next one, and those that are left over stand in
/// front. Without selections it is as it was.
///
/// `sizes`: width and height in pixels of all pictures that are shown, in their order. Errors (kind usage): no such picture,
/// or a selection that is not inside its picture.
pub fn select(question: &str, selections: &[Selection], sizes: &[(u32, u32)]) -> Result<String> {
    let boxes = selections.iter().map(|selection| selection.to_box(sizes)).collect::<Result<Vec<_>>>()?;
    let (placed, in_front) = boxes.split_at(n_places(question).min(boxes.len()));
    let mut out = in_front.concat();
    let mut parts = question.splitn(placed.len() + 1, PLACE);
    out += parts.next().unwrap_or_default();
    placed.iter().zip(parts).for_each(|(one, part)| {
        out += one;
        out += part;
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [(u32, u32); 2] = [(1000, 500), (480, 420)];

    fn selected(question: &str, selections: &[&str]) -> Result<String> {
        let selections = selections.iter().map(|text| Selection::parse(text)).collect::<Result<Vec<_>>>()?;
        select(question, &selections, &SIZES)
    }

    #[test]
    fn pixels_become_thousandths() {
        let check = |text: &str, expect: &str| assert_eq!(selected("", &[text]).unwrap(), expect, "{text}");
        check("0,0,480,420", "<box>(0,0),(999,999)</box>");
        check("45,55,176,182", "<box>(93,130),(366,433)</box>");
        check("176,182,45,55", "<box>(93,130),(366,433)</box>");
        check(" 176, 55 ,45, 182", "<box>(93,130),(366,433)</box>");
        check("2:0.5,1e1,48,42", "<box>(1,23),(100,100)</box>");
        check("1:999,100,1000,500", "<box>(999,200),(999,999)</box>");
    }

    #[test]
    fn boxes_have_their_places() {
        let check = |question: &str, n: usize, expect: &str| {
            let all = ["0,0,48,42", "0,0,96,84", "0,0,144,126"];
            let found = selected(question, &all[..n]).unwrap();
            let short = [("1", "100"), ("2", "200"), ("3", "300")].iter().fold(found, |text, (name, v)| {
                text.replace(&format!("<box>(0,0),({v},{v})</box>"), &format!("[{name}]"))
            });
            assert_eq!(short, expect, "{question} and {n}");
        };
        check("What is it?", 0, "What is it?");
        check("What is {}?", 0, "What is {}?");
        check("What is it?", 1, "[1]What is it?");
        check("What is {}?", 1, "What is [1]?");
        check("{} or {}?", 2, "[1] or [2]?");
        check("{} or {}?", 1, "[1] or {}?");
        check("Is it {}?", 3, "[2][3]Is it [1]?");
        check("", 2, "[1][2]");
    }

    #[test]
    fn mistakes_are_usage_errors() {
        let check = |text: &str, part: &str| {
            let error = selected("", &[text]).expect_err(text);
            assert!(error.kind().exit_code() == 2 && error.to_string().contains(part), "{text}: {error}");
        };
        for text in ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1 2 3 4", ":1,2,3,4", "-1:1,2,3,4", "0:1,2,3,4", "1,2,3,"] {
            check(text, "expected x1,y1,x2,y2 in pixels");
        }
        check("1,2,1,9", "nothing inside");
        check("1,2,nan,9", "nothing inside");
        check("1,2,inf,9", "nothing inside");
        check("-1,2,5,9", "not inside picture 2, which has 480 x 420 pixels");
        check("1,2,481,9", "not inside picture 2");
        check("1:1,2,5,501", "not inside picture 1, which has 1000 x 500 pixels");
        check("3:1,2,5,9", "the last one is picture 2");
        let none = select("", &[Selection::parse("1,2,3,4").unwrap()], &[]).unwrap_err();
        assert!(none.to_string().contains("none is shown"), "{none}");
    }
}
