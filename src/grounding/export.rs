//! Regions in the formats of other tools: COCO, CSV, and pictures cut out.

use serde_json::{Value, json};

use super::Region;
use crate::error::Result;
use crate::image::Picture;

/// A picture that regions refer to, by what it is called and its size in pixels.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What it is called.
    pub path: &'a str,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// COCO's object detection format: one image, an annotation for each region, a category for each label in order of
/// appearance; ids count from 1. The segmentation is the box or quad, `bbox` the box around it, `area` the area inside in
/// square pixels.
pub fn coco(frame: &Frame<'_>, regions: &[Region], unnamed: &str) -> Value {
    let mut names: Vec<&str> = Vec::new();
    let mut annotations = Vec::new();
    for (k, region) in regions.iter().enumerate() {
        let name = region.label.as_deref().unwrap_or(unnamed);
        let category = names.iter().position(|known| *known == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        let [x1, y1, x2, y2] = region.box_pixels(frame.width, frame.height);
        let polygon = region.polygon(frame.width, frame.height);
        annotations.push(json!({
            "id": k + 1, "image_id": 1, "category_id": category + 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area(&polygon), "segmentation": [polygon.as_flattened()], "iscrowd": 0,
        }));
    }
    let categories: Vec<Value> = names.iter().enumerate().map(|(k, name)| json!({"id": k + 1, "name": name})).collect();
    json!({
        "images": [{"id": 1, "file_name": frame.path, "width": frame.width, "height": frame.height}],
        "annotations": annotations,
        "categories": categories,
    })
}

/// Area inside a polygon whose sides do not cross, in square pixels, a whole number where it is one (the shoelace formula).
fn area(polygon: &[[i64; 2]; 4]) -> Value {
    let side = |i: usize| {
        let ([ax, ay], [bx, by]) = (polygon[i], polygon[(i + 1) % 4]);
        ax * by - bx * ay
    };
    let twice = (0..4).map(side).sum::<i64>().abs();
    if twice % 2 == 0 { (twice / 2).into() } else { (twice as f64 / 2.0).into() }
}

/// A table with a head line; fields with commas, quotes or line breaks are quoted (RFC 4180), lines end in a line feed.
/// Where there is a quad, a last column `quad` holds its corners as `x1 y1 x2 y2 x3 y3 x4 y4`, and nothing for boxes; x1 to y2
/// are the box around it.
pub fn csv(frame: &Frame<'_>, regions: &[Region], unnamed: &str) -> String {
    let has_quads = regions.iter().any(|region| region.quad_1000().is_some());
    let mut out = format!("image,width,height,label,x1,y1,x2,y2{}\n", if has_quads { ",quad" } else { "" });
    for region in regions {
        let [x1, y1, x2, y2] = region.box_pixels(frame.width, frame.height);
        let (path, label) = (field(frame.path), field(region.label.as_deref().unwrap_or(unnamed)));
        out += &format!("{path},{},{},{label},{x1},{y1},{x2},{y2}", frame.width, frame.height);
        if has_quads {
            let quad = region.quad_pixels(frame.width, frame.height);
            let numbers = quad.iter().flatten().flatten().map(i64::to_string).collect::<Vec<_>>();
            out += &format!(",{}", numbers.join(" "));
        }
        out += "\n";
    }
    out
}

fn field(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

/// What is inside a region's box, at least one pixel of it; a quad is cut out with the box around it, so that every pixel is
/// one of the picture's. Cost: a copy of those pixels.
pub fn crop(picture: &Picture, region: &Region) -> Result<Picture> {
    let [x1, y1, x2, y2] = region.box_pixels(picture.width(), picture.height());
    let range = |low: i64, high: i64, extent: u32| {
        let low = low.clamp(0, i64::from(extent) - 1) as usize;
        (low, (high.clamp(0, i64::from(extent)) as usize).max(low + 1))
    };
    let ((left, right), (top, bottom)) = (range(x1, x2, picture.width()), range(y1, y2, picture.height()));
    let stride = picture.width() as usize * 3;
    let row = |y: usize| &picture.pixels()[y * stride + left * 3..y * stride + right * 3];
    let pixels = (top..bottom).flat_map(row).copied().collect();
    Picture::new((right - left) as u32, (bottom - top) as u32, pixels)
}

#[cfg(test)]
mod tests {
    use super::super::regions;
    use super::*;

    const FRAME: Frame<'_> = Frame { path: "a, \"b\".png", width: 200, height: 100 };

    fn found() -> Vec<Region> {
        let text = "<ref>dog</ref><box>(900,500),(100,250)</box><quad>(0,0),(500,0),(500,1000),(0,990)</quad>\
                    <ref>a \"big\", cat</ref><box>(0,0),(1000,1000)</box> or <box>(1,1),(2,2)</box>";
        regions(text).0
    }

    #[test]
    fn coco_has_ids_and_sizes() {
        let coco = coco(&FRAME, &found(), "thing");
        assert_eq!(coco["images"][0], json!({"id": 1, "file_name": FRAME.path, "width": 200, "height": 100}));
        let names: Vec<_> =
            coco["categories"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["dog", "a \"big\", cat", "thing"]);
        let first = &coco["annotations"][0];
        // Corners the wrong way round are put in order.
        assert_eq!((&first["bbox"], &first["area"]), (&json!([20, 25, 160, 25]), &json!(4000)));
        assert_eq!(first["segmentation"], json!([[20, 25, 180, 25, 180, 50, 20, 50]]));
        let quad = &coco["annotations"][1];
        assert_eq!((&quad["category_id"], &quad["id"]), (&json!(1), &json!(2)));
        assert_eq!(quad["segmentation"], json!([[0, 0, 100, 0, 100, 100, 0, 99]]));
        assert_eq!((&quad["bbox"], &quad["area"]), (&json!([0, 0, 100, 100]), &json!(9950)));
        assert_eq!(coco["annotations"][2]["bbox"], json!([0, 0, 200, 100]));
    }

    #[test]
    fn csv_is_quoted() {
        let expect = "image,width,height,label,x1,y1,x2,y2,quad\n\
                      \"a, \"\"b\"\".png\",200,100,dog,20,25,180,50,\n\
                      \"a, \"\"b\"\".png\",200,100,dog,0,0,100,100,0 0 100 0 100 100 0 99\n\
                      \"a, \"\"b\"\".png\",200,100,\"a \"\"big\"\", cat\",0,0,200,100,\n";
        assert_eq!(csv(&FRAME, &found()[..3], "thing"), expect);
        let expect = "image,width,height,label,x1,y1,x2,y2\n\"a, \"\"b\"\".png\",200,100,thing,0,0,0,0\n";
        assert_eq!(csv(&FRAME, &found()[3..], "thing"), expect);
    }

    #[test]
    fn crops_are_what_is_inside() {
        let pixels = (0..4 * 3 * 3).map(|k| k as u8).collect();
        let picture = Picture::new(4, 3, pixels).unwrap();
        let of = |corners: [[i64; 2]; 2]| {
            let region = Region { label: None, corners_1000: corners.to_vec() };
            crop(&picture, &region).unwrap()
        };
        let part = of([[250, 334], [750, 1000]]);
        assert_eq!((part.width(), part.height()), (2, 2));
        assert_eq!(part.pixels(), [15, 16, 17, 18, 19, 20, 27, 28, 29, 30, 31, 32]);
        // Nothing, and what is outside, is the nearest pixel.
        let point = of([[1000, 1000], [1000, 1000]]);
        assert_eq!((point.width(), point.height(), point.pixels()), (1, 1, &[33, 34, 35][..]));
        assert_eq!(of([[-500, -500], [9000, 9000]]), picture);
    }
}
