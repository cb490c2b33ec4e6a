//! Where there are no kernels of ours: never called, since [`Kernels::detect`](super::Kernels::detect) says `Ggml`.

use super::{Finish, Kernels};
use crate::ggml::{Context, Tensor};

const NONE: &str = "no kernels of this architecture";

#[allow(missing_docs)]
pub fn columns<'c>(_: &'c Context<'_>, _: Kernels, _: Tensor<'c>, _: Option<([Tensor<'c>; 2], f32)>) -> Tensor<'c> {
    unreachable!("{NONE}")
}

#[allow(missing_docs)]
pub fn product<'c>(
    _: &'c Context<'_>,
    _: Kernels,
    _: Tensor<'c>,
    _: Tensor<'c>,
    _: usize,
    _: Finish<'c>,
) -> Tensor<'c> {
    unreachable!("{NONE}")
}

#[allow(missing_docs)]
pub fn attention<'c>(_: &'c Context<'_>, _: Tensor<'c>, _: Tensor<'c>, _: Tensor<'c>) -> Tensor<'c> {
    unreachable!("{NONE}")
}
