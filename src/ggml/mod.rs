//! Door 2: safe ggml in C's own words. Knows no model.
//!
//! A [`Context`] holds tensors and the operations between them; a [`Graph`] orders what some outputs need; a
//! [`Backend`] computes it. Extents are `[ne0, ne1, ..]`, ne0 contiguous. Wherever ggml would abort the process on
//! operands that do not fit together, the functions here panic instead: shapes are proven when weights are bound, so
//! either would be a bug, but a panic can be read.
#![allow(unsafe_code)]

mod abort;
mod backend;
mod connections;
mod context;
mod cpu;
mod custom;
mod device;
mod quantize;
mod watch;
mod worker;

pub use abort::{end, explain_aborts, memory_is_left, no_memory};
pub use backend::{Allocated, Backend, OpCounts};
pub(crate) use backend::{is_set, op_name};
pub use context::{Context, FileWeights, Graph, Tensor, Upload};
pub use cpu::{SimdFeature, has_amx, simd_features};
pub use custom::{Custom, Operand, Share, Task};
pub(crate) use device::load_backends;
pub use device::{Device, DeviceKind, DeviceMemory};
pub(crate) use quantize::c_type;
pub use quantize::{dequantize_row, first_not_finite, quantize_rows};
pub use watch::{WatchFn, WeightInput};
pub(crate) use watch::{is_weight_product, show};
