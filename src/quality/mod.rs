//! How far a quantised model is from its reference: distributions of the next token, embeddings of pictures, boxes, weights.
//! Numbers in, numbers out; nothing here runs a model.

mod boxes;
mod distribution;
mod embedding;
mod reference;
mod statistics;
mod weights;

pub use boxes::{LEAST_IOU, Overlaps};
pub use distribution::Distribution;
pub use embedding::{Distance, distance, to_f16};
pub use reference::{Identity, Recorder, Reference};
pub use statistics::Statistics;
pub use weights::{WeightError, relative_l2, weight_errors};
