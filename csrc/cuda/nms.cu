// Sort by score, compare all pairs into a bit mask, 64 boxes a word, then walk the words in order in one
// block. The walk settles 64 boxes at a time in one warp's reach: one synchronisation per 64 candidates, not
// per kept box.
#include "../math/nms.h"

#include <limits>

#include "../torch_operators.h"
#include "launch.h"

namespace fcos_fast {
namespace {

constexpr int kWord = 64;          // boxes per word of the mask
constexpr int kWalkThreads = 512;  // of the one walking block

template <class Real>
__device__ __forceinline__ void read_box(const Real* boxes, int64_t i, Real box[5]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) box[c] = boxes[4 * i + c];
  box[4] = math::box_area(box[0], box[1], box[2], box[3]);
}

// mask[i][w] bit k: box 64 w + k comes after box i and falls with it. Only words w >= i / 64 are written.
template <class Real>
__global__ void __launch_bounds__(kWord)
    compare_kernel(const Real* boxes, const int64_t* idxs, int64_t n, int64_t words, Real threshold,
                   unsigned long long* mask) {
  const int64_t column = blockIdx.x, row = blockIdx.y;
  if (column < row) return;
  __shared__ Real others[kWord][5];
  __shared__ int64_t other_idxs[kWord];
  const int64_t other = column * kWord + threadIdx.x;
  if (other < n) {
    read_box(boxes, other, others[threadIdx.x]);
    if (idxs != nullptr) other_idxs[threadIdx.x] = idxs[other];
  }
  __syncthreads();
  const int64_t i = row * kWord + threadIdx.x;
  if (i >= n) return;
  Real box[5];
  read_box(boxes, i, box);
  const int64_t own_idx = idxs != nullptr ? idxs[i] : 0;
  const int count = int(min(int64_t(kWord), n - column * kWord));
  unsigned long long bits = 0;
  for (int k = row == column ? threadIdx.x + 1 : 0; k < count; ++k) {
    if (idxs != nullptr && other_idxs[k] != own_idx) continue;
    if (math::overlaps(box, others[k], threshold)) bits |= 1ull << k;
  }
  mask[i * words + column] = bits;
}

// One block. `fallen` has one word per 64 boxes and starts at 0.
__global__ void __launch_bounds__(kWalkThreads)
    walk_kernel(const unsigned long long* mask, const int64_t* order, int64_t n, int64_t words,
                unsigned long long* fallen, int64_t* out, int64_t* out_count) {
  __shared__ unsigned long long diagonal[kWord];
  __shared__ unsigned long long kept_bits;
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) {
    const int64_t first = w * kWord;
    const int boxes = int(min(int64_t(kWord), n - first));
    if (threadIdx.x < boxes) diagonal[threadIdx.x] = mask[(first + threadIdx.x) * words + w];
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned long long gone = fallen[w], kept = 0;
      for (int k = 0; k < boxes; ++k) {
        if (gone >> k & 1) continue;
        kept |= 1ull << k;
        gone |= diagonal[k];
      }
      kept_bits = kept;
    }
    __syncthreads();
    const unsigned long long kept = kept_bits;
    if (threadIdx.x < boxes && (kept >> threadIdx.x & 1)) {
      const unsigned long long before = kept & ((1ull << threadIdx.x) - 1);
      out[count + __popcll(before)] = order[first + threadIdx.x];
    }
    count += __popcll(kept);
    for (int64_t v = w + 1 + threadIdx.x; v < words; v += kWalkThreads) {
      unsigned long long bits = fallen[v];
      for (unsigned long long rest = kept; rest != 0; rest &= rest - 1) {
        bits |= mask[(first + __ffsll((long long)rest) - 1) * words + v];
      }
      fallen[v] = bits;
    }
    __syncthreads();  // `fallen` of the next word, and `diagonal`, are settled
  }
  if (threadIdx.x == 0) *out_count = count;
}

template <class Real>
void suppress(const Tensor& boxes, const Tensor* idxs, const Tensor& order, int64_t n, Real threshold,
              Tensor& out, Tensor& count, cudaStream_t stream) {
  const int64_t words = (n + kWord - 1) / kWord;
  Tensor mask = new_empty(boxes, {n, words}, ScalarType::Long);
  Tensor fallen = torch::stable::new_zeros(boxes, std::vector<int64_t>{words}, ScalarType::Long);
  auto* bits = static_cast<unsigned long long*>(mask.mutable_data_ptr());
  const dim3 tiles{unsigned(words), unsigned(words)};
  compare_kernel<<<tiles, kWord, 0, stream>>>(
      static_cast<const Real*>(boxes.const_data_ptr()),
      idxs == nullptr ? nullptr : static_cast<const int64_t*>(idxs->const_data_ptr()), n, words, threshold,
      bits);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  walk_kernel<<<1, kWalkThreads, 0, stream>>>(
      bits, static_cast<const int64_t*>(order.const_data_ptr()), n, words,
      static_cast<unsigned long long*>(fallen.mutable_data_ptr()),
      static_cast<int64_t*>(out.mutable_data_ptr()), static_cast<int64_t*>(count.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor nms(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs, double iou_threshold) {
  const int64_t n = boxes.size(0);
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4 && scores.dim() == 1 && scores.size(0) == n,
                  "fcos_fast::nms: expected boxes (N, 4) and scores (N,)");
  STD_TORCH_CHECK(!idxs.has_value() || (idxs->dim() == 1 && idxs->size(0) == n),
                  "fcos_fast::nms: expected idxs (N,)");
  STD_TORCH_CHECK(n <= int64_t(65535) * kWord, "fcos_fast::nms: ", n,
                  " boxes on a GPU; at most 4,194,240, in n^2 / 8 bytes of memory");
  const OnDeviceOf device(boxes);
  if (n == 0) return new_empty(boxes, {0}, ScalarType::Long);

  const bool is_double = boxes.scalar_type() == ScalarType::Double;
  const Tensor order = order_of_falling(scores);
  const Tensor columns = rows_at(converted(boxes, is_double ? ScalarType::Double : ScalarType::Float), order);
  std::optional<Tensor> classes;
  if (idxs.has_value()) classes = rows_at(converted(*idxs, ScalarType::Long), order);
  const Tensor* classes_pointer = classes.has_value() ? &*classes : nullptr;

  Tensor out = new_empty(boxes, {n}, ScalarType::Long);
  Tensor count = new_empty(boxes, {1}, ScalarType::Long);
  if (is_double) {
    suppress<double>(columns, classes_pointer, order, n, iou_threshold, out, count, device.stream());
  } else {
    suppress<float>(columns, classes_pointer, order, n, math::round_down(iou_threshold), out, count,
                    device.stream());
  }
  // The size of the result is data: this is the operator's one wait.
  int64_t kept = 0;
  STD_CUDA_CHECK(
      cudaMemcpyAsync(&kept, count.const_data_ptr(), sizeof kept, cudaMemcpyDeviceToHost, device.stream()));
  STD_CUDA_CHECK(cudaStreamSynchronize(device.stream()));
  return torch::stable::narrow(out, 0, 0, kept);
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) { m.impl("nms", TORCH_BOX(&fcos_fast::nms)); }
