//! Operations of libtorch that tch does not wrap. `shim.cpp` calls them, checked by the C++ compiler; this file makes
//! each call safe and turns a C++ exception into an [`Error`].

mod group;

pub(crate) use group::{Connection, Keeper, Listen};

use crate::{Error, Result};
use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};
use tch::nn::ConvConfig;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// The message of a C++ exception, which [`kdlab_free`] releases; null where there was none.
type Failure = *mut c_char;
/// A pointer to an `at::Tensor`.
type Handle = *mut C_tensor;

// The same order and types as in `shim.cpp`.
unsafe extern "C" {
    fn kdlab_free(text: *mut c_char);
    fn kdlab_autocast_swap(device: i8, enabled: *mut bool, dtype: *mut i8) -> Failure;
    fn kdlab_autocast_nest(begin: bool) -> Failure;
    fn kdlab_gpu_has_bf16(index: i8, result: *mut bool) -> Failure;
    fn kdlab_gpu_release() -> Failure;
    fn kdlab_onednn_convolve(
        x: Handle,
        weight: Handle,
        bias: Handle,
        padding: i64,
        stride: i64,
        dilation: i64,
        groups: i64,
        sum: Handle,
        activation: *const c_char,
        bounds: *const f64,
        result: *mut Handle,
    ) -> Failure;
    fn kdlab_fused_adam(
        count: usize,
        lists: *const [*const Handle; 4],
        step: Handle,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        decoupled: bool,
    ) -> Failure;
    fn kdlab_fused_sgd(
        count: usize,
        lists: *const [*const Handle; 3],
        learning_rate: f64,
        momentum: f64,
        weight_decay: f64,
        nesterov: bool,
    ) -> Failure;
    fn kdlab_lerp(count: usize, lists: *const [*const Handle; 2], weight: f64) -> Failure;
}

/// Keeps `shim.cpp` in every program: where libtorch supports CUDA, the shim refers to `libtorch_cuda`, which the
/// linker would otherwise drop.
#[used]
static KEEP: unsafe extern "C" fn(i8, *mut bool) -> Failure = kdlab_gpu_has_bf16;

/// Turns what a function of the shim returned into a `Result`.
fn check(failure: Failure) -> Result<()> {
    if failure.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returned a text that ends with 0 and belongs to the caller.
    Err(tch::TchError::Torch(unsafe { text(failure) }).into())
}

/// Takes a text from the shim and releases it.
///
/// # Safety
/// It ends with 0, and nobody uses it afterwards.
unsafe fn text(text: *mut c_char) -> String {
    // SAFETY: as the caller says; it is released once, here.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        kdlab_free(text);
        copy
    }
}

/// Returns the pointer to the `at::Tensor` that tch holds.
fn handle(tensor: &Tensor) -> Handle {
    tensor.as_ptr().cast_mut()
}

/// Autocast's state for one kind of device in this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Autocast {
    pub enabled: bool,
    /// The type it casts to, as a value of `c10::ScalarType` (15 is bf16).
    pub dtype: i8,
}

impl Autocast {
    pub const BF16: Self = Self { enabled: true, dtype: 15 };

    /// Sets this state and returns the one before.
    pub fn swap(mut self, device: Device) -> Result<Self> {
        let device = match device {
            Device::Cpu => 0, // `c10::DeviceType`
            Device::Cuda(_) => 1,
            other => return Err(Error::Input(format!("there is no autocast for {other:?}; compute in f32"))),
        };
        // SAFETY: both pointers are to fields of `self`.
        check(unsafe { kdlab_autocast_swap(device, &mut self.enabled, &mut self.dtype) })?;
        Ok(self)
    }
}

/// bf16 autocast for this thread and one kind of device. Dropping it restores what it found, also when a pass fails.
pub(crate) struct AutocastGuard {
    device: Device,
    before: Autocast,
}

impl AutocastGuard {
    pub fn bf16(device: Device) -> Result<Self> {
        let guard = Self { device, before: Autocast::BF16.swap(device)? };
        // libtorch counts nested regions, and drops the weights that it has cast when the outermost one ends.
        // SAFETY: it takes a plain value.
        check(unsafe { kdlab_autocast_nest(true) })?;
        Ok(guard)
    }
}

impl Drop for AutocastGuard {
    fn drop(&mut self) {
        // SAFETY: as above. What began can end: neither call fails for a device that `bf16` accepted.
        let _ = check(unsafe { kdlab_autocast_nest(false) });
        let _ = self.before.swap(self.device);
    }
}

/// Returns whether the GPU computes in bf16, as `torch.cuda.is_bf16_supported(including_emulation=False)`: GPUs older
/// than Ampere accept bf16 and are slow in it. `false` without a GPU.
pub(crate) fn gpu_has_bf16(index: usize) -> bool {
    let Ok(index) = i8::try_from(index) else { return false };
    let mut result = false;
    // SAFETY: the pointer is to `result`.
    check(unsafe { kdlab_gpu_has_bf16(index, &mut result) }).is_ok() && result
}

/// Gives back the GPU's memory that this process has taken and no longer uses. Does nothing without a GPU.
pub(crate) fn release_gpu_memory() -> Result<()> {
    // SAFETY: it takes nothing.
    check(unsafe { kdlab_gpu_release() })
}

/// Computes `activation(conv2d(x, weight, bias) + sum)` in one operation of oneDNN, written over `sum` where there is
/// one. `activation` is a name that oneDNN knows and its two bounds.
pub(crate) fn onednn_convolve(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    settings: &ConvConfig,
    sum: Option<&Tensor>,
    activation: Option<(&CStr, [f64; 2])>,
) -> Result<Tensor> {
    let optional = |tensor: Option<&Tensor>| tensor.map_or(null_mut(), handle);
    let (name, bounds) = activation.map_or((null(), [0.0; 2]), |(name, bounds)| (name.as_ptr(), bounds));
    let mut result = null_mut();
    // SAFETY: the handles are tch's own, and everything that is pointed to outlives the call. The result is a new
    // handle, also where it is the tensor of the sum.
    unsafe {
        check(kdlab_onednn_convolve(
            handle(x),
            handle(weight),
            optional(bias),
            settings.padding,
            settings.stride,
            settings.dilation,
            settings.groups,
            optional(sum),
            name,
            bounds.as_ptr(),
            &mut result,
        ))?;
        Ok(Tensor::from_ptr(result))
    }
}

/// One update of many tensors: parameters, gradients and moments of one type, device and memory layout, entry by entry.
pub(crate) struct FusedStep<'a> {
    pub parameters: Vec<&'a Tensor>,
    pub gradients: Vec<&'a Tensor>,
    /// One list for SGD (momenta), two for Adam (means and squares).
    pub moments: Vec<Vec<&'a Tensor>>,
    pub learning_rate: f64,
    pub weight_decay: f64,
}

impl FusedStep<'_> {
    /// Calls `at::_fused_adam_`, or `at::_fused_adamw_` where the weight decay is `decoupled`. `step` counts from 1.
    pub fn adam(&self, step: u64, [beta1, beta2]: [f64; 2], epsilon: f64, decoupled: bool) -> Result<()> {
        let lists = self.handles()?;
        let Some(first) = self.parameters.first() else { return Ok(()) };
        let step = Tensor::f_full([0; 0], step as f64, (Kind::Float, first.device()))?;
        // SAFETY: all lists are of the same length, and the handles are tch's own.
        check(unsafe {
            kdlab_fused_adam(
                self.parameters.len(),
                &lists.each_ref().map(Vec::as_ptr),
                handle(&step),
                self.learning_rate,
                beta1,
                beta2,
                self.weight_decay,
                epsilon,
                decoupled,
            )
        })
    }

    /// Calls `at::_fused_sgd_` without dampening; momenta begin at 0.
    pub fn sgd(&self, momentum: f64, nesterov: bool) -> Result<()> {
        let lists = self.handles()?;
        // SAFETY: as above.
        check(unsafe {
            kdlab_fused_sgd(
                self.parameters.len(),
                &lists.each_ref().map(Vec::as_ptr),
                self.learning_rate,
                momentum,
                self.weight_decay,
                nesterov,
            )
        })
    }

    /// Returns the handles of parameters, gradients and moments, in this order. libtorch's kernels walk through the
    /// memory of all of them side by side and check no layout, so it is checked here.
    fn handles<const LISTS: usize>(&self) -> Result<[Vec<Handle>; LISTS]> {
        let lists: Vec<_> = [&self.parameters, &self.gradients].into_iter().chain(&self.moments).collect();
        let alike = |list: &Vec<&Tensor>| {
            let mut pairs = self.parameters.iter().zip(list);
            list.len() == self.parameters.len()
                && pairs.all(|(p, t)| p.size() == t.size() && p.stride() == t.stride() && p.kind() == t.kind())
        };
        let handles = |list: &Vec<&Tensor>| list.iter().copied().map(handle).collect();
        match <[_; LISTS]>::try_from(lists) {
            Ok(lists) if lists.iter().all(|list| alike(list)) => Ok(lists.map(handles)),
            _ => Err(Error::Torch("parameters, gradients and moments differ in shape, type or layout".into())),
        }
    }
}

/// Moves each tensor towards its target by the share `weight` of the way: `at::_foreach_lerp_`, without gradients.
pub(crate) fn lerp(tensors: &[&Tensor], targets: &[&Tensor], weight: f64) -> Result<()> {
    if tensors.len() != targets.len() {
        return Err(Error::Torch(format!("{} tensors and {} targets", tensors.len(), targets.len())));
    }
    let lists = [tensors, targets].map(|list| list.iter().copied().map(handle).collect::<Vec<_>>());
    // SAFETY: both lists are of the same length, and the handles are tch's own.
    check(unsafe { kdlab_lerp(tensors.len(), &lists.each_ref().map(Vec::as_ptr), weight) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_c_plus_plus_exception_becomes_an_error_of_one_line() {
        let tensor = |size: &[i64]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let (x, weight, bias) = (tensor(&[1, 3, 8, 8]), tensor(&[4, 3, 3, 3]), tensor(&[5]));
        let convolve = |bias| onednn_convolve(&x, &weight, bias, &ConvConfig::default(), None, None);
        if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            assert!(convolve(None).is_ok());
        }
        let reason = convolve(Some(&bias)).unwrap_err().to_string();
        assert!(reason.len() > 20 && !reason.contains('\n'), "{reason:?}");
        assert!(!gpu_has_bf16(99), "there is no such GPU");
        assert!(release_gpu_memory().is_ok());
    }
}
