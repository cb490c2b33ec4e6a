//! Products with weights, by the kernels that fit their type.

use crate::ggml::{Context, Tensor};
use crate::kernels::{self, Activation, Finish, Kernels};

/// `w·x`, `w` `[≥ k, m]` and `x` `[k, n]`, with what comes before and after it.
#[derive(Clone, Copy)]
pub(super) struct Product<'c> {
    /// The weights. Where the converter has put zeros behind their rows, to fill blocks of their type, `x` counts as having as
    /// many.
    pub weight: Tensor<'c>,
    /// LayerNorm of `x` before it: (weight, bias) and eps.
    pub norm: Option<([Tensor<'c>; 2], f32)>,
    /// What follows.
    pub finish: Finish<'c>,
}

impl<'c> Product<'c> {
    /// `w·x` and no more.
    pub fn of(weight: Tensor<'c>) -> Self {
        Product { weight, norm: None, finish: Finish { bias: None, activation: Activation::None, residual: None } }
    }

    /// `w·x + b`, `pair` being (weight, bias).
    pub fn linear([weight, bias]: [Tensor<'c>; 2]) -> Self {
        let mut product = Product::of(weight);
        product.finish.bias = Some(bias);
        product
    }

    /// LayerNorm of `x` before it.
    pub fn after_norm(self, norm: [Tensor<'c>; 2], eps: f32) -> Self {
        Product { norm: Some((norm, eps)), ..self }
    }

    /// GELU of the result.
    pub fn gelu(self) -> Self {
        Product { finish: Finish { activation: Activation::Gelu, ..self.finish }, ..self }
    }

    /// The result plus `residual`.
    pub fn plus(self, residual: Tensor<'c>) -> Self {
        Product { finish: Finish { residual: Some(residual), ..self.finish }, ..self }
    }

    /// The result, `[m, n]`.
    pub fn with(self, c: &'c Context<'_>, how: Kernels, x: Tensor<'c>) -> Tensor<'c> {
        if self.weight.ty().is_some_and(|ty| how.multiply(ty)) {
            let columns = kernels::columns(c, how, x, self.norm);
            return kernels::product(c, how, self.weight, columns, x.dims()[1], self.finish);
        }
        let x = self.norm.map_or(x, |(norm, eps)| layer_norm(c, norm, x, eps));
        let padding = self.weight.dims()[0] - x.dims()[0];
        let x = if padding > 0 { c.pad(x, padding) } else { x };
        let Finish { bias, activation, residual } = self.finish;
        let product = c.mul_mat(self.weight, x);
        let sum = bias.map_or(product, |bias| c.add(product, bias));
        let value = match activation {
            Activation::None => sum,
            Activation::Gelu => c.gelu_erf(sum),
        };
        residual.map_or(value, |residual| c.add(residual, value))
    }

    /// `next` of the result of `x`. Where kernels of ours compute both, what is in between never is in memory as f32.
    pub fn then(self, c: &'c Context<'_>, how: Kernels, x: Tensor<'c>, next: Product<'c>) -> Tensor<'c> {
        let is_ours = |product: &Product<'c>| product.weight.ty().is_some_and(|ty| how.multiply(ty));
        if !is_ours(&self) || !is_ours(&next) || self.finish.residual.is_some() || next.norm.is_some() {
            return next.with(c, how, self.with(c, how, x));
        }
        let n = x.dims()[1];
        let columns = kernels::columns(c, how, x, self.norm);
        let columns = kernels::product_columns(c, how, self.weight, columns, n, self.finish);
        kernels::product(c, how, next.weight, columns, n, next.finish)
    }
}

/// LayerNorm along ne0, `w` being (weight, bias).
pub(super) fn layer_norm<'c>(c: &'c Context<'_>, w: [Tensor<'c>; 2], x: Tensor<'c>, eps: f32) -> Tensor<'c> {
    c.add(c.mul(c.norm(x, eps), w[0]), w[1])
}
