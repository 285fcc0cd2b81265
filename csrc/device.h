// Device handles for the kernels: the stream and the allocator.
#pragma once

#include <cstdint>

namespace fcos_fast {

struct Cpu {};

class Cuda {
 public:
  // `allocate(owner, bytes)` returns device memory, aligned to 256 bytes, that the owner frees when the operator ends.
  Cuda(void* stream, void* (*allocate)(void* owner, int64_t bytes), void* owner)
      : stream(stream), allocate_(allocate), owner_(owner) {}

  template <class T>
  T* scratch(int64_t count) const {
    return static_cast<T*>(allocate_(owner_, count * int64_t(sizeof(T))));
  }

  void* const stream;  // a cudaStream_t

 private:
  void* (*allocate_)(void* owner, int64_t bytes);
  void* owner_;
};

}  // namespace fcos_fast
