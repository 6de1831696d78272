//! oneDNN's convolution with what follows it in the same pass over memory. libtorch has it for its own compiler, and tch does
//! not wrap it: this is the C interface that compiled models call (`torch/csrc/inductor/aoti_torch/c/shim_cpu.h`).

use super::Activation;
use crate::{Error, Result};
use std::ffi::{CStr, c_char};
use std::ptr::{from_ref, null, null_mut};
use tch::nn::ConvConfig;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// Whether [`convolve`] is for such numbers on this device.
pub(super) fn computes(kind: Kind, device: Device) -> bool {
    let known = kind == Kind::Float || (kind == Kind::BFloat16 && super::precision::cpu_has_bf16());
    cfg!(all(target_os = "linux", target_arch = "x86_64")) && device == Device::Cpu && known
}

/// A weight in the order that oneDNN wants with these settings and this shape of input, which else each call puts it in. In
/// the order for another shape a call can be slower than in none.
pub(super) fn packed(weight: &Tensor, settings: &ConvConfig, input: &[i64]) -> Result<Tensor> {
    let [stride, padding, dilation] = [settings.stride, settings.padding, settings.dilation].map(|n| [n, n]);
    let weight = weight.f_to_mkldnn(weight.kind())?;
    Ok(weight.f_mkldnn_reorder_conv2d_weight(padding, stride, dilation, settings.groups, input)?)
}

/// `activation(conv2d(x, weight, bias) + sum)`, all in one kind, the weight [`packed`] or not. It is written over `sum`.
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
        return Err(Error::Torch("oneDNN refused a convolution and wrote the reason to stderr".into()));
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
