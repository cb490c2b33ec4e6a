//! Where attention is never ours: not called, since no [`Kernels::attend`] there.

use super::Kernels;
use crate::ggml::{Context, Tensor};

#[allow(missing_docs)]
pub fn attention<'c>(_: &'c Context<'_>, _: Kernels, _: Tensor<'c>, _: Tensor<'c>, _: Tensor<'c>) -> Tensor<'c> {
    unreachable!("attention of ours on another architecture")
}
