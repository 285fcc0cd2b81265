// An allocator for torch whose memory is checked by runtime.cpp: kernels may only access memory of tensors.
#include <c10/core/CPUAllocator.h>

namespace emulation {

void* allocate(size_t bytes);
void release(void* memory);

namespace {

class TensorAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes == 0 ? nullptr : emulation::allocate(bytes);
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace
}  // namespace emulation

extern "C" __attribute__((visibility("default"))) void emulation_watch_tensors() {
  static emulation::TensorAllocator allocator;
  c10::SetCPUAllocator(&allocator, 255);
}
