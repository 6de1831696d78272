// Processes that train together, by libtorch's c10d: a store in which they find each other, and sums over all of them.
// A file of its own, because its headers take as long as those of shim.cpp, and the two compile side by side. group.rs
// declares the same functions for Rust.

#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef KDLAB_NCCL
#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "guarded.h"

namespace {

struct Group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> cpu;
  c10::intrusive_ptr<c10d::Backend> gpu; // may be null
};

} // namespace

extern "C" {

// Connects to the store at `host` and `port`. If `socket` is not -1, this process keeps the store: it listens at that
// socket, or at `port` of all its addresses where `socket` is -2. All keys begin with `prefix`.
char* kdlab_group_connect(const char* host, uint16_t port, int socket, const char* prefix, int64_t milliseconds,
                          Group** result) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = socket != -1;
    if (socket >= 0) options.masterListenFd = socket;
    options.timeout = std::chrono::milliseconds(milliseconds);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *result = new Group{c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(store))};
  });
}

// Writes a value to the store, if the key has none yet. Returns the value that it has then, released by kdlab_free.
char* kdlab_group_first(Group* group, const char* key, const char* value, char** result) {
  return guarded([&] {
    *result = strdup(group->store->compareSet(std::string(key), std::string(), std::string(value)).c_str());
  });
}

// Connects this process with all others. Gloo listens at an address of this machine or, if `is_interface`, at the
// address of a network interface. With `gpu`, sums of CUDA tensors take NCCL where this program was compiled with it.
char* kdlab_group_join(Group* group, int rank, int size, const char* address, bool is_interface, bool gpu,
                       int64_t milliseconds) {
  return guarded([&] {
    std::chrono::milliseconds timeout(milliseconds);
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(is_interface ? c10d::ProcessGroupGloo::createDeviceForInterface(address)
                                            : c10d::ProcessGroupGloo::createDeviceForHostname(address));
    // Sums follow one another, so one thread is enough.
    options->threads = 1;
    auto part = [&](const char* name) { return c10::make_intrusive<c10d::PrefixStore>(name, group->store); };
    group->cpu = c10::make_intrusive<c10d::ProcessGroupGloo>(part("gloo"), rank, size, options);
#ifdef KDLAB_NCCL
    if (gpu) {
      auto options = c10d::ProcessGroupNCCL::Options::create();
      options->timeout = timeout;
      group->gpu = c10::make_intrusive<c10d::ProcessGroupNCCL>(part("nccl"), rank, size, options);
    }
#endif
  });
}

// Replaces a tensor by its sum over all processes.
char* kdlab_group_sum(Group* group, at::Tensor* tensor) {
  return guarded([&] {
    std::vector<at::Tensor> list{*tensor};
    auto& backend = tensor->is_cuda() && group->gpu ? group->gpu : group->cpu;
    backend->allreduce(list)->wait();
  });
}

void kdlab_group_leave(Group* group) { delete group; }

} // extern "C"
