// Selects the device of an operator: that of its first tensor.
#pragma once

#include "checks.h"
#include "device.h"

#if defined(USE_CUDA)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>
#endif

namespace fcos_fast {

template <class Device>
class DeviceOf;

template <>
class DeviceOf<Cpu> {
 public:
  explicit DeviceOf(const Tensor&) {}
  static void check_dtype(const Tensor&) {}
  Cpu operator*() const { return {}; }
  const Tensor& aligned(const Tensor& t) const { return t; }
};

#if defined(USE_CUDA)
// Makes the tensor's device current and owns the operator's scratch memory.
template <>
class DeviceOf<Cuda> {
 public:
  explicit DeviceOf(const Tensor& t) : like_(t), guard_(t.get_device_index()) {
    check_dtype(t);
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
  }
  DeviceOf(const DeviceOf&) = delete;

  // The constructor checks the first tensor; call this for others with their own dtype.
  static void check_dtype(const Tensor& t) {
    STD_TORCH_CHECK(
        t.scalar_type() != ScalarType::Double,
        "fcos_fast: there are no CUDA kernels for float64; call the functions in fcos_fast.ops, which run the "
        "reference");
  }

  Cuda operator*() { return {stream_, &allocate, this}; }

  // `t`, or a copy if its first element is not aligned to 16 bytes (as in some slices).
  Tensor aligned(const Tensor& t) const {
    return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 ? t : torch::stable::clone(t);
  }

 private:
  static void* allocate(void* owner, int64_t bytes) {
    auto* self = static_cast<DeviceOf*>(owner);
    self->scratch_.push_back(new_empty(self->like_, {bytes}, ScalarType::Byte));
    return self->scratch_.back().mutable_data_ptr();
  }

  const Tensor like_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
  std::vector<Tensor> scratch_;
};
#endif

}  // namespace fcos_fast
