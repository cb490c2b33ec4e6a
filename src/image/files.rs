//! Tests of whole files: every colour mode against Pillow, and everything that must be refused.

use super::*;
use crate::error::ErrorKind;

/// One line of `tests/data/picture-modes.json`: a small file, and what Pillow 11.3 makes of it.
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    /// Largest difference of a byte: 0 but for lossy formats (another decoder) and CMYK TIFF (rounded down by the decoder).
    tolerance: u8,
    /// The file, in hexadecimal.
    file: String,
    #[serde(flatten)]
    stored: Expected,
    /// After `ImageOps.exif_transpose`, where that changes anything.
    upright: Option<Expected>,
}

#[derive(serde::Deserialize)]
struct Expected {
    width: u32,
    height: u32,
    /// `[height, width, 3]`, in hexadecimal.
    rgb: String,
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).expect("hexadecimal") as u8;
    text.as_bytes().chunks_exact(2).map(|two| digit(two[0]) << 4 | digit(two[1])).collect()
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../tests/data/picture-modes.json")).expect("parses")
}

fn file(name: &str) -> Vec<u8> {
    unhex(&cases().iter().find(|case| case.name == name).expect("is in the list").file)
}

fn refused(bytes: &[u8], expect: &str) {
    let error = decode(bytes, Orientation::Upright).expect_err("must be refused");
    let line = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Image);
    assert!(line.contains(expect), "{line:?} should contain {expect:?}");
}

#[test]
fn every_mode_is_read_as_pillow_reads_it() {
    let check = |case: &Case, orientation, expect: &Expected| {
        let name = &case.name;
        let picture = decode(&unhex(&case.file), orientation).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((picture.width(), picture.height()), (expect.width, expect.height), "{name}");
        let rgb = unhex(&expect.rgb);
        let worst = picture.pixels().iter().zip(&rgb).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(case.tolerance), "{name}, {orientation:?}: differs by {worst:?}");
    };
    for case in cases() {
        check(&case, Orientation::AsStored, &case.stored);
        check(&case, Orientation::Upright, case.upright.as_ref().unwrap_or(&case.stored));
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for name in
        ["rgb.png", "q75s2.jpg", "prog.jpg", "cmyk100.jpg", "a.gif", "ll.webp", "a.bmp", "rgb_None.tiff", "a.ppm"]
    {
        let bytes = file(name);
        // Nothing of the picture is missing without PNG's last chunk, or GIF's end of data and trailer.
        let spare = [(".png", 12), (".gif", 4)].iter().find(|(end, _)| name.ends_with(end)).map_or(0, |(_, n)| *n);
        let needed = bytes.len() - spare;
        for length in 0..needed {
            let result = decode(&bytes[..length], Orientation::Upright);
            assert!(result.is_err(), "{name} cut to {length} of {} bytes was accepted", bytes.len());
        }
    }
}

#[test]
fn damaged_files_never_panic() {
    for case in cases() {
        let good = unhex(&case.file);
        let mut state = 1u32;
        let mut random = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        for _ in 0..60 {
            let mut bad = good.clone();
            for _ in 0..=random(4) {
                let at = random(bad.len());
                bad[at] = [0, 255, 128, 1, random(256) as u8][random(5)];
            }
            // Any answer will do.
            let _ = decode(&bad, Orientation::Upright);
        }
    }
}

#[test]
fn a_huge_header_is_refused_before_memory_is_taken() {
    let mut png = file("rgb.png");
    png[16..24].copy_from_slice(&[0x7F, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF]);
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    refused(&png, "limit is 178956970");
    refused(b"P6 100000 100000 255\n", "limit is 178956970");
    refused(b"P6 2000000 1 255\n", "limit of one side is 1048576");
    let mut jpeg = file("q100s0.jpg");
    let sof = jpeg.windows(2).position(|two| two == [0xFF, 0xC0]).expect("has a frame header");
    jpeg[sof + 5..sof + 9].copy_from_slice(&[0xFF; 4]);
    refused(&jpeg, "limit is 178956970");
}

/// CRC-32 as PNG chunks carry it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn says_what_is_wrong_with_a_file() {
    refused(b"", "empty");
    refused(b"hello, world", "JPEG, PNG, WebP");
    refused(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "convert it first");
    refused(b"version https://git-lfs.github.com/spec/v1\n", "git-lfs");
    refused(&file("q75s2.jpg")[..300], "JPEG");
    let error = load(std::path::Path::new("no/such.png"), Orientation::Upright).expect_err("is missing");
    assert_eq!(error.kind().exit_code(), 4);
    assert!(error.to_string().starts_with("no/such.png: "), "{error}");
}
