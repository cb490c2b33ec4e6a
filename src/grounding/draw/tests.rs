//! What is painted where, pixel by pixel.

use super::*;
use crate::grounding::regions;

/// Colours of the grounds that everything must be readable on.
const GROUNDS: [Rgb; 4] = [[0, 0, 0], [255, 255, 255], [128, 128, 128], COLOURS[0]];

fn plain(width: u32, height: u32, colour: Rgb) -> Picture {
    let pixels = colour.repeat((width * height) as usize);
    Picture::new(width, height, pixels).expect("has its length")
}

fn drawn(picture: &Picture, answer: &str) -> Picture {
    let mut copy = picture.clone();
    draw(&mut copy, &regions(answer).0);
    copy
}

fn pixel(picture: &Picture, x: i64, y: i64) -> Rgb {
    let at = (y * i64::from(picture.width()) + x) as usize * 3;
    picture.pixels()[at..at + 3].try_into().expect("three bytes")
}

/// The smallest rectangle that holds all pixels which differ.
fn changed(a: &Picture, b: &Picture) -> Option<Rect> {
    let (width, height) = (i64::from(a.width()), i64::from(a.height()));
    let all = (0..height).flat_map(|y| (0..width).map(move |x| [x, y]));
    let points: Vec<_> = all.filter(|[x, y]| pixel(a, *x, *y) != pixel(b, *x, *y)).collect();
    (!points.is_empty()).then(|| Rect::around(&points, 0))
}

/// Relative luminance of WCAG 2.
fn luminance(colour: Rgb) -> f64 {
    let linear = colour.map(|v| (f64::from(v) / 255.0).powf(2.2));
    0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
}

#[test]
fn a_box_is_a_line_in_its_casing() {
    for ground in GROUNDS {
        // 500 pixels: lines of 3, casings of 1.
        let before = plain(500, 500, ground);
        let after = drawn(&before, "<box>(200,300),(600,800)</box>");
        let (x1, y1, x2, y2) = (100, 150, 300, 400);
        let expect = |distance: i64| match distance.abs() {
            0 | 1 => COLOURS[0],
            2 => DARK,
            _ => ground,
        };
        for d in -5..=5 {
            let sides = [(x1 + d, 250), (x2 + d, 250), (200, y1 + d), (200, y2 + d)];
            sides.iter().for_each(|(x, y)| assert_eq!(pixel(&after, *x, *y), expect(d), "{x}, {y}"));
        }
        let outer = Rect::around(&[[x1, y1], [x2, y2]], 2);
        let inner = Rect::around(&[[x1, y1], [x2, y2]], -3);
        for (x, y) in (0..500).flat_map(|y| (0..500).map(move |x| (x, y))) {
            let point = Rect { x, y, width: 1, height: 1 };
            let on_line = outer.overlaps(&point) && !inner.overlaps(&point);
            assert!(on_line || pixel(&after, x, y) == ground, "{x}, {y}");
        }
    }
}

#[test]
fn a_quad_follows_its_corners() {
    let before = plain(500, 500, [255; 3]);
    let after = drawn(&before, "<quad>(200,200),(800,400),(600,800),(100,600)</quad>");
    for (x, y) in [(100, 100), (400, 200), (300, 400), (50, 300), (250, 150), (350, 300), (175, 350), (75, 200)] {
        assert_eq!(pixel(&after, x, y), COLOURS[0], "{x}, {y}");
    }
    for (x, y) in [(250, 250), (250, 140), (250, 160), (52, 100), (398, 398)] {
        assert_eq!(pixel(&after, x, y), [255; 3], "{x}, {y}");
    }
    assert_eq!(changed(&before, &after), Some(Rect::around(&[[50, 100], [400, 400]], 2)));
}

#[test]
fn a_colour_a_label() {
    let answer = "<ref>a</ref><box>(1,1),(2,2)</box><box>(3,3),(4,4)</box><ref>b</ref><box>(5,5),(6,6)</box> \
                  and <box>(7,7),(8,8)</box><ref>a</ref><box>(9,9),(10,10)</box>";
    assert_eq!(colours(&regions(answer).0), [0, 0, 1, 2, 0].map(|i| COLOURS[i]));
    let many: String = (0..25).map(|i| format!("<ref>{i}</ref><box>(1,1),(2,2)</box>")).collect();
    assert_eq!(colours(&regions(&many).0)[10..20], COLOURS);
}

#[test]
fn colours_are_readable_and_differ() {
    for (i, a) in COLOURS.iter().enumerate() {
        // WCAG's ratio for text.
        assert!((luminance(*a) + 0.05) / (luminance(DARK) + 0.05) >= 4.5, "{a:?}");
        for b in &COLOURS[..i] {
            let distance = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt();
            assert!(distance > 60.0, "{a:?} and {b:?}");
        }
    }
}

#[test]
fn a_label_stands_above_its_box_and_keeps_off_it() {
    let before = plain(448, 448, [255; 3]);
    let bare = drawn(&before, "<box>(300,300),(700,700)</box>");
    let after = drawn(&before, "<ref>dogs</ref><box>(300,300),(700,700)</box>");
    let plate = changed(&bare, &after).expect("a label");
    // Four letters of 16 pixels and a margin of 4; the outline's outermost pixel is at 134 - 2.
    assert_eq!((plate.x, plate.y + plate.height, plate.height), (132, 132, 16));
    assert_eq!(plate.width, TextSize::nearest(16).width("dogs") + 8);
    assert_eq!(pixel(&after, plate.x, plate.y), DARK);
    // Letters are there, more in their colour than in the plate's.
    let points = (plate.y..plate.y + 16).flat_map(|y| (plate.x..plate.x + plate.width).map(move |x| (x, y)));
    assert!(points.filter(|(x, y)| pixel(&after, *x, *y)[0] > 135).count() > 60);
}

#[test]
fn what_the_font_lacks_is_still_seen() {
    let before = plain(448, 448, [255; 3]);
    let with = |label: &str| drawn(&before, &format!("<ref>{label}</ref><box>(300,300),(700,700)</box>"));
    assert_ne!(with("👍").pixels(), with("").pixels());
    assert_eq!(with("👍").pixels(), with("🐕").pixels());
    let characters = ["e", "é", "ž", "д", "λ", "击", "掌", "犬", "か", "カ", "한", "、", "👍"].map(with);
    for (i, one) in characters.iter().enumerate() {
        assert!(!characters[..i].contains(one), "character {i}");
    }
}

/// On every ground a plate of full width, in which strokes are as bright as the outline.
#[test]
fn chinese_is_readable() {
    for (ground, side) in GROUNDS.iter().flat_map(|ground| [448, 1000].map(|side| (*ground, side))) {
        let before = plain(side, side, ground);
        let bare = drawn(&before, "<box>(300,300),(700,700)</box>");
        let after = drawn(&before, "<ref>击掌</ref><box>(300,300),(700,700)</box>");
        let plate = changed(&bare, &after).expect("a label");
        let line = plate.height;
        assert_eq!(plate.width, 2 * line + 2 * (line / 4), "two squares and the margins");
        let points = (plate.y..plate.y + line).flat_map(|y| (plate.x..plate.x + plate.width).map(move |x| (x, y)));
        let (mut n_text, mut n_plate, mut n_between) = (0, 0, 0);
        points.for_each(|(x, y)| match pixel(&after, x, y) {
            colour if colour == COLOURS[0] => n_text += 1,
            DARK => n_plate += 1,
            _ => n_between += 1,
        });
        let n = n_text + n_plate + n_between;
        assert!(n_text * 8 > n && n_plate * 3 > n && n_between * 3 < n, "{n_text}, {n_plate}, {n_between} of {n}");
    }
}

/// Whatever the model says and whatever the picture: no panic, and nothing but a label and an outline.
#[test]
fn hostile_answers_are_drawn_somehow() {
    let long = "a very long label ".repeat(50);
    let boxes = [
        "<box>(800,700),(100,200)</box>",
        "<box>(500,500),(500,500)</box>",
        "<box>(500,0),(500,1000)</box>",
        "<box>(0,0),(1000,1000)</box>",
        "<box>(-1000000,-5),(1000000,1000000)</box>",
        "<box>(2000,2000),(3000,3000)</box>",
        "<quad>(0,0),(1000,999),(0,1000),(1000,1)</quad>",
        "<quad>(5,5),(5,5),(5,5),(5,5)</quad>",
        "<quad>(-9,1001),(1001,-9),(500,0),(0,499)</quad>",
    ];
    let sizes = [1, 2, 3, 9, 15, 16, 17, 40, 64, 65, 300];
    for (width, height) in sizes.iter().flat_map(|w| sizes.map(|h| (*w, h))) {
        for label in ["", "x", "\u{7f}\n\t击👍\u{301}", &long] {
            let answer: String = boxes.iter().map(|b| format!("<ref>{label}</ref>{b}")).collect();
            let before = plain(width, height, [9, 99, 199]);
            assert_ne!(drawn(&before, &answer).pixels(), before.pixels(), "{width} x {height}");
        }
    }
    let before = plain(3000, 40, [9, 99, 199]);
    assert_ne!(drawn(&before, &boxes.concat()).pixels(), before.pixels());
}
