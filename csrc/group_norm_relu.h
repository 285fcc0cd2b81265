// Device-independent part of group_norm_relu; see math/group_norm_relu.h.
#pragma once

#include "device_of.h"
#include "math/group_norm_relu.h"
#include "memory_format.h"

namespace fcos_fast {

inline void check_group_norm(const Tensor& x, const std::optional<Tensor>& weight,
                             const std::optional<Tensor>& bias, int64_t groups) {
  STD_TORCH_CHECK(x.dim() >= 2 && is_floating_point(x.scalar_type()) && groups > 0 && x.size(1) % groups == 0,
                  "fcos_fast::group_norm_relu: expected floating-point x (B, C, ...) with C a multiple of ",
                  groups, " groups");
  check_same_device("group_norm_relu", x, weight, bias);
  for (const auto* t : {&weight, &bias}) {
    if (t->has_value()) check_floating("group_norm_relu", "weight or bias", **t);
    STD_TORCH_CHECK(!t->has_value() || ((*t)->dim() == 1 && (*t)->size(0) == x.size(1)),
                    "fcos_fast::group_norm_relu: weight and bias must have one number per channel");
  }
}

inline void check_group_norm_grad(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                  const std::optional<Tensor>& weight, const std::optional<Tensor>& bias) {
  const char* op = "group_norm_relu_backward";
  check_same_device(op, x, grad, mean, rstd);
  check_floating(op, "grad", grad);
  check_floating(op, "mean", mean);
  check_floating(op, "rstd", rstd);
  STD_TORCH_CHECK(
      mean.dim() == 2 && mean.size(0) == x.size(0) && sizes_of(rstd) == sizes_of(mean) &&
          sizes_of(grad) == sizes_of(x),
      "fcos_fast::group_norm_relu_backward: expected grad of the shape of x, mean and rstd (B, G)");
  check_group_norm(x, weight, bias, mean.size(1));
}

// Is the memory dense in (B, ..., C) order?
inline bool is_channels_last(const Tensor& x) {
  int64_t expected = x.size(1);
  for (int64_t k = 1; k < x.dim(); ++k) {
    const int64_t d = k == x.dim() - 1 ? 0 : x.dim() - k;  // the last dimension, ..., the third, the first
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return x.size(1) == 1 || x.stride(1) == 1;
}

// weight and bias are read in their own dtype, which may differ from that of x; float64 only if x is float64.
inline ScalarType parameter_type(const Tensor& parameter, const Tensor& x) {
  return parameter.scalar_type() == ScalarType::Double ? sum_type(x.scalar_type()) : parameter.scalar_type();
}

inline std::optional<Tensor> parameter_of(const std::optional<Tensor>& t, const Tensor& x) {
  if (!t.has_value()) return std::nullopt;
  return torch::stable::contiguous(converted(*t, parameter_type(*t, x)));
}

// The tensors that the kernels read, and their description.
template <class Device>
struct GroupNormArguments {
  bool channels_last;
  Tensor x;  // NCHW or channels-last
  std::optional<Tensor> weight, bias;

  GroupNormArguments(DeviceOf<Device>& device, const Tensor& input, const std::optional<Tensor>& weight,
                     const std::optional<Tensor>& bias)
      : channels_last(input.size(1) > 1 && is_channels_last(input) &&
                      reads_channels_last(*device, input.size(1))),
        x(device.aligned(channels_last ? input : torch::stable::contiguous(input))),
        weight(parameter_of(weight, x)),
        bias(parameter_of(bias, x)) {}

  ScalarType real() const { return sum_type(x.scalar_type()); }

  GroupNormInput input(int64_t groups) const {
    const auto parameter = [](const std::optional<Tensor>& t) -> GroupNormParameter<const void> {
      if (!t.has_value()) return {nullptr, Dtype::kFloat32};
      return {t->const_data_ptr(), dtype_of(*t)};
    };
    const int64_t spatial = x.numel() / (x.size(0) * x.size(1));
    return {dtype_of(x),   x.size(0),          x.size(1),         spatial,        groups,
            channels_last, x.const_data_ptr(), parameter(weight), parameter(bias)};
  }
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor> group_norm_relu(const Tensor& input, std::optional<Tensor> weight,
                                                   std::optional<Tensor> bias, int64_t groups, double eps) {
  check_group_norm(input, weight, bias, groups);
  check_number("group_norm_relu", "eps", eps, 0, INFINITY);
  DeviceOf<Device> device(input);
  const GroupNormArguments<Device> a(device, input, weight, bias);
  Tensor y = torch::stable::empty_like(a.x);
  const auto statistics = [&] { return new_empty(a.x, {a.x.size(0), groups}, a.real()); };
  Tensor mean = statistics(), rstd = statistics();
  if (y.numel() == 0) {
    return {in_order_of(y, input), torch::stable::zero_(mean), torch::stable::zero_(rstd)};
  }
  run_group_norm_relu(*device, a.input(groups),
                      {eps, y.mutable_data_ptr(), mean.mutable_data_ptr(), rstd.mutable_data_ptr()});
  return {in_order_of(y, input), mean, rstd};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> group_norm_relu_backward(const Tensor& grad, const Tensor& input,
                                                            const Tensor& mean, const Tensor& rstd,
                                                            std::optional<Tensor> weight,
                                                            std::optional<Tensor> bias) {
  check_group_norm_grad(grad, input, mean, rstd, weight, bias);
  DeviceOf<Device> device(input);
  const GroupNormArguments<Device> a(device, input, weight, bias);
  const Tensor upstream = device.aligned(in_order_of(converted(grad, a.x.scalar_type()), a.x));
  const Tensor means = torch::stable::contiguous(converted(mean, a.real()));
  const Tensor rstds = torch::stable::contiguous(converted(rstd, a.real()));
  const auto gradient = [&](const std::optional<Tensor>& parameter) {
    if (!parameter.has_value()) return new_empty(a.x, {0}, a.x.scalar_type());
    return new_empty(a.x, {a.x.size(1)}, parameter_type(*parameter, a.x));
  };
  Tensor grad_x = torch::stable::empty_like(a.x), grad_weight = gradient(weight), grad_bias = gradient(bias);
  const auto parameter = [](const std::optional<Tensor>& of, Tensor& grad) -> GroupNormParameter<void> {
    return {of.has_value() ? grad.mutable_data_ptr() : nullptr, dtype_of(grad)};
  };
  if (grad_x.numel() == 0) {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  } else {
    run_group_norm_relu_backward(
        *device, a.input(mean.size(1)),
        {upstream.const_data_ptr(), means.const_data_ptr(), rstds.const_data_ptr(), grad_x.mutable_data_ptr(),
         parameter(weight, grad_weight), parameter(bias, grad_bias)});
  }
  const auto in_type_of = [](const std::optional<Tensor>& parameter, const Tensor& grad) {
    return parameter.has_value() ? converted(grad, parameter->scalar_type()) : grad;
  };
  return {in_order_of(grad_x, input), in_type_of(weight, grad_weight), in_type_of(bias, grad_bias)};
}

}  // namespace fcos_fast
