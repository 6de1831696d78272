//! When a convolution runs in oneDNN together with what follows it, and how its weight is laid out for that.

use super::layers::Activation;
use crate::{Error, Result, native};
use tch::nn::ConvConfig;
use tch::{Kind, Tensor};

/// Whether [`convolve`] computes in this type on a CPU.
pub(super) fn computes(kind: Kind) -> bool {
    let known = kind == Kind::Float || (kind == Kind::BFloat16 && super::precision::cpu_has_bf16());
    cfg!(all(target_os = "linux", target_arch = "x86_64")) && known
}

/// The weight in oneDNN's order for these settings and inputs of this shape. Otherwise each call reorders it. For
/// inputs of another shape, this order can be slower than the plain one.
pub(super) fn packed(weight: &Tensor, settings: &ConvConfig, input: &[i64]) -> Result<Tensor> {
    let [stride, padding, dilation] = [settings.stride, settings.padding, settings.dilation].map(|n| [n, n]);
    let weight = weight.f_to_mkldnn(weight.kind())?;
    Ok(weight.f_mkldnn_reorder_conv2d_weight(padding, stride, dilation, settings.groups, input)?)
}

/// Whether [`convolve`] can add `side`: oneDNN does so before a ReLU only, and in channels-last memory only.
pub(super) fn sums(x: &Tensor, side: &Tensor, activation: Option<Activation>) -> Result<bool> {
    let channels_last = |t: &Tensor| Ok::<_, Error>(t.f_permute([0, 2, 3, 1])?.is_contiguous());
    Ok(activation != Some(Activation::ReLU6) && channels_last(x)? && channels_last(side)?)
}

/// `activation(conv2d(x, weight, bias) + sum)`, all in one type, the weight [`packed`] or not. The result is written
/// over `sum`, which [`sums`] must allow. Unlike libtorch's own, the activation turns NaN into 0.
pub(super) fn convolve(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    settings: &ConvConfig,
    sum: Option<&Tensor>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let activation = activation.map(|activation| match activation {
        Activation::ReLU => (c"relu", [0.0; 2]),
        Activation::ReLU6 => (c"hardtanh", [0.0, 6.0]),
    });
    native::onednn_convolve(x, weight, bias, settings, sum, activation)
}
