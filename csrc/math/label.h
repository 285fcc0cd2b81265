// Class labels: int32 or int64 inputs, int32 outputs.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fcos_fast {

constexpr int32_t kBackgroundLabel = -1, kIgnoredLabel = -2;

}  // namespace fcos_fast

namespace fcos_fast::math {

// Saturates to int32, so that an out-of-range label cannot become a valid class.
FCOS_HOST_DEVICE int32_t narrow_label(int64_t label) {
  constexpr int64_t most = 2147483647;
  return int32_t(label > most ? most : label < -most - 1 ? -most - 1 : label);
}

}  // namespace fcos_fast::math

namespace fcos_fast {

// Contiguous class labels, int32 or int64.
struct ClassLabels {
  const void* data;
  uint32_t size;  // bytes per label: 4 or 8

  FCOS_HOST_DEVICE int32_t operator[](int64_t i) const {
    if (size == 4) return static_cast<const int32_t*>(data)[i];
    return math::narrow_label(static_cast<const int64_t*>(data)[i]);
  }
  FCOS_HOST_DEVICE ClassLabels operator+(int64_t i) const {
    return {static_cast<const char*>(data) + i * size, size};
  }
};

}  // namespace fcos_fast
