// One launch, one block per image.
#include "../nms.h"
#include "greedy_nms.h"

namespace fcos_fast {
namespace {

template <class RealType, class Score>
struct PaddedImage {
  using Real = RealType;
  using Key = math::key_t<Score>;
  const Real* boxes;
  const Score* scores;
  const int64_t* labels;
  int64_t n;
  int64_t* indices;

  template <class F>
  __device__ void each_key(const F& f) const {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      if (scores[i] != Score(-INFINITY)) f(math::make_key(scores[i], uint32_t(i)));
    }
  }
  __device__ Candidate<Real> candidate(Key key) const {
    const int64_t i = math::index_of(key);
    const Real* b = boxes + 4 * i;
    return {{b[0], b[1], b[2], b[3], math::box_area(b[0], b[1], b[2], b[3])},
            labels == nullptr ? 0 : labels[i]};
  }
  __device__ bool may_be_kept(const Candidate<Real>&) const { return true; }
  __device__ void keep(int64_t slot, Key key) const { indices[slot] = math::index_of(key); }
};

template <class Real, class Score>
__global__ void __launch_bounds__(kImageThreads, 1)
    suppress_kernel(PaddedImage<Real, Score> image, Real threshold, int64_t most, Candidate<Real>* kept,
                    int64_t* counts) {
  __shared__ GreedyMemory<Real, math::key_t<Score>> memory;
  const int64_t b = blockIdx.x;
  image.boxes += 4 * b * image.n;
  image.scores += b * image.n;
  if (image.labels != nullptr) image.labels += b * image.n;
  image.indices += b * most;
  const int64_t count = suppress_image(image, kept + b * most, most, threshold, memory);
  for (int64_t slot = count + threadIdx.x; slot < most; slot += blockDim.x) image.indices[slot] = -1;
  if (threadIdx.x == 0) counts[b] = count;
}

template <class Real, class Score>
void run(const Tensor& boxes, const Tensor& scores, const int64_t* labels, Real threshold, Tensor& indices,
         Tensor& counts, cudaStream_t stream) {
  const int64_t batch = boxes.size(0), most = indices.size(1);
  Tensor kept = new_kept<Real>(boxes, batch, most);
  const PaddedImage<Real, Score> image{static_cast<const Real*>(boxes.const_data_ptr()),
                                       static_cast<const Score*>(scores.const_data_ptr()), labels,
                                       boxes.size(1), static_cast<int64_t*>(indices.mutable_data_ptr())};
  suppress_kernel<<<unsigned(batch), kImageThreads, 0, stream>>>(
      image, threshold, most, static_cast<Candidate<Real>*>(kept.mutable_data_ptr()),
      static_cast<int64_t*>(counts.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> labels,
                                      double iou_threshold, int64_t max_detections) {
  check_nms_padded(boxes, scores, labels, iou_threshold, max_detections);
  const OnDeviceOf device(boxes);
  Tensor indices = new_empty(boxes, {boxes.size(0), max_detections}, ScalarType::Long);
  Tensor counts = new_empty(boxes, {boxes.size(0)}, ScalarType::Long);
  if (boxes.size(0) == 0) return {indices, counts};

  const Tensor b = torch::stable::contiguous(converted(boxes, sum_type(boxes.scalar_type())));
  const Tensor s = torch::stable::contiguous(converted(scores, sum_type(scores.scalar_type())));
  Tensor classes;
  if (labels.has_value()) classes = torch::stable::contiguous(converted(*labels, ScalarType::Long));
  const auto* l = labels.has_value() ? static_cast<const int64_t*>(classes.const_data_ptr()) : nullptr;
  const bool double_scores = s.scalar_type() == ScalarType::Double;
  if (b.scalar_type() == ScalarType::Double) {
    (double_scores ? run<double, double> : run<double, float>)(b, s, l, iou_threshold, indices, counts,
                                                               device.stream());
  } else {
    (double_scores ? run<float, double> : run<float, float>)(b, s, l, math::round_down(iou_threshold),
                                                             indices, counts, device.stream());
  }
  return {indices, counts};
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) { m.impl("nms_padded", TORCH_BOX(&fcos_fast::nms_padded)); }
