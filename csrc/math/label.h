// Class labels come as int64 and leave as int32.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fcos_fast::math {

// What int32 cannot hold becomes its end, which no number of classes reaches, not another class.
FCOS_HOST_DEVICE int32_t narrow_label(int64_t label) {
  constexpr int64_t most = 2147483647;
  return int32_t(label > most ? most : label < -most - 1 ? -most - 1 : label);
}

}  // namespace fcos_fast::math
