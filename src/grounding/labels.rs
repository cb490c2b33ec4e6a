//! Labels beside outlines: coloured text on an opaque dark plate.

use unicode_normalization::UnicodeNormalization;

use super::canvas::{Canvas, Rect, Rgb};
use super::draw::DARK;
use super::text::{TextSize, draw_text};

/// Draws `label` for the outline that fills `around` and whose lines are `stroke` pixels wide, and says where its plate
/// is, so that the next ones keep off it as it keeps off those before (`taken`). Nothing is drawn where there is no room for
/// one letter, or no place left: of two plates one over the other neither can be read.
pub(super) fn draw_label(
    canvas: &mut Canvas<'_>,
    label: &str,
    around: Rect,
    stroke: i64,
    size: TextSize,
    colour: Rgb,
    taken: &[Rect],
) -> Option<Rect> {
    let margin = size.line() / 4;
    let text = shortened(label, canvas.extent().width - 2 * margin, size);
    if text.is_empty() {
        return None;
    }
    let width = size.width(&text) + 2 * margin;
    let plate = place(width, size.line(), around, stroke, canvas.extent(), taken)?;
    canvas.fill(plate, DARK);
    draw_text(canvas, plate.x + margin, plate.y, size, colour, &text);
    Some(plate)
}

/// `label` on one line of at most `room` pixels, two dots for what is cut off. Letters and the accents upon them become one
/// character where there is one.
fn shortened(label: &str, room: i64, size: TextSize) -> String {
    let label: String = label.nfc().collect();
    let line = label.split_whitespace().collect::<Vec<_>>().join(" ");
    if size.width(&line) <= room {
        return line;
    }
    // Where there is little room beside the dots, the beginning says more.
    let dots = size.width("..");
    let (room, dots) = if room < 2 * dots { (room, "") } else { (room - dots, "..") };
    let mut width = 0;
    let fits = |c: &char| {
        width += size.width(c.encode_utf8(&mut [0; 4]));
        width <= room
    };
    line.chars().take_while(fits).chain(dots.chars()).collect()
}

/// Where a plate goes: above the outline, below it, beside it or inside, whichever is the first that is in the picture and
/// off other plates.
fn place(width: i64, height: i64, around: Rect, stroke: i64, extent: Rect, taken: &[Rect]) -> Option<Rect> {
    let (last_x, last_y) = (extent.width - width, extent.height - height);
    if last_x < 0 || last_y < 0 {
        return None;
    }
    let (right, bottom) = (around.x + around.width, around.y + around.height);
    let (along, down) = (around.x.clamp(0, last_x), around.y.clamp(0, last_y));
    let places = [
        (along, around.y - height),
        (along, bottom),
        (right, down),
        (around.x - width, down),
        ((around.x + stroke).clamp(0, last_x), (around.y + stroke).clamp(0, last_y)),
        ((around.x + stroke).clamp(0, last_x), (bottom - stroke - height).clamp(0, last_y)),
    ];
    let in_picture = |&(x, y): &(i64, i64)| (0..=last_x).contains(&x) && (0..=last_y).contains(&y);
    let mut rects = places.into_iter().filter(in_picture).map(|(x, y)| Rect { x, y, width, height });
    rects.find(|rect| !taken.iter().any(|other| other.overlaps(rect)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_labels_are_cut() {
        let size = TextSize::nearest(16);
        let letter = size.width("a");
        // In as much room as `n` letters have.
        let check = |label: &str, n: i64, expect: &str| {
            assert_eq!(shortened(label, n * letter, size), expect, "{label:?} in {n}");
        };
        check("a dog", 5, "a dog");
        check(" a\n\tdog ", 5, "a dog");
        check("two dogs", 6, "two ..");
        check("two dogs", 3, "two");
        check("dog", 0, "");
        check("dog", -1, "");
        check("", 9, "");
        check("e\u{301}te\u{301}", 3, "\u{e9}t\u{e9}");
        // A letter is 7 pixels wide, these are 16.
        check("击掌击掌击", 12, "击掌击掌击");
        check("击掌击掌击", 9, "击掌击..");
        check("击掌", 3, "击");
        check("击掌", 2, "");
    }

    #[test]
    fn plates_go_where_there_is_room() {
        let extent = Rect { x: 0, y: 0, width: 100, height: 100 };
        let check = |around: (i64, i64, i64, i64), taken: &[Rect], expect: Option<(i64, i64)>| {
            let around = Rect { x: around.0, y: around.1, width: around.2, height: around.3 };
            let found = place(40, 10, around, 3, extent, taken);
            assert_eq!(found.map(|r| (r.x, r.y)), expect, "{around:?}");
        };
        check((20, 30, 30, 30), &[], Some((20, 20)));
        check((20, 5, 30, 30), &[], Some((20, 35)));
        check((20, 5, 30, 90), &[], Some((50, 5)));
        check((60, 5, 30, 90), &[], Some((20, 5)));
        check((30, 5, 40, 90), &[], Some((33, 8)));
        check((-2, -2, 104, 104), &[], Some((1, 1)));
        // Kept inside on the right.
        check((90, 30, 5, 5), &[], Some((60, 20)));
        let above = Rect { x: 55, y: 15, width: 40, height: 10 };
        check((20, 30, 30, 30), &[above], Some((20, 60)));
        let top = Rect { height: 50, ..extent };
        check((-2, -2, 104, 104), &[top], Some((1, 89)));
        check((20, 30, 30, 30), &[extent], None);
        assert_eq!(place(101, 10, extent, 3, extent, &[]), None);
        assert_eq!(place(10, 101, extent, 3, extent, &[]), None);
    }
}
