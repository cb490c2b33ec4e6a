//! Door 2: safe ggml in C's own words. Knows no model.
#![allow(unsafe_code)]

mod quantize;

pub use quantize::{dequantize_row, quantize_rows};
