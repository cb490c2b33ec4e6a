//! Where attention is never ours: not called, since no [`Kernels::attend`](super::Kernels::attend) there.

use crate::ggml::{Context, Tensor};

#[allow(missing_docs)]
pub fn attention<'c>(_: &'c Context<'_>, _: Tensor<'c>, _: Tensor<'c>, _: Tensor<'c>) -> Tensor<'c> {
    unreachable!("attention of ours on another architecture")
}
