// Operations of libtorch that tch does not wrap. build.rs compiles the C++ of this folder against libtorch's own
// headers, so the compiler checks every call. mod.rs declares the same functions for Rust.

#ifdef KDLAB_CUDA
#define USE_CUDA // for the CUDA functions of this one header, which needs nothing of CUDA itself
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#undef USE_CUDA
#endif

#include <ATen/Config.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/inductor/aoti_torch/c/shim_cpu.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>
#include <torch/csrc/stable/c/shim.h>

#include "guarded.h"

#include <stdexcept>
#include <vector>

namespace {

using Handles = at::Tensor* const*;

std::vector<at::Tensor> tensors(Handles handles, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; i++) list.push_back(*handles[i]);
  return list;
}

} // namespace

extern "C" {

#ifdef KDLAB_CUDA
// A linker drops a library that nothing refers to, and without libtorch_cuda libtorch sees no GPU. Nobody calls this.
decltype(&aoti_torch_create_cuda_guard) kdlab_keep_cuda = aoti_torch_create_cuda_guard;
#endif

void kdlab_free(char* text) { free(text); }

// Exchanges this thread's autocast state for a device with the one given.
char* kdlab_autocast_swap(int8_t device, bool* enabled, int8_t* dtype) {
  return guarded([&] {
    auto type = static_cast<c10::DeviceType>(device);
    bool enabled_before = at::autocast::is_autocast_enabled(type);
    auto dtype_before = at::autocast::get_autocast_dtype(type);
    at::autocast::set_autocast_dtype(type, static_cast<at::ScalarType>(*dtype));
    at::autocast::set_autocast_enabled(type, *enabled);
    *enabled = enabled_before;
    *dtype = static_cast<int8_t>(dtype_before);
  });
}

// Enters or leaves an autocast region. Leaving the outermost one clears the cache of cast weights, because the next
// training step changes the weights.
char* kdlab_autocast_nest(bool begin) {
  return guarded([&] {
    if (begin) {
      at::autocast::increment_nesting();
    } else if (at::autocast::decrement_nesting() == 0) {
      at::autocast::clear_cache();
    }
  });
}

// Whether cuDNN computes bf16 convolutions on this GPU: its compute capability is 8 or higher.
char* kdlab_gpu_has_bf16(int8_t index, bool* result) {
  return guarded([&] {
    c10::DeviceGuard guard(c10::Device(c10::DeviceType::CUDA, index));
    *result = at::detail::getCUDAHooks().supportsBFloat16ConvolutionWithCuDNNv8();
  });
}

// Gives the memory of the GPU that this process has taken and does not use back to the others.
char* kdlab_gpu_release() {
  return guarded([] {
    if (at::accelerator::getAccelerator()) at::accelerator::emptyCache();
  });
}

// activation(conv2d(x, weight, bias) + sum) in one oneDNN operation, written over `sum`; `bias` and `sum` may be null.
// The activation is null, "relu", or "hardtanh" from `bounds[0]` to `bounds[1]`. Settings hold for both axes.
char* kdlab_onednn_convolve(at::Tensor* x, at::Tensor* weight, at::Tensor* bias, int64_t padding, int64_t stride,
                            int64_t dilation, int64_t groups, at::Tensor* sum, const char* activation,
                            const double* bounds, at::Tensor** result) {
  return guarded([&] {
#if AT_MKLDNN_ENABLED()
    auto handle = torch::aot_inductor::tensor_pointer_to_tensor_handle;
    int64_t pad[]{padding, padding}, step[]{stride, stride}, spread[]{dilation, dilation};
    const double* scalars[]{bounds, bounds + 1};
    int64_t scalar_count = activation && !strcmp(activation, "hardtanh") ? 2 : 0;
    AtenTensorHandle bias_handle = bias ? handle(bias) : nullptr, out = nullptr;
    AtenTensorHandle* maybe_bias = bias ? &bias_handle : nullptr;
    AOTITorchError failed =
        sum ? aoti_torch_cpu_mkldnn__convolution_pointwise_binary_(
                  handle(sum), handle(x), handle(weight), maybe_bias, pad, 2, step, 2, spread, 2, groups, "add",
                  nullptr, activation ? &activation : nullptr, scalars, scalar_count, nullptr, &out)
            : aoti_torch_cpu_mkldnn__convolution_pointwise(
                  handle(x), handle(weight), maybe_bias, pad, 2, step, 2, spread, 2, groups,
                  activation ? activation : "none", scalars, scalar_count, nullptr, &out);
    if (failed) throw std::runtime_error(torch_exception_get_what_without_backtrace());
    *result = torch::aot_inductor::tensor_handle_to_tensor_pointer(out);
#else
    throw std::runtime_error("this libtorch was built without oneDNN");
#endif
  });
}

// One step of Adam or, with `decoupled`, AdamW on `count` tensors of one type and device. The lists are parameters,
// gradients, means and squares. `step` counts from 1.
char* kdlab_fused_adam(size_t count, const Handles lists[4], at::Tensor* step, double learning_rate, double beta1,
                       double beta2, double weight_decay, double epsilon, bool decoupled) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto update = [&](auto operation) {
      operation(tensors(lists[0], count), tensors(lists[1], count), tensors(lists[2], count), tensors(lists[3], count),
                at::TensorList(), std::vector<at::Tensor>(count, *step), learning_rate, beta1, beta2, weight_decay,
                epsilon, false, false, std::nullopt, std::nullopt);
    };
    decoupled ? update(at::_ops::_fused_adamw_::call) : update(at::_ops::_fused_adam_::call);
  });
}

// One step of SGD with momentum, perhaps Nesterov's, without dampening, on `count` tensors of one type and device. The
// lists are parameters, gradients and momenta.
char* kdlab_fused_sgd(size_t count, const Handles lists[3], double learning_rate, double momentum,
                      double weight_decay, bool nesterov) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    // Without momentum the kernel takes no list of them.
    auto momenta = tensors(lists[2], momentum == 0.0 ? 0 : count);
    at::_fused_sgd_(tensors(lists[0], count), tensors(lists[1], count), momenta, weight_decay, momentum, learning_rate,
                    0.0, nesterov, false, false);
  });
}

// Moves `count` tensors, the first list, towards those of the second by the share `weight` of the way.
char* kdlab_lerp(size_t count, const Handles lists[2], double weight) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    at::_foreach_lerp_(tensors(lists[0], count), tensors(lists[1], count), weight);
  });
}

} // extern "C"
