// A thread per anchor and image, the image's boxes through shared memory. A first launch finds the greatest IoU of each
// box, if low-quality matches are wanted; a second one computes the same IoUs again and decides; a third, tiny one adds
// the blocks' counts. The host never learns the number of boxes.
#include "../ground_truth.h"
#include "../math/match_anchors.h"
#include "launch_torch.h"

namespace fcos_fast {
namespace {

constexpr int kBoxesAtOnce = kThreads;

struct Inputs {
  const float4* anchors;
  const float4* boxes;
  const int64_t* starts;
  int64_t anchor_count, box_count;
};

struct Outputs {
  int32_t* labels;
  int32_t* matched;
  double* positive;  // one per block
};

struct Box {
  float4 corners;
  float area;
};

__device__ __forceinline__ Box with_area(const float4& b) { return {b, math::box_area(b.x, b.y, b.z, b.w)}; }

__device__ __forceinline__ float iou(const Box& box, const Box& anchor) {
  const float w = math::overlap(box.corners.x, box.corners.z, anchor.corners.x, anchor.corners.z);
  const float h = math::overlap(box.corners.y, box.corners.w, anchor.corners.y, anchor.corners.w);
  if (!(w > 0.0f) || !(h > 0.0f)) return 0.0f;
  return math::iou_of_overlap(w, h, box.area, anchor.area);
}

// Visits the image's boxes in order: prepare(k, box number) by one thread each, visit(k, box number) by all, finish(k,
// box number) by one. k is the box's place in the tile; boxes[k].area is 0 where it takes part in nothing.
template <class Prepare, class Visit, class Finish>
__device__ __forceinline__ void for_each_box(const Inputs& in, Box* boxes, const Prepare& prepare,
                                             const Visit& visit, const Finish& finish) {
  // Bounds that lie are clamped: nothing is read outside the boxes.
  const int64_t begin = max(int64_t(0), min(in.starts[blockIdx.y], in.box_count));
  const int64_t end = max(begin, min(in.starts[blockIdx.y + 1], in.box_count));
  const int thread = threadIdx.x;
  for (int64_t first = begin; first < end; first += kBoxesAtOnce) {
    const int count = int(min(int64_t(kBoxesAtOnce), end - first));
    if (thread < count) {
      const float4 b = in.boxes[first + thread];
      const float corners[4] = {b.x, b.y, b.z, b.w};
      boxes[thread] = with_area(b);
      if (!math::may_match(corners, boxes[thread].area)) boxes[thread].area = 0;
      prepare(thread, first + thread);
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      if (boxes[k].area > 0.0f) visit(k, first + k);
    }
    __syncthreads();
    if (thread < count) finish(thread, first + thread);
  }
}

// greatest: per box, the bits of its greatest IoU; those of numbers that are not negative are ordered as they are.
__global__ void __launch_bounds__(kThreads) greatest_kernel(Inputs in, int* greatest) {
  __shared__ Box boxes[kBoxesAtOnce];
  __shared__ int of_block[kBoxesAtOnce];
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const Box anchor = at < in.anchor_count ? with_area(in.anchors[at]) : Box{};
  for_each_box(
      in, boxes, [&](int k, int64_t) { of_block[k] = 0; },
      [&](int k, int64_t) {
        const float own = iou(boxes[k], anchor);
        if (!__any_sync(0xffffffffu, own > 0.0f)) return;
        int bits = own > 0.0f ? __float_as_int(own) : 0;
        for (int offset = 16; offset > 0; offset /= 2) {
          bits = max(bits, __shfl_down_sync(0xffffffffu, bits, offset));
        }
        if (threadIdx.x % 32 == 0) atomicMax(&of_block[k], bits);
      },
      [&](int k, int64_t m) {
        if (of_block[k] > 0) atomicMax(&greatest[m], of_block[k]);
      });
}

// greatest: null where low-quality matches are not wanted.
__global__ void __launch_bounds__(kThreads)
    match_kernel(Inputs in, const int64_t* labels, const float* greatest, math::MatchThresholds thresholds,
                 Outputs out) {
  __shared__ Box boxes[kBoxesAtOnce];
  __shared__ float best_of_box[kBoxesAtOnce];
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const bool exists = at < in.anchor_count;
  const Box anchor = exists ? with_area(in.anchors[at]) : Box{};
  float best = -1;
  int32_t row = -1;
  bool low_quality = false;
  for_each_box(
      in, boxes, [&](int k, int64_t m) { best_of_box[k] = greatest != nullptr ? greatest[m] : -1.0f; },
      [&](int k, int64_t m) {
        const float own = iou(boxes[k], anchor);
        low_quality |= own == best_of_box[k];
        if (own > best) {
          best = own;
          row = int32_t(m);
        }
      },
      [](int, int64_t) {});
  const int32_t result = math::decide_match(row, best, low_quality, thresholds);
  if (exists) {
    out.matched[blockIdx.y * in.anchor_count + at] = result;
    out.labels[blockIdx.y * in.anchor_count + at] = result >= 0 ? math::narrow_label(labels[result]) : result;
  }
  const double positive = block_sum(exists && result >= 0 ? 1.0 : 0.0);
  if (threadIdx.x == 0) out.positive[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = positive;
}

std::tuple<Tensor, Tensor, Tensor> match_anchors(const Tensor& anchors, const Tensor& boxes,
                                                 const Tensor& labels, const Tensor& starts,
                                                 double high_threshold, double low_threshold,
                                                 bool allow_low_quality) {
  check_anchors(anchors, boxes, high_threshold, low_threshold);
  check_ground_truth("match_anchors", boxes, labels, starts);
  const OnDeviceOf device(anchors);
  const int64_t batch = starts.numel() - 1, count = anchors.size(0);
  STD_TORCH_CHECK(batch <= 65535, "fcos_fast::match_anchors: at most 65535 images, got ", batch);
  const Tensor candidates = aligned(torch::stable::contiguous(anchors));
  const Tensor packed = aligned(torch::stable::contiguous(boxes));
  const Tensor classes = torch::stable::contiguous(labels);
  const Tensor bounds = torch::stable::contiguous(starts);
  Tensor out_labels = new_empty(anchors, {batch, count}, ScalarType::Int);
  Tensor out_matched = new_empty(anchors, {batch, count}, ScalarType::Int);
  Tensor positive = new_empty(anchors, {}, ScalarType::Float);

  const dim3 grid(unsigned((count + kThreads - 1) / kThreads), unsigned(batch));
  Tensor partial = new_empty(anchors, {int64_t(grid.x) * batch}, ScalarType::Double);
  auto* counts = static_cast<double*>(partial.mutable_data_ptr());
  if (count > 0) {
    const Inputs in{static_cast<const float4*>(candidates.const_data_ptr()),
                    static_cast<const float4*>(packed.const_data_ptr()),
                    static_cast<const int64_t*>(bounds.const_data_ptr()), count, packed.size(0)};
    Tensor greatest;
    if (allow_low_quality) {
      greatest = torch::stable::new_zeros(anchors, {packed.size(0)}, ScalarType::Float);
      greatest_kernel<<<grid, kThreads, 0, device.stream()>>>(in,
                                                              static_cast<int*>(greatest.mutable_data_ptr()));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    match_kernel<<<grid, kThreads, 0, device.stream()>>>(
        in, static_cast<const int64_t*>(classes.const_data_ptr()),
        allow_low_quality ? static_cast<const float*>(greatest.const_data_ptr()) : nullptr,
        {float(high_threshold), float(low_threshold)},
        {static_cast<int32_t*>(out_labels.mutable_data_ptr()),
         static_cast<int32_t*>(out_matched.mutable_data_ptr()), counts});
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  add_partial_sums<<<1, kThreads, 0, device.stream()>>>(counts, int64_t(grid.x) * batch, 1,
                                                        static_cast<float*>(positive.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {out_labels, out_matched, positive};
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) {
  m.impl("match_anchors", TORCH_BOX(&fcos_fast::match_anchors));
}
