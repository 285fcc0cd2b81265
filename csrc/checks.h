// Argument checks of every operator. The public Python operators have better messages; these prevent out-of-bounds
// reads in direct calls through torch.ops and in calls with tensors on different devices.
#pragma once

#include <limits>
#include <string>

#include "tensor.h"

namespace fcos_fast {

inline bool on_one_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.is_cpu() == b.is_cpu() &&
         a.get_device_index() == b.get_device_index();
}
inline bool on_one_device(const Tensor& a, const std::optional<Tensor>& b) {
  return !b.has_value() || on_one_device(a, *b);
}
inline bool on_one_device(const Tensor& a, const Tensor* b) { return b == nullptr || on_one_device(a, *b); }
inline bool on_one_device(const Tensor& a, const std::vector<Tensor>& list) {
  return std::all_of(list.begin(), list.end(), [&](const Tensor& b) { return on_one_device(a, b); });
}

// Tensors, optional ones, pointers to them, or lists.
template <class... Tensors>
void check_same_device(const char* op, const Tensor& first, const Tensors&... others) {
  STD_TORCH_CHECK((on_one_device(first, others) && ...), "fcos_fast::", op,
                  ": expected all tensors on the same device");
}

inline void check_floating(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(is_floating_point(t.scalar_type()), "fcos_fast::", op, ": ", name, " has dtype ",
                  torch::headeronly::toString(t.scalar_type()),
                  "; expected float32, float64, bfloat16 or float16");
}

inline void check_integer(const char* op, const char* name, const Tensor& t) {
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Long || dtype == ScalarType::Int || dtype == ScalarType::Short ||
                      dtype == ScalarType::Char || dtype == ScalarType::Byte,
                  "fcos_fast::", op, ": ", name, " has dtype ", torch::headeronly::toString(dtype),
                  "; expected an integer dtype");
}

// For counts and sizes.
inline void check_range(const char* op, const char* name, int64_t value, int64_t low, int64_t high) {
  STD_TORCH_CHECK(low <= value && value <= high, "fcos_fast::", op, ": ", name, "=", value, "; expected ",
                  low, "..", high);
}

// NaN is out of any range.
inline void check_number(const char* op, const char* name, double value, double low, double high) {
  STD_TORCH_CHECK(low <= value && value <= high, "fcos_fast::", op, ": ", name, "=", value,
                  "; expected a number from ", low, " to ", high);
}

// Parses a choice that Python passes by name; `names` are in the order of the enumeration.
template <class Enum, size_t N>
Enum read_choice(const char* op, const char* name, const std::string& choice, const char* const (&names)[N]) {
  std::string known;
  for (size_t i = 0; i < N; ++i) {
    if (choice == names[i]) return Enum(i);
    known += std::string(i == 0 ? "" : ", ") + names[i];
  }
  STD_TORCH_CHECK(false, "fcos_fast::", op, ": ", name, "='", choice, "'; expected one of ", known);
}

// Checks a packed batch of boxes.
inline void check_ground_truth(const char* op, const Tensor& boxes, const Tensor& labels,
                               const Tensor& starts) {
  check_same_device(op, boxes, labels, starts);
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float && boxes.dim() == 2 && boxes.size(1) == 4,
                  "fcos_fast::", op, ": expected float32 boxes (M, 4)");
  STD_TORCH_CHECK(
      labels.scalar_type() == ScalarType::Long && labels.dim() == 1 && labels.size(0) == boxes.size(0),
      "fcos_fast::", op, ": expected int64 labels (M,)");
  STD_TORCH_CHECK(starts.scalar_type() == ScalarType::Long && starts.dim() == 1 && starts.size(0) >= 2,
                  "fcos_fast::", op, ": expected int64 starts (B + 1,) with at least one image");
  STD_TORCH_CHECK(boxes.size(0) <= std::numeric_limits<int32_t>::max(), "fcos_fast::", op, ": got ",
                  boxes.size(0), " boxes; expected at most 2^31 - 1");
}

// For `starts` in host memory.
inline void check_starts(const char* op, const int64_t* starts, int64_t batch, int64_t boxes) {
  for (int64_t b = 0; b < batch; ++b) {
    STD_TORCH_CHECK(0 <= starts[b] && starts[b] <= starts[b + 1] && starts[b + 1] <= boxes, "fcos_fast::", op,
                    ": expected non-decreasing starts from 0 to the number of boxes (", boxes, ")");
  }
}

}  // namespace fcos_fast
