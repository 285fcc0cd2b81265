// One launch for the whole batch: a thread per location, a block per tile of a level. The image's boxes are processed
// 256 at a time: those that can intersect the tile are listed, in order, and only these are compared with its
// locations. The last block to finish adds up the totals in order. The number of boxes is not needed on the host.
#include "../math/assign_targets.h"

#include "launch.h"

namespace fcos_fast {
namespace {

using namespace math;

constexpr int kMaxLevels = 16;
constexpr int kTileWidth = 32, kTileHeight = kThreads / kTileWidth;  // a warp writes one row
constexpr int64_t kMaxImages = 65535;                                // limit of the second grid dimension

struct Levels {
  int count;
  AssignmentLevel level[kMaxLevels];
  int32_t first_tile[kMaxLevels + 1];
  int32_t tiles_per_row[kMaxLevels];
};

struct Arguments {
  const float4* __restrict__ boxes;    // (M)
  const int64_t* __restrict__ labels;  // (M)
  const int64_t* __restrict__ starts;  // (B + 1)
  int64_t box_count, locations;
  AssignmentRule rule;
  int32_t* __restrict__ out_labels;    // (B, P)
  int32_t* __restrict__ out_matched;   // (B, P)
  float4* __restrict__ out_ltrb;       // (B, P)
  float* __restrict__ out_centerness;  // (B, P)
  double* partial;                     // (blocks, 2): positives, centerness
  unsigned* ended;                     // number of finished blocks
  float* __restrict__ totals;          // (2)
};

// A box, in shared memory.
struct Box {
  float4 corners;
  float preference;
};

// The locations of a tile are in [x1, x2] and [y1, y2].
struct Tile {
  float x1, y1, x2, y2;
};

// False only if no location of the tile can be assigned to the box.
__device__ __forceinline__ bool may_meet(const float box[4], const Tile& tile, const AssignmentLevel& level,
                                         const AssignmentRule& rule) {
  if (!level_can_assign(box, level)) return false;
  float left, right, top, bottom;
  sampling_region(box, level, rule, 0, &left, &right);
  sampling_region(box, level, rule, 1, &top, &bottom);
  // A margin of one cell covers rounding.
  const float slack_x = abs(level.step_x), slack_y = abs(level.step_y);
  return tile.x2 + slack_x > left && tile.x1 - slack_x < right && tile.y2 + slack_y > top &&
         tile.y1 - slack_y < bottom;
}

__device__ __forceinline__ Tile tile_of(const AssignmentLevel& level, int32_t row, int32_t column) {
  const float xa = location_x(level, column),
              xb = location_x(level, min(column + kTileWidth, level.width) - 1);
  const float ya = location_y(level, row), yb = location_y(level, min(row + kTileHeight, level.height) - 1);
  return {min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)};
}

__global__ void __launch_bounds__(kThreads)
    assign_kernel(const __grid_constant__ Levels levels, const __grid_constant__ Arguments a) {
  __shared__ Box boxes[kThreads];
  __shared__ int meeting[kThreads];
  const int64_t image = blockIdx.y;
  int l = 0;
  while (l + 1 < levels.count && int32_t(blockIdx.x) >= levels.first_tile[l + 1]) ++l;
  const AssignmentLevel level = levels.level[l];
  const int32_t tile_index = int32_t(blockIdx.x) - levels.first_tile[l], per_row = levels.tiles_per_row[l];
  const int32_t tile_row = tile_index / per_row;
  const int32_t first_row = tile_row * kTileHeight,
                first_column = (tile_index - tile_row * per_row) * kTileWidth;
  const int32_t row = first_row + int32_t(threadIdx.x) / kTileWidth;
  const int32_t column = first_column + int32_t(threadIdx.x) % kTileWidth;
  const bool exists = row < level.height && column < level.width;
  const float x = location_x(level, column), y = location_y(level, row);
  const Tile tile = tile_of(level, first_row, first_column);

  // Invalid bounds are clamped, so that nothing is read outside `boxes`.
  const int64_t begin = max(int64_t(0), min(a.starts[image], a.box_count));
  const int64_t end = max(begin, min(a.starts[image + 1], a.box_count));
  float best = no_preference(a.rule);
  int32_t matched = -1;
  for (int64_t first = begin; first < end; first += kThreads) {
    bool meets = false;
    __syncthreads();  // the previous boxes are no longer needed
    if (first + threadIdx.x < end) {
      const float4 b = a.boxes[first + threadIdx.x];
      const float box[4] = {b.x, b.y, b.z, b.w};
      boxes[threadIdx.x] = {b, preference(box, a.rule)};
      meets = may_meet(box, tile, level, a.rule);
    }
    const int count = list_in_order(meets, meeting);
    for (int k = 0; k < count; ++k) {
      const Box& candidate = boxes[meeting[k]];
      if (!(candidate.preference > best)) continue;
      const float4 b = candidate.corners;
      const float box[4] = {b.x, b.y, b.z, b.w};
      if (exists && can_assign(x, y, box, level, a.rule)) {
        best = candidate.preference;
        matched = int32_t(first + meeting[k]);
      }
    }
  }

  float quality = 0;
  if (exists) {
    float d[4] = {0, 0, 0, 0};
    if (matched >= 0) {
      const float4 b = a.boxes[matched];
      const float box[4] = {b.x, b.y, b.z, b.w};
      distances(x, y, box, d);
      quality = centerness(d);
    }
    const int64_t at = image * a.locations + level.first + int64_t(row) * level.width + column;
    a.out_labels[at] = matched >= 0 ? narrow_label(a.labels[matched]) : -1;
    a.out_matched[at] = matched;
    a.out_ltrb[at] = make_float4(d[0], d[1], d[2], d[3]);
    a.out_centerness[at] = quality;
  }
  const int positives = __syncthreads_count(matched >= 0);
  const double centerness_sum = block_sum(double(quality));
  const unsigned blocks = gridDim.x * gridDim.y;
  if (threadIdx.x == 0) {
    double* own = a.partial + 2 * (image * gridDim.x + blockIdx.x);
    own[0] = positives;
    own[1] = centerness_sum;
  }
  if (!is_last_block(a.ended, blocks)) return;
  for (int column_of_sums = 0; column_of_sums < 2; ++column_of_sums) {
    const double total = sum_of_partials(a.partial, blocks, 2, column_of_sums);
    if (threadIdx.x == 0) a.totals[column_of_sums] = float(total);
  }
}

static_assert(sizeof(Levels) + sizeof(Arguments) <= 4096, "kernel parameters are limited to 4 KiB");

Levels with_tiles(const AssignTargetsWork& work) {
  Levels levels{};
  levels.count = work.level_count;
  int64_t tiles = 0;
  for (int l = 0; l < work.level_count; ++l) {
    const AssignmentLevel& level = work.levels[l];
    levels.level[l] = level;
    levels.first_tile[l] = int32_t(tiles);
    levels.tiles_per_row[l] = (level.width + kTileWidth - 1) / kTileWidth;
    tiles += int64_t(levels.tiles_per_row[l]) * ((level.height + kTileHeight - 1) / kTileHeight);
    check_limit("assign_targets", "tiles of 256 locations", tiles, 0x7fffffff);
  }
  levels.first_tile[work.level_count] = int32_t(tiles);
  return levels;
}

}  // namespace

void run_assign_targets(Cuda device, const AssignTargetsWork& work) {
  check_limit("assign_targets", "levels", work.level_count, kMaxLevels);
  check_limit("assign_targets", "images", work.batch, kMaxImages);
  const Levels levels = with_tiles(work);
  const unsigned tiles = unsigned(levels.first_tile[work.level_count]), batch = unsigned(work.batch);
  if (tiles == 0)
    return check_cuda(cudaMemsetAsync(work.out_totals, 0, 2 * sizeof(float), stream_of(device)));
  check_limit("assign_targets", "tiles of all images", int64_t(tiles) * batch, 0xffffffff);
  const Arguments arguments{reinterpret_cast<const float4*>(work.boxes),
                            work.labels,
                            work.starts,
                            work.box_count,
                            work.locations,
                            work.rule,
                            work.out_labels,
                            work.out_matched,
                            reinterpret_cast<float4*>(work.out_ltrb),
                            work.out_centerness,
                            device.scratch<double>(2 * int64_t(tiles) * batch),
                            zeroed_scratch<unsigned>(device, 1),
                            work.out_totals};
  assign_kernel<<<dim3(tiles, batch), kThreads, 0, stream_of(device)>>>(levels, arguments);
  check_launch();
}

}  // namespace fcos_fast
