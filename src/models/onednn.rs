//! oneDNN's convolution with what follows it in the same pass over memory. libtorch has it for its own compiler, and tch does
//! not wrap it: this is the C interface that compiled models call (`torch/csrc/inductor/aoti_torch/c/shim_cpu.h`).
#![cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), allow(dead_code, unused_imports))]

use super::Activation;
use crate::{Error, Result};
use std::ffi::{CStr, c_char};
use std::ptr::{from_ref, null, null_mut};
use tch::nn::ConvConfig;
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

/// Whether [`convolve`] is for such numbers, on a CPU.
pub(super) fn computes(kind: Kind) -> bool {
    let known = kind == Kind::Float || (kind == Kind::BFloat16 && super::precision::cpu_has_bf16());
    cfg!(all(target_os = "linux", target_arch = "x86_64")) && known
}

/// A weight in the order that oneDNN wants with these settings and this shape of input, which else each call puts it in. In
/// the order for another shape a call can be slower than in none.
pub(super) fn packed(weight: &Tensor, settings: &ConvConfig, input: &[i64]) -> Result<Tensor> {
    let [stride, padding, dilation] = [settings.stride, settings.padding, settings.dilation].map(|n| [n, n]);
    let weight = weight.f_to_mkldnn(weight.kind())?;
    Ok(weight.f_mkldnn_reorder_conv2d_weight(padding, stride, dilation, settings.groups, input)?)
}

/// Whether [`convolve`] can write a sum over `side`: libtorch has it for ReLU alone, and for numbers that lie channels-innermost.
pub(super) fn sums(x: &Tensor, side: &Tensor, activation: Option<Activation>) -> Result<bool> {
    let innermost = |t: &Tensor| Ok::<_, Error>(t.f_permute([0, 2, 3, 1])?.is_contiguous());
    Ok(activation != Some(Activation::ReLU6) && innermost(x)? && innermost(side)?)
}

/// `activation(conv2d(x, weight, bias) + sum)`, all in one kind, the weight [`packed`] or not. It is written over `sum`, which
/// [`sums`] must allow. Unlike [`Activation`]'s own, the activation makes 0 of what is not a number.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(super) fn convolve(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    settings: &ConvConfig,
    sum: Option<&Tensor>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let lists = [settings.padding, settings.stride, settings.dilation].map(|n| [n, n]);
    let [padding, stride, dilation] = lists.each_ref().map(|list| list.as_ptr());
    let handle = |t: &Tensor| t.as_ptr().cast_mut();
    let bias = bias.map(handle);
    let bias = bias.as_ref().map_or(null(), from_ref);
    let (name, numbers): (&CStr, &[&f64]) = match activation {
        None => (c"none", &[]),
        Some(Activation::ReLU) => (c"relu", &[]),
        Some(Activation::ReLU6) => (c"hardtanh", &[&0.0, &6.0]),
    };
    let (name, many, numbers) = (name.as_ptr(), numbers.len() as i64, numbers.as_ptr().cast());
    let (groups, mut result) = (settings.groups, null_mut());
    let (x, weight, end) = (handle(x), handle(weight), &mut result);
    // SAFETY: as libtorch declares it. What is pointed to outlives the call, and a handle is a pointer to an `at::Tensor`,
    // which is what tch's tensors are. The result is a handle of its own, also where it is the tensor of the sum.
    let failed = unsafe {
        match sum {
            None => {
                pointwise(x, weight, bias, padding, 2, stride, 2, dilation, 2, groups, name, numbers, many, null(), end)
            }
            Some(sum) => pointwise_sum(
                handle(sum),
                x,
                weight,
                bias,
                padding,
                2,
                stride,
                2,
                dilation,
                2,
                groups,
                c"add".as_ptr(),
                null(),
                if activation.is_some() { &name } else { null() },
                numbers,
                many,
                null(),
                end,
            ),
        }
    };
    if failed != 0 || result.is_null() {
        // SAFETY: a text of this thread's last error, which lives until its next.
        let reason = unsafe { CStr::from_ptr(torch_exception_get_what_without_backtrace()) };
        return Err(Error::Torch(reason.to_string_lossy().into_owned()));
    }
    // SAFETY: as above.
    Ok(unsafe { Tensor::from_ptr(result) })
}

/// [`computes`] says no.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(super) fn convolve(
    _: &Tensor,
    _: &Tensor,
    _: Option<&Tensor>,
    _: &ConvConfig,
    _: Option<&Tensor>,
    _: Option<Activation>,
) -> Result<Tensor> {
    Err(Error::Torch("oneDNN's convolutions are for Linux on x86-64".into()))
}

type Handle = *mut C_tensor;

// Lists are a pointer and a length, what is optional is null.
unsafe extern "C" {
    fn torch_exception_get_what_without_backtrace() -> *const c_char;

    #[link_name = "aoti_torch_cpu_mkldnn__convolution_pointwise"]
    fn pointwise(
        x: Handle,
        weight: Handle,
        bias: *const Handle,
        padding: *const i64,
        _: i64,
        stride: *const i64,
        _: i64,
        dilation: *const i64,
        _: i64,
        groups: i64,
        activation: *const c_char,
        numbers: *const *const f64,
        _: i64,
        algorithm: *const *const c_char,
        result: *mut Handle,
    ) -> i32;

    #[link_name = "aoti_torch_cpu_mkldnn__convolution_pointwise_binary_"]
    fn pointwise_sum(
        sum: Handle,
        x: Handle,
        weight: Handle,
        bias: *const Handle,
        padding: *const i64,
        _: i64,
        stride: *const i64,
        _: i64,
        dilation: *const i64,
        _: i64,
        groups: i64,
        operation: *const c_char,
        factor: *const f64,
        activation: *const *const c_char,
        numbers: *const *const f64,
        _: i64,
        algorithm: *const *const c_char,
        result: *mut Handle,
    ) -> i32;
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn a_refusal_has_libtorch_s_reason() {
        let tensor = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let (x, weight, bias) = (tensor(&[1, 3, 8, 8]), tensor(&[4, 3, 3, 3]), tensor(&[5]));
        let settings = ConvConfig::default();
        assert!(convolve(&x, &weight, None, &settings, None, None).is_ok());
        let reason = convolve(&x, &weight, Some(&bias), &settings, None, None).unwrap_err().to_string();
        assert!(reason.len() > 20 && !reason.contains('\n'), "{reason:?}");
    }
}
