// One pass over the logits as they lie in memory, 16 bytes per thread and step. Sums go through one partial
// sum per block, added in order by a second, tiny launch.
#include "../focal_layout.h"
#include "../math/focal_loss.h"
#include "launch_torch.h"

namespace fcos_fast {
namespace {

using namespace math;

template <class T>
struct Arguments {
  const T* x;
  int64_t n;
  const T* targets;       // dense, or
  const int32_t* labels;  // one class per location, of either type
  const int64_t* long_labels;
  int64_t classes, inner;
  const compute_t<T>* scale;
  const T* upstream;
  T* loss;
  T* grad;
  double* partial;  // one per block
};

// Where a flat position stands in [outer][classes][inner], advanced element by element without division.
struct Cursor {
  int64_t inner, label, location;

  __device__ Cursor(int64_t flat, int64_t classes, int64_t inner_size) {
    // Division of 64-bit numbers is slow, and hardly any tensor needs it.
    const bool small = (flat | classes | inner_size) <= 0xffffffffll;
    const int64_t plane = small ? uint32_t(flat) / uint32_t(inner_size) : flat / inner_size;
    inner = flat - plane * inner_size;
    const int64_t outer = small ? uint32_t(plane) / uint32_t(classes) : plane / classes;
    label = plane - outer * classes;
    location = outer * inner_size + inner;
  }
  __device__ void advance(int64_t classes, int64_t inner_size) {
    ++inner;
    ++location;
    if (inner < inner_size) return;
    inner = 0;
    location -= inner_size;
    if (++label < classes) return;
    label = 0;
    location += inner_size;
  }
};

template <class C, class Form>
__device__ __forceinline__ LossAndGrad<C> of_class(const Form& form, C x, int64_t target, int64_t label) {
  const bool foreground = target == label;
  const C weight = foreground ? form.positive_weight : form.negative_weight;
  const auto at = form.background(foreground ? -x : x, weight);
  if (target == -2) return {C(0), C(0)};
  return {at.loss, foreground ? -at.grad : at.grad};
}

template <class T, bool Dense, Result Want, class Form>
__global__ void __launch_bounds__(kThreads) focal_kernel(Arguments<T> a, Form form) {
  using C = compute_t<T>;
  constexpr int N = 16 / sizeof(T);
  const int64_t stride = int64_t(gridDim.x) * kThreads * N;
  const bool flows = Want == Result::kGrad && a.upstream != nullptr;
  const C scale = Want == Result::kGrad && a.scale != nullptr ? *a.scale : C(1);
  double total = 0;
  for (int64_t begin = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N; begin < a.n; begin += stride) {
    const int count = int(min(int64_t(N), a.n - begin));
    const auto x = load_pack<N>(a.x + begin, count);
    Pack<T, N> y, flow, out;
    if constexpr (Dense) y = load_pack<N>(a.targets + begin, count);
    if (flows) flow = load_pack<N>(a.upstream + begin, count);
    Cursor cursor(Dense ? 0 : begin, Dense ? 1 : a.classes, Dense ? 1 : a.inner);
    C pack_total = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      LossAndGrad<C> at{C(0), C(0)};
      if (i < count) {
        if constexpr (Dense) {
          at = form.soft(C(x.v[i]), C(y.v[i]));
        } else {
          const int64_t target =
              a.labels != nullptr ? a.labels[cursor.location] : a.long_labels[cursor.location];
          at = of_class(form, C(x.v[i]), target, cursor.label);
          cursor.advance(a.classes, a.inner);
        }
      }
      if constexpr (Want == Result::kSum) pack_total += at.loss;
      if constexpr (Want == Result::kElements) out.v[i] = T(at.loss);
      if constexpr (Want == Result::kGrad) {
        const C factor = flows ? C(flow.v[i]) : scale;
        out.v[i] = T(at.grad == C(0) ? at.grad : at.grad * factor);  // ignored stays 0 whatever flows in
      }
    }
    if constexpr (Want == Result::kSum) total += double(pack_total);
    if constexpr (Want == Result::kElements) store_pack(a.loss + begin, out, count);
    if constexpr (Want == Result::kGrad) store_pack(a.grad + begin, out, count);
  }
  if constexpr (Want == Result::kSum) {
    total = block_sum(total);
    if (threadIdx.x == 0) a.partial[blockIdx.x] = total;
  }
}

template <class T, Result Want, class Form>
void launch(const Arguments<T>& a, const Form& form, int blocks, cudaStream_t stream) {
  if (a.targets != nullptr) {
    focal_kernel<T, true, Want><<<blocks, kThreads, 0, stream>>>(a, form);
  } else {
    focal_kernel<T, false, Want><<<blocks, kThreads, 0, stream>>>(a, form);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T, class Form>
void run(Result want, Arguments<T> a, const Form& form, Tensor& out, const Tensor& x, cudaStream_t stream) {
  constexpr int64_t kPack = 16 / sizeof(T);
  const int blocks = std::max(1, blocks_for((a.n + kPack - 1) / kPack));
  if (want == Result::kElements) {
    if (a.n > 0) launch<T, Result::kElements>(a, form, blocks, stream);
  } else if (want == Result::kGrad) {
    if (a.n > 0) launch<T, Result::kGrad>(a, form, blocks, stream);
  } else {
    Tensor partial = new_empty(x, {blocks}, ScalarType::Double);
    a.partial = static_cast<double*>(partial.mutable_data_ptr());
    launch<T, Result::kSum>(a, form, blocks, stream);
    add_partial_sums<<<1, kThreads, 0, stream>>>(a.partial, blocks, 1,
                                                 static_cast<compute_t<T>*>(out.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

template <class T>
void run_form(Result want, const Arguments<T>& a, const FocalParameters& p, Tensor& out, const Tensor& x,
              cudaStream_t stream) {
  using C = compute_t<T>;
  if (p.star) return run(want, a, FocalLossStar<C>(p), out, x, stream);
  if (p.gamma == 2) return run(want, a, FocalLossSquare<C>(p), out, x, stream);
  run(want, a, FocalLoss<C>(p), out, x, stream);
}

Tensor run(const Tensor& inputs, const Tensor& targets, const FocalParameters& parameters, Result want,
           const Tensor* grad) {
  check_focal(inputs, targets, grad);
  const OnDeviceOf device(inputs);
  const bool dense = is_floating_point(targets.scalar_type());
  const auto layout = dense ? std::optional<FocalLayout>() : find_focal_layout(inputs);
  const bool as_it_lies = dense ? is_dense(inputs) : layout.has_value();
  const Tensor x = aligned(as_it_lies ? inputs : torch::stable::contiguous(inputs));
  const ScalarType dtype = x.scalar_type();
  Tensor out = want == Result::kSum ? new_empty(x, {}, sum_type(dtype)) : torch::stable::empty_like(x);
  const Upstream upstream =
      upstream_of(grad, dtype, [&](const Tensor& g) { return aligned(in_order_of(g, x)); });
  const Tensor y = dense ? aligned(in_order_of(converted(targets, dtype), x))
                         : torch::stable::contiguous(targets.scalar_type() == ScalarType::Int
                                                         ? targets
                                                         : converted(targets, ScalarType::Long));

  dispatch_floating("sigmoid_focal_loss", dtype, [&](auto element) {
    using T = decltype(element);
    Arguments<T> a{};
    a.x = static_cast<const T*>(x.const_data_ptr());
    a.n = x.numel();
    if (dense) {
      a.targets = static_cast<const T*>(y.const_data_ptr());
    } else {
      if (y.scalar_type() == ScalarType::Int) {
        a.labels = static_cast<const int32_t*>(y.const_data_ptr());
      } else {
        a.long_labels = static_cast<const int64_t*>(y.const_data_ptr());
      }
      a.classes = layout ? layout->classes : x.size(x.dim() - 1);
      a.inner = layout ? layout->inner : 1;
    }
    a.scale = static_cast<const compute_t<T>*>(upstream.scale);
    a.upstream = static_cast<const T*>(upstream.elements);
    if (want == Result::kElements) a.loss = static_cast<T*>(out.mutable_data_ptr());
    if (want == Result::kGrad) a.grad = static_cast<T*>(out.mutable_data_ptr());
    run_form(want, a, parameters, out, x, device.stream());
  });
  if (want == Result::kSum || as_it_lies) return out;
  Tensor result = torch::stable::empty_like(inputs);
  torch::stable::copy_(result, out);
  return result;
}

// Here a stored gradient would be read and written once more than it costs to compute it again in backward.
std::tuple<Tensor, Tensor> run_sum(const Tensor& inputs, const Tensor& targets,
                                   const FocalParameters& parameters, bool with_grad) {
  STD_TORCH_CHECK(!with_grad, "fcos_fast::sigmoid_focal_loss_sum: with_grad is for the CPU");
  return {run(inputs, targets, parameters, Result::kSum, nullptr),
          new_empty(inputs, {0}, inputs.scalar_type())};
}

Tensor sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma) {
  return run(inputs, targets, focal(alpha, gamma), Result::kElements, nullptr);
}
std::tuple<Tensor, Tensor> sigmoid_focal_loss_sum(const Tensor& inputs, const Tensor& targets, double alpha,
                                                  double gamma, bool with_grad) {
  return run_sum(inputs, targets, focal(alpha, gamma), with_grad);
}
Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                   double alpha, double gamma) {
  return run(inputs, targets, focal(alpha, gamma), Result::kGrad, &grad);
}
Tensor sigmoid_focal_loss_star(const Tensor& inputs, const Tensor& targets, double gamma, double beta) {
  return run(inputs, targets, focal_star(gamma, beta), Result::kElements, nullptr);
}
std::tuple<Tensor, Tensor> sigmoid_focal_loss_star_sum(const Tensor& inputs, const Tensor& targets,
                                                       double gamma, double beta, bool with_grad) {
  return run_sum(inputs, targets, focal_star(gamma, beta), with_grad);
}
Tensor sigmoid_focal_loss_star_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                        double gamma, double beta) {
  return run(inputs, targets, focal_star(gamma, beta), Result::kGrad, &grad);
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) {
  using namespace fcos_fast;
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_sum", TORCH_BOX(&sigmoid_focal_loss_sum));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
  m.impl("sigmoid_focal_loss_star", TORCH_BOX(&sigmoid_focal_loss_star));
  m.impl("sigmoid_focal_loss_star_sum", TORCH_BOX(&sigmoid_focal_loss_star_sum));
  m.impl("sigmoid_focal_loss_star_backward", TORCH_BOX(&sigmoid_focal_loss_star_backward));
}
