// Device-independent part of sigmoid_focal_loss and sigmoid_focal_loss_star; see math/focal_loss.h.
#pragma once

#include <limits>

#include "device_of.h"
#include "math/focal_loss.h"
#include "memory_format.h"

namespace fcos_fast {

inline FocalParameters focal(double alpha, double gamma) {
  check_number("sigmoid_focal_loss", "alpha", alpha, -INFINITY, 1);
  check_number("sigmoid_focal_loss", "gamma", gamma, 0, std::numeric_limits<double>::max());
  return {false, alpha, gamma, 0};
}
inline FocalParameters focal_star(double gamma, double beta) {
  constexpr double most = std::numeric_limits<double>::max();
  check_number("sigmoid_focal_loss_star", "gamma", gamma, std::numeric_limits<double>::min(), most);
  check_number("sigmoid_focal_loss_star", "beta", beta, -most, most);
  return {true, -1, gamma, beta};
}

using RowWeights = std::optional<Tensor>;  // one per row of class targets

struct FocalInputs {
  const Tensor& inputs;
  const Tensor& targets;
  const RowWeights& weight;
};

inline void check_focal(const FocalInputs& of, const Tensor* grad) {
  const auto& [inputs, targets, weight] = of;
  const char* op = "sigmoid_focal_loss";
  check_same_device(op, inputs, targets, weight, grad);
  check_floating(op, "inputs", inputs);
  if (!is_floating_point(targets.scalar_type())) {
    check_integer(op, "targets", targets);
    STD_TORCH_CHECK(inputs.dim() > 0,
                    "fcos_fast::sigmoid_focal_loss: expected inputs (..., C) for class targets");
  }
  if (grad != nullptr) check_floating(op, "grad", *grad);
  std::vector<int64_t> sizes = sizes_of(inputs);
  STD_TORCH_CHECK(grad == nullptr || grad->dim() == 0 || sizes_of(*grad) == sizes,
                  "fcos_fast::sigmoid_focal_loss: grad must be a scalar or have the shape of inputs");
  if (!is_floating_point(targets.scalar_type()) && !sizes.empty()) sizes.pop_back();
  STD_TORCH_CHECK(
      sizes_of(targets) == sizes,
      "fcos_fast::sigmoid_focal_loss: expected targets with the shape of inputs, without the last "
      "dimension for class targets");
  if (!weight.has_value()) return;
  check_floating(op, "weight", *weight);
  STD_TORCH_CHECK(!is_floating_point(targets.scalar_type()) && sizes_of(*weight) == sizes,
                  "fcos_fast::sigmoid_focal_loss: expected class targets, and weight with their shape");
}

struct FocalResult {
  Tensor sum;
  Tensor elements;  // losses or their gradient; empty if only the sum is requested
};

template <class Device>
FocalResult focal_result(const FocalInputs& of, const FocalParameters& parameters, Result want,
                         const Tensor* grad = nullptr, bool with_grad = false) {
  check_focal(of, grad);
  const auto& [inputs, targets, weight] = of;
  DeviceOf<Device> device(inputs);
  const bool dense = is_floating_point(targets.scalar_type());
  const auto format = dense ? std::nullopt : channel_format(inputs, inputs.dim() - 1);
  const bool rows_only = weight.has_value() && format.has_value() && format->inner != 1;
  const bool in_place = dense ? is_dense(inputs) : format.has_value() && !rows_only;
  const Tensor x = device.aligned(in_place ? inputs : torch::stable::contiguous(inputs));
  const ScalarType dtype = x.scalar_type();
  const auto in_order = [&](const Tensor& t) { return Tensor(device.aligned(in_order_of(t, x))); };
  const Upstream upstream = upstream_of(grad, dtype, in_order);

  FocalLossWork work{dtype_of(dtype), x.const_data_ptr(), x.numel()};
  Tensor y, weights;
  if (dense) {
    y = in_order(converted(targets, dtype));
    work.targets = y.const_data_ptr();
  } else {
    const bool narrow = targets.scalar_type() == ScalarType::Int;
    y = torch::stable::contiguous(narrow ? targets : converted(targets, ScalarType::Long));
    work.labels = {y.const_data_ptr(), narrow ? 4u : 8u};
    const ChannelFormat rows{targets.numel(), inputs.size(inputs.dim() - 1), 1};
    const ChannelFormat f = in_place ? *format : rows;
    work.outer = f.outer, work.classes = f.channels, work.inner = f.inner;
    if (weight.has_value()) {
      weights = torch::stable::contiguous(converted(*weight, sum_type(dtype)));
      work.weights = weights.const_data_ptr();
    }
  }
  work.scale = upstream.scale, work.upstream = upstream.elements;

  const bool elementwise = want != Result::kSum || with_grad;
  FocalResult result{{}, elementwise ? torch::stable::empty_like(x) : new_empty(x, {0}, dtype)};
  if (elementwise) (want == Result::kElements ? work.loss : work.grad) = result.elements.mutable_data_ptr();
  if (want == Result::kSum) {
    result.sum = new_empty(x, {}, sum_type(dtype));
    work.sum = result.sum.mutable_data_ptr();
  }
  run_focal_loss(*device, parameters, work);
  if (elementwise && !in_place) result.elements = in_order_of(result.elements, inputs);
  return result;
}

template <class Device>
std::tuple<Tensor, Tensor> focal_sum(const FocalInputs& of, const FocalParameters& parameters,
                                     bool with_grad) {
  const FocalResult result = focal_result<Device>(of, parameters, Result::kSum, nullptr, with_grad);
  return {result.sum, result.elements};
}

template <class Device>
Tensor sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, const RowWeights& weight, double alpha,
                          double gamma) {
  return focal_result<Device>({inputs, targets, weight}, focal(alpha, gamma), Result::kElements).elements;
}
template <class Device>
std::tuple<Tensor, Tensor> sigmoid_focal_loss_sum(const Tensor& inputs, const Tensor& targets,
                                                  const RowWeights& weight, double alpha, double gamma,
                                                  bool with_grad) {
  return focal_sum<Device>({inputs, targets, weight}, focal(alpha, gamma), with_grad);
}
template <class Device>
Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                   const RowWeights& weight, double alpha, double gamma) {
  return focal_result<Device>({inputs, targets, weight}, focal(alpha, gamma), Result::kGrad, &grad).elements;
}
template <class Device>
Tensor sigmoid_focal_loss_star(const Tensor& inputs, const Tensor& targets, const RowWeights& weight,
                               double gamma, double beta) {
  return focal_result<Device>({inputs, targets, weight}, focal_star(gamma, beta), Result::kElements).elements;
}
template <class Device>
std::tuple<Tensor, Tensor> sigmoid_focal_loss_star_sum(const Tensor& inputs, const Tensor& targets,
                                                       const RowWeights& weight, double gamma, double beta,
                                                       bool with_grad) {
  return focal_sum<Device>({inputs, targets, weight}, focal_star(gamma, beta), with_grad);
}
template <class Device>
Tensor sigmoid_focal_loss_star_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                        const RowWeights& weight, double gamma, double beta) {
  return focal_result<Device>({inputs, targets, weight}, focal_star(gamma, beta), Result::kGrad, &grad)
      .elements;
}

}  // namespace fcos_fast
