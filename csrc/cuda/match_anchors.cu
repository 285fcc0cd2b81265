// A thread per anchor and image. The image's boxes are processed 256 at a time: those that can overlap the block's
// anchors are listed, in order, and only these are compared. If low-quality matches are allowed, a first launch
// computes the greatest IoU of each box. The second launch computes the IoUs (again) and decides, and its last block to
// finish writes the count. The number of boxes is not needed on the host.
#include "../math/match_anchors.h"

#include "launch.h"

namespace fcos_fast {
namespace {

constexpr int64_t kMaxImages = 65535;  // limit of the second grid dimension

struct Counters {
  unsigned long long positives;
  unsigned ended;  // number of finished blocks
};

struct Arguments {
  const float4* __restrict__ anchors;  // (A)
  const float4* __restrict__ boxes;    // (M)
  const int64_t* __restrict__ labels;  // (M)
  const int64_t* __restrict__ starts;  // (B + 1)
  int64_t anchor_count, box_count;
  math::MatchRule rule;
  // (M) the bits of each box's greatest IoU, which are ordered like the numbers; null without low-quality matches
  int* greatest;
  Counters* counters;                 // start at 0
  int32_t* __restrict__ out_labels;   // (B, A)
  int32_t* __restrict__ out_matched;  // (B, A)
  float* __restrict__ num_positive;   // ()
};

struct Box {
  float4 corners;
  float area;  // 0: the box is skipped
};

__device__ __forceinline__ Box with_area(const float4& b) { return {b, math::box_area(b.x, b.y, b.z, b.w)}; }

__device__ __forceinline__ float iou(const Box& box, const Box& anchor) {
  const float w = math::overlap(box.corners.x, box.corners.z, anchor.corners.x, anchor.corners.z);
  const float h = math::overlap(box.corners.y, box.corners.w, anchor.corners.y, anchor.corners.w);
  if (!(w > 0.0f) || !(h > 0.0f)) return 0.0f;
  return math::iou_of_overlap(w, h, box.area, anchor.area);
}

__device__ __forceinline__ float4 around(const float4& a, const float4& b) {
  return make_float4(fminf(a.x, b.x), fminf(a.y, b.y), fmaxf(a.z, b.z), fmaxf(a.w, b.w));
}

// The bounding box of all anchors of the block; NaN is ignored.
__device__ float4 bounds_of_block(float4 own) {
  __shared__ float4 of_warps[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    own = around(own, make_float4(__shfl_xor_sync(0xffffffffu, own.x, offset),
                                  __shfl_xor_sync(0xffffffffu, own.y, offset),
                                  __shfl_xor_sync(0xffffffffu, own.z, offset),
                                  __shfl_xor_sync(0xffffffffu, own.w, offset)));
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = own;
  __syncthreads();
  for (int w = 0; w < kThreads / 32; ++w) own = around(own, of_warps[w]);
  return own;
}

__device__ __forceinline__ bool may_overlap(const float4& box, const float4& bounds) {
  return math::overlap(box.x, box.z, bounds.x, bounds.z) > 0.0f &&
         math::overlap(box.y, box.w, bounds.y, bounds.w) > 0.0f;
}

// The anchor of this thread and the bounding box of the block's anchors.
struct Anchors {
  int64_t at;
  bool exists;
  Box own;
  float4 bounds;

  __device__ explicit Anchors(const Arguments& a) {
    at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    exists = at < a.anchor_count;
    const float4 nowhere = make_float4(INFINITY, INFINITY, -INFINITY, -INFINITY);
    own = exists ? with_area(a.anchors[at]) : Box{};
    bounds = bounds_of_block(exists ? own.corners : nowhere);
  }
};

// Visits the image's boxes in order: prepare(k, box index, can it overlap the block) in one thread per box that is not
// skipped; visit(k, box index) in all threads, for boxes that can overlap the block; finish(k, box index) like prepare.
// k is the position among the current 256 boxes.
template <class Prepare, class Visit, class Finish>
__device__ __forceinline__ void for_each_box(const Arguments& a, const float4& bounds, Box* boxes,
                                             const Prepare& prepare, const Visit& visit,
                                             const Finish& finish) {
  __shared__ int meeting[kThreads];
  // Invalid bounds are clamped, so that nothing is read outside the boxes.
  const int64_t begin = max(int64_t(0), min(a.starts[blockIdx.y], a.box_count));
  const int64_t end = max(begin, min(a.starts[blockIdx.y + 1], a.box_count));
  const int thread = threadIdx.x;
  for (int64_t first = begin; first < end; first += kThreads) {
    bool takes_part = false, meets = false;
    if (first + thread < end) {
      const float4 b = a.boxes[first + thread];
      const float corners[4] = {b.x, b.y, b.z, b.w};
      boxes[thread] = with_area(b);
      takes_part = math::may_match(corners, boxes[thread].area);
      meets = takes_part && may_overlap(b, bounds);
      if (takes_part) prepare(thread, first + thread, meets);
    }
    const int count = list_in_order(meets, meeting);
    for (int k = 0; k < count; ++k) visit(meeting[k], first + meeting[k]);
    __syncthreads();
    if (takes_part) finish(thread, first + thread);
  }
}

__global__ void __launch_bounds__(kThreads) greatest_kernel(const __grid_constant__ Arguments a) {
  __shared__ Box boxes[kThreads];
  __shared__ int of_block[kThreads];
  const Anchors anchors(a);
  for_each_box(
      a, anchors.bounds, boxes, [&](int k, int64_t, bool) { of_block[k] = 0; },
      [&](int k, int64_t) {
        const float own = iou(boxes[k], anchors.own);
        if (!__any_sync(0xffffffffu, own > 0.0f)) return;
        int bits = own > 0.0f ? __float_as_int(own) : 0;
        for (int offset = 16; offset > 0; offset /= 2) {
          bits = max(bits, __shfl_down_sync(0xffffffffu, bits, offset));
        }
        if (threadIdx.x % 32 == 0) atomicMax(&of_block[k], bits);
      },
      [&](int k, int64_t m) {
        if (of_block[k] > 0) atomicMax(&a.greatest[m], of_block[k]);
      });
}

__global__ void __launch_bounds__(kThreads) match_kernel(const __grid_constant__ Arguments a) {
  __shared__ Box boxes[kThreads];
  __shared__ float best_of_box[kThreads];
  __shared__ int first_box;     // first box of the image that is not skipped
  __shared__ int claims_every;  // last box that overlaps no anchor and so claims every one, or -1
  if (threadIdx.x == 0) {
    first_box = 0x7fffffff;
    claims_every = -1;
  }
  const Anchors anchors(a);
  float best = 0;
  int32_t row = -1, claim = -1;
  for_each_box(
      a, anchors.bounds, boxes,
      [&](int k, int64_t m, bool) {
        const float greatest = a.greatest != nullptr ? __int_as_float(a.greatest[m]) : -1.0f;
        best_of_box[k] = greatest >= 0.0f && math::claims(greatest, a.rule) ? greatest : -1.0f;
        if (best_of_box[k] == 0.0f) atomicMax(&claims_every, int(m));
        atomicMin(&first_box, int(m));
      },
      [&](int k, int64_t m) {
        const float own = iou(boxes[k], anchors.own);
        if (own == best_of_box[k]) claim = int32_t(m);
        if (own > best) {
          best = own;
          row = int32_t(m);
        }
      },
      [](int, int64_t) {});
  __syncthreads();
  if (row < 0 && first_box != 0x7fffffff) row = first_box;  // all IoUs are 0: the first box wins
  claim = max(claim, claims_every);
  const int32_t result = math::decide_match(row, best, claim, a.rule);
  if (anchors.exists) {
    const int64_t at = blockIdx.y * a.anchor_count + anchors.at;
    a.out_matched[at] = result;
    a.out_labels[at] = result >= 0 ? math::narrow_label(a.labels[result]) : result;
  }
  const int positives = __syncthreads_count(anchors.exists && result >= 0);
  if (threadIdx.x != 0) return;
  atomicAdd(&a.counters->positives, (unsigned long long)positives);
  __threadfence();
  if (atomicAdd(&a.counters->ended, 1u) == gridDim.x * gridDim.y - 1) {
    *a.num_positive = float(atomicAdd(&a.counters->positives, 0ull));
  }
}

}  // namespace

void run_match_anchors(Cuda device, const MatchAnchorsWork& work) {
  check_limit("match_anchors", "images", work.batch, kMaxImages);
  const cudaStream_t stream = stream_of(device);
  if (work.anchor_count == 0) return check_cuda(cudaMemsetAsync(work.num_positive, 0, sizeof(float), stream));
  const int64_t blocks = (work.anchor_count + kThreads - 1) / kThreads;
  check_limit("match_anchors", "blocks of 256 anchors", blocks * work.batch, 0xffffffff);
  const bool low_quality = work.rule.low_quality != math::LowQuality::kNone;
  const int64_t greatest = low_quality ? work.box_count * int64_t(sizeof(int)) : 0;
  char* zeros = zeroed_scratch<char>(device, int64_t(sizeof(Counters)) + greatest);
  const Arguments arguments{reinterpret_cast<const float4*>(work.anchors),
                            reinterpret_cast<const float4*>(work.boxes),
                            work.labels,
                            work.starts,
                            work.anchor_count,
                            work.box_count,
                            work.rule,
                            low_quality ? reinterpret_cast<int*>(zeros + sizeof(Counters)) : nullptr,
                            reinterpret_cast<Counters*>(zeros),
                            work.out_labels,
                            work.out_matched,
                            work.num_positive};
  const dim3 grid(unsigned(blocks), unsigned(work.batch));
  if (low_quality && work.box_count > 0) {
    greatest_kernel<<<grid, kThreads, 0, stream>>>(arguments);
    check_launch();
  }
  match_kernel<<<grid, kThreads, 0, stream>>>(arguments);
  check_launch();
}

}  // namespace fcos_fast
