//! Bytes to the floats of the vision tower.

use super::Picture;

/// A square picture as the vision tower takes it: `size · size · 3` floats, and no others.
#[derive(Clone, Debug, PartialEq)]
pub struct PixelValues {
    /// Width and height in pixels (the model's `image_size`).
    size: u32,
    /// `[3, size, size]`: channel (RGB), row, column.
    data: Vec<f32>,
}

impl PixelValues {
    /// Width and height in pixels.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The values, `[3, size, size]`: channel (RGB), row, column.
    pub fn data(&self) -> &[f32] {
        &self.data
    }
}

/// `(x/255 − mean) / std` for each channel (RGB), every step rounded to f32: bit for bit torchvision's `ToTensor` and
/// `Normalize`.
///
/// `picture` must be square, as [`super::resize`] to the model's size makes it. Cost: one allocation of 12 bytes a pixel.
///
/// # Panics
/// If the picture is not square (a mistake in the program, not in any input).
pub fn normalise(picture: &Picture, mean: [f32; 3], std: [f32; 3]) -> PixelValues {
    assert_eq!(picture.width(), picture.height(), "normalise takes square pictures");
    let n_pixels = picture.pixels().len() / 3;
    let mut data = Vec::with_capacity(n_pixels * 3);
    for channel in 0..3 {
        // A byte has 256 values: the table holds all that the formula can give.
        let table: [f32; 256] = std::array::from_fn(|x| (x as f32 / 255.0 - mean[channel]) / std[channel]);
        data.extend(picture.pixels().iter().skip(channel).step_by(3).map(|&x| table[usize::from(x)]));
    }
    PixelValues { size: picture.width(), data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_channel_first_and_rounded_at_each_step() {
        let picture = Picture::new(2, 2, (0..12).map(|i| i * 20).collect()).expect("fits");
        let (mean, std) = ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);
        let values = normalise(&picture, mean, std);
        assert_eq!((values.size(), values.data().len()), (2, 12));
        for channel in 0..3 {
            for pixel in 0..4 {
                let x = f32::from(picture.pixels()[pixel * 3 + channel]) / 255.0f32;
                let expect = (x - mean[channel]) / std[channel];
                assert_eq!(values.data()[channel * 4 + pixel].to_bits(), expect.to_bits());
            }
        }
    }
}
