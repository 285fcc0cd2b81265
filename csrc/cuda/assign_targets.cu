// One launch for the whole batch: a thread per location, the image's boxes through shared memory, the best
// one in registers; then a second, tiny launch adds the blocks' totals in order. The host never learns the
// number of boxes.
#include "../assignment_levels.h"
#include "launch_torch.h"

namespace fcos_fast {
namespace {

using namespace math;

constexpr int kMaxLevels = 16;
constexpr int kBoxesAtOnce = kThreads;

struct Levels {
  int count;
  AssignmentLevel level[kMaxLevels];
};

struct Outputs {
  int32_t* labels;
  int32_t* matched;
  float4* ltrb;
  float* centerness;
  double* partial;  // (blocks, 2): positives, centerness
};

__global__ void __launch_bounds__(kThreads)
    assign_kernel(const float4* boxes, const int64_t* labels, const int64_t* starts, int64_t box_count,
                  int64_t locations, const __grid_constant__ Levels levels, AssignmentRule rule,
                  Outputs out) {
  __shared__ float4 shared_boxes[kBoxesAtOnce];
  __shared__ float shared_preference[kBoxesAtOnce];
  const int64_t image = blockIdx.y;
  const int64_t location = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const bool exists = location < locations;
  // Bounds that lie are clamped: nothing is read outside `boxes`.
  const int64_t begin = max(int64_t(0), min(starts[image], box_count));
  const int64_t end = max(begin, min(starts[image + 1], box_count));

  int l = 0;
  while (l + 1 < levels.count && location >= levels.level[l + 1].first) ++l;
  const AssignmentLevel level = levels.level[l];
  const int64_t within = location - level.first;
  const int32_t row = int32_t(within / max(1, level.width));
  const float x = location_x(level, int32_t(within - int64_t(row) * level.width)), y = location_y(level, row);

  float best = no_preference(rule);
  int32_t matched = -1;
  for (int64_t first = begin; first < end; first += kBoxesAtOnce) {
    const int count = int(min(int64_t(kBoxesAtOnce), end - first));
    __syncthreads();
    if (threadIdx.x < count) {
      const float4 b = boxes[first + threadIdx.x];
      const float box[4] = {b.x, b.y, b.z, b.w};
      shared_boxes[threadIdx.x] = b;
      shared_preference[threadIdx.x] = preference(box, rule);
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      if (!(shared_preference[k] > best)) continue;
      const float4 b = shared_boxes[k];
      const float box[4] = {b.x, b.y, b.z, b.w};
      if (may_take(x, y, box, level, rule)) {
        best = shared_preference[k];
        matched = int32_t(first + k);
      }
    }
  }

  float quality = 0;
  if (exists) {
    float d[4] = {0, 0, 0, 0};
    if (matched >= 0) {
      const float4 b = boxes[matched];
      const float box[4] = {b.x, b.y, b.z, b.w};
      distances(x, y, box, d);
      quality = centerness(d);
    }
    const int64_t at = image * locations + location;
    out.labels[at] = matched >= 0 ? narrow_label(labels[matched]) : -1;
    out.matched[at] = matched;
    out.ltrb[at] = make_float4(d[0], d[1], d[2], d[3]);
    out.centerness[at] = quality;
  }
  const double positives = block_sum(exists && matched >= 0 ? 1.0 : 0.0);
  const double centerness_sum = block_sum(double(quality));
  if (threadIdx.x == 0) {
    const int64_t block = image * gridDim.x + blockIdx.x;
    out.partial[2 * block] = positives;
    out.partial[2 * block + 1] = centerness_sum;
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> assign_targets(
    const Tensor& boxes, const Tensor& labels, const Tensor& starts, std::vector<int64_t> sizes,
    std::vector<double> geometry, int64_t range_test, int64_t sampling, int64_t tie_break, double radius) {
  check_ground_truth("assign_targets", boxes, labels, starts);
  const AssignmentRule rule = read_rule(range_test, sampling, tie_break);
  const OnDeviceOf device(boxes);
  const auto read = read_levels(sizes, geometry, radius);
  STD_TORCH_CHECK(read.size() <= kMaxLevels, "fcos_fast::assign_targets: at most ", kMaxLevels,
                  " levels, got ", read.size());
  Levels levels{int(read.size()), {}};
  std::copy(read.begin(), read.end(), levels.level);
  const int64_t batch = starts.numel() - 1;
  const int64_t locations = count_locations(read);
  STD_TORCH_CHECK(batch <= 65535, "fcos_fast::assign_targets: at most 65535 images, got ", batch);
  const Tensor packed = aligned(torch::stable::contiguous(boxes));
  const Tensor classes = torch::stable::contiguous(labels);
  const Tensor bounds = torch::stable::contiguous(starts);
  AssignmentOutputs out = new_outputs(boxes, batch, locations);

  const int64_t blocks = (locations + kThreads - 1) / kThreads;
  Tensor partial = new_empty(boxes, {batch * blocks, 2}, ScalarType::Double);
  auto* sums = static_cast<double*>(partial.mutable_data_ptr());
  if (batch * blocks > 0) {
    const Outputs pointers{static_cast<int32_t*>(out.labels.mutable_data_ptr()),
                           static_cast<int32_t*>(out.matched.mutable_data_ptr()),
                           static_cast<float4*>(out.ltrb.mutable_data_ptr()),
                           static_cast<float*>(out.centerness.mutable_data_ptr()), sums};
    assign_kernel<<<dim3(unsigned(blocks), unsigned(batch)), kThreads, 0, device.stream()>>>(
        static_cast<const float4*>(packed.const_data_ptr()),
        static_cast<const int64_t*>(classes.const_data_ptr()),
        static_cast<const int64_t*>(bounds.const_data_ptr()), packed.size(0), locations, levels, rule,
        pointers);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  add_partial_sums<<<2, kThreads, 0, device.stream()>>>(sums, batch * blocks, 2,
                                                        static_cast<float*>(out.totals.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {out.labels, out.matched, out.ltrb, out.centerness, out.totals};
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) {
  m.impl("assign_targets", TORCH_BOX(&fcos_fast::assign_targets));
}
