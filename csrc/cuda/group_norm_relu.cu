// Three launches in forward, three in backward: the first reads x and writes a partial result per channel and chunk,
// the second merges those of each group in order, the third reads x again and writes the output.
#include "../math/group_norm_relu.h"

#include "launch.h"

namespace fcos_fast {
namespace {

// Blocks per multiprocessor: three quarters of its threads, or all, so at most 40 registers (64 on sm_75).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
constexpr int kBlocks = 4;
#else
constexpr int kBlocks = 6;
#endif

using GroupGradient = math::GroupGradient<float>;
using ParameterGrad = GroupNormParameter<void>;

// The shape of x. The locations of an image are divided into chunks.
struct Shape {
  int64_t batch, spatial;
  unsigned channels, groups, group_channels;
  int chunk;  // locations; the last chunk may have fewer
  unsigned chunks;

  Shape(const GroupNormInput& in, int64_t chunk_size)
      : batch(in.batch),
        spatial(in.spatial),
        channels(unsigned(in.channels)),
        groups(unsigned(in.groups)),
        group_channels(unsigned(in.group_channels())),
        chunk(int(std::min(in.spatial, chunk_size))),
        chunks(unsigned((in.spatial + chunk - 1) / chunk)) {}

  __device__ int64_t all_channels() const { return batch * channels; }
  __device__ float group_size() const { return float(spatial) * float(group_channels); }
  __device__ int size_of_chunk(unsigned k) const {
    return int(min(int64_t(chunk), spatial - int64_t(k) * chunk));
  }
};

struct Pair {
  float a, b;  // mean and m2, or the sums of g and of g * (x - mean)
};

// The affine map of the elements of a channel.
struct Affine {
  float mean, scale, shift;

  __device__ float relu(float x) const { return math::relu(math::normalized(x - mean, scale, shift)); }
  __device__ float relu_grad(float centered, float upstream) const {
    return math::relu_grad(math::normalized(centered, scale, shift), upstream);
  }
};

struct Parameters {
  GroupNormParameter<const void> weight, bias;

  static __device__ float at(const GroupNormParameter<const void>& p, unsigned channel, float absent) {
    if (p.data == nullptr) return absent;
    switch (p.dtype) {
      case Dtype::kBFloat16:
        return float(static_cast<const BFloat16*>(p.data)[channel]);
      case Dtype::kFloat16:
        return float(static_cast<const Half*>(p.data)[channel]);
      default:
        return static_cast<const float*>(p.data)[channel];
    }
  }
  __device__ Affine affine(unsigned channel, float mean, float rstd) const {
    return {mean, rstd * at(weight, channel, 1), at(bias, channel, 0)};
  }
};

__device__ __forceinline__ float warp_total(float x) {
  for (int bits = 16; bits > 0; bits /= 2) x += __shfl_xor_sync(0xffffffffu, x, bits);
  return x;
}

// Sum over all threads with the same threadIdx.y (a warp or the whole block), returned to each of them.
__device__ float row_total(float x) {
  __shared__ float warp_sums[kThreads / 32];
  x = warp_total(x);
  if (blockDim.x == 32) return x;
  __syncthreads();  // previous sums may still be read
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int w = 0; w < kThreads / 32; ++w) x += warp_sums[w];
  return x;
}

// ---- reading a chunk of x ----

template <class T>
__device__ float mean_of_first(const T* x, int count, int stride) {
  const int n = min(8, count);
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += float(x[i * stride]);
  return sum / float(n);
}

struct Launch {
  dim3 grid, block;
  int shared_bytes;
};

// NCHW: each warp (a row of the block) reads a chunk of a channel, 16 bytes per access.
template <class T>
class ContiguousChunk {
 public:
  static constexpr int kChannels = 1;  // per thread
  static constexpr int kSumsBlocks = kBlocks;

  static int64_t size(const GroupNormInput& in) {
    constexpr int64_t kRounds = 8, kMaxChunks = 65535;  // grid limit
    return std::max(kRounds, in.spatial / (kMaxChunks * kStride) + 1) * kStride;
  }
  static Launch launch(const Shape& s) {
    return {dim3(unsigned(s.batch) * blocks_per_image(s), s.chunks), dim3(32, kWarps), 0};
  }

  __device__ ContiguousChunk(const Shape& s, unsigned x, unsigned y)
      : image(x / blocks_per_image(s)),
        channel(x % blocks_per_image(s) * kWarps + threadIdx.y),
        begin((int64_t(image) * s.channels + channel) * s.spatial + int64_t(y) * s.chunk),
        count(s.size_of_chunk(y)) {}

  // Calls f(position, a pack of each tensor) for all packs of this thread.
  template <class F, class... Tensors>
  __device__ __forceinline__ void visit(const F& f, Tensors... tensors) const {
    constexpr int kAtOnce = 4 / sizeof...(tensors);
    const int head = min(int(-begin & (kPack - 1)), count), tail = count - (count - head) % kPack;
    const int lane = threadIdx.x, edge = lane < kPack ? lane : tail + lane - kPack;
#pragma unroll kAtOnce
    for (int at = head + lane * kPack; at < tail; at += kStride) {
      f(begin + at, load_pack<kPack>(tensors + begin + at, kPack)...);
    }
    if (edge < (lane < kPack ? head : count)) f(begin + edge, load_pack<1>(tensors + begin + edge, 1)...);
  }
  // own[k] = of(channel) for the channels of this thread.
  template <class S, class Of>
  __device__ void spread(const Of& of, S (&own)[1]) const {
    own[0] = of(channel);
  }
  // Calls f(channel, sums) in one of the threads of the channel.
  template <class F>
  __device__ void add_up(const float (&a)[1], const float (&b)[1], const F& f) const {
    const Pair sums = {warp_total(a[0]), warp_total(b[0])};
    if (threadIdx.x == 0) f(channel, sums);
  }
  // The mean of a few elements of a channel.
  __device__ float sample(const T* x, unsigned) const { return mean_of_first(x + begin, count, 1); }

  const unsigned image, channel;
  const int64_t begin;
  const int count;  // locations

 private:
  static constexpr int kPack = 16 / sizeof(T), kStride = 32 * kPack, kWarps = kThreads / 32;

  __host__ __device__ static unsigned blocks_per_image(const Shape& s) {
    return (s.channels + kWarps - 1) / kWarps;
  }
};

// Channels-last: each row of the block reads whole locations, each thread always the same four channels. With eight,
// there would not be enough registers.
template <class T>
class ChannelsLastChunk {
 public:
  static constexpr int kChannels = 4;
  static constexpr int kSumsBlocks = std::min(kBlocks, 5);  // two sums per channel: 40 registers would spill

  static int64_t size(const GroupNormInput& in) {
    constexpr int64_t kRounds = 8, kAllChunks = 2 * kMaxBlocks;
    const int64_t chunks = std::max<int64_t>(1, kAllChunks / in.batch), each = rows(in.channels);
    return std::max(kRounds, in.spatial / (chunks * each) + 1) * each;
  }
  static Launch launch(const Shape& s) {
    const dim3 block(s.channels / kChannels, unsigned(std::min(rows(s.channels), s.spatial)));
    const size_t shared = std::max(block.y * sizeof(Pair), sizeof(Affine));
    return {dim3(unsigned(s.batch), s.chunks), block, int(s.channels * shared)};
  }

  __device__ ChannelsLastChunk(const Shape& s, unsigned x, unsigned y)
      : image(x),
        channel(threadIdx.x * kChannels),
        begin((int64_t(x) * s.spatial + int64_t(y) * s.chunk) * s.channels),
        count(s.size_of_chunk(y)) {}

  template <class F, class... Tensors>
  __device__ __forceinline__ void visit(const F& f, Tensors... tensors) const {
    constexpr int kAtOnce = 8 / sizeof(T) / sizeof...(tensors);
    int64_t at = begin + thread() * kChannels;
#pragma unroll kAtOnce
    for (int rounds = (count + rows() - 1 - int(threadIdx.y)) / rows(); rounds > 0; --rounds) {
      f(at, load_pack<kChannels>(tensors + at, kChannels)...);
      at += rows() * channels();
    }
  }
  template <class S, class Of>
  __device__ void spread(const Of& of, S (&own)[kChannels]) const {
    auto* memory = shared<S>();  // (C)
    for (int c = thread(); c < channels(); c += threads()) memory[c] = of(unsigned(c));
    __syncthreads();
    for (int i = 0; i < kChannels; ++i) own[i] = memory[channel + i];
  }
  template <class F>
  __device__ void add_up(const float (&a)[kChannels], const float (&b)[kChannels], const F& f) const {
    auto* memory = shared<Pair>();  // (rows, C)
    __syncthreads();                // previous values may still be read
    for (int i = 0; i < kChannels; ++i) memory[thread() * kChannels + i] = {a[i], b[i]};
    __syncthreads();
    for (int c = thread(); c < channels(); c += threads()) {
      Pair sums = {0, 0};
      for (int row = 0; row < rows(); ++row) {
        sums.a += memory[row * channels() + c].a;
        sums.b += memory[row * channels() + c].b;
      }
      f(unsigned(c), sums);
    }
  }
  __device__ float sample(const T* x, unsigned c) const {
    return mean_of_first(x + begin + c, count, channels());
  }

  const unsigned image, channel;  // channel: the first of this thread's four
  const int64_t begin;
  const int count;  // locations

 private:
  static int64_t rows(int64_t channels) {
    return std::clamp<int64_t>(kThreads * kChannels / channels, 1, 16);
  }

  static __device__ int rows() { return int(blockDim.y); }
  static __device__ int channels() { return int(blockDim.x) * kChannels; }
  static __device__ int threads() { return int(blockDim.x * blockDim.y); }
  static __device__ int thread() { return int(threadIdx.y * blockDim.x + threadIdx.x); }
  template <class S>
  static __device__ S* shared() {
    extern __shared__ Affine memory[];
    return reinterpret_cast<S*>(memory);
  }
};

// ---- forward ----

template <class T, class Chunk>
__global__ void __launch_bounds__(kThreads, kBlocks)
    moments_kernel(Shape s, const T* __restrict__ x, Pair* __restrict__ partial) {  // (chunks, B, C)
  constexpr int K = Chunk::kChannels;
  const Chunk chunk(s, blockIdx.x, blockIdx.y);
  if (chunk.channel >= s.channels) return;
  float near[K], sums[K] = {}, squares[K] = {};
  const auto sample = [&](unsigned channel) { return chunk.sample(x, channel); };
  chunk.spread(sample, near);
  const auto add = [&](int64_t, auto pack) {
#pragma unroll
    for (int i = 0; i < int(sizeof pack.v / sizeof(T)); ++i) {
      const int k = i % K;
      const float d = float(pack.v[i]) - near[k];
      sums[k] += d;
      squares[k] = math::fma(d, d, squares[k]);
    }
  };
  chunk.visit(add, x);
  partial += (blockIdx.y * s.batch + chunk.image) * s.channels;
  chunk.add_up(sums, squares, [&](unsigned channel, const Pair& all) {
    const float mean = all.a / float(chunk.count), m2 = all.b - all.a * mean;
    partial[channel] = {sample(channel) + mean, m2 < 0 ? 0 : m2};
  });
}

// Calls f(channel within the group, chunk, partial result) for a whole group, distributed over a row of threads.
template <class F>
__device__ __forceinline__ void each_part(const Shape& s, const Pair* partial, int64_t group, const F& f) {
  for (unsigned j = threadIdx.x; j < s.chunks * s.group_channels; j += blockDim.x) {
    const unsigned k = j / s.group_channels, c = j % s.group_channels;
    f(c, k, partial[k * s.all_channels() + group * s.group_channels + c]);
  }
}

// One row of threads per group.
__global__ void __launch_bounds__(kThreads)
    merge_moments_kernel(Shape s, const Pair* __restrict__ partial, Parameters parameters, float eps,
                         float* __restrict__ mean, float* __restrict__ rstd,  // (B, G)
                         Affine* __restrict__ affine) {                       // (B, C)
  const int64_t group = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (group >= s.batch * s.groups) return;
  const float anchor =
      partial[group * s.group_channels].a;  // close to every mean, so that the sum below is small
  float sum = 0, m2 = 0;
  each_part(s, partial, group, [&](unsigned, unsigned k, const Pair& moments) {
    sum += float(s.size_of_chunk(k)) * (moments.a - anchor);
  });
  const float offset = row_total(sum) / s.group_size();
  each_part(s, partial, group, [&](unsigned, unsigned k, const Pair& moments) {
    const float step = moments.a - anchor - offset;
    m2 += math::fma(float(s.size_of_chunk(k)) * step, step, moments.b);
  });
  const float group_mean = anchor + offset, group_rstd = 1 / sqrtf(row_total(m2) / s.group_size() + eps);
  if (threadIdx.x == 0) {
    mean[group] = group_mean;
    rstd[group] = group_rstd;
  }
  const unsigned first = unsigned(group % s.groups) * s.group_channels;
  for (unsigned c = threadIdx.x; c < s.group_channels; c += blockDim.x) {
    affine[group * s.group_channels + c] = parameters.affine(first + c, group_mean, group_rstd);
  }
}

// From the last chunk to the first: what was read last is most likely still in the L2 cache.
template <class T, class Chunk>
__global__ void __launch_bounds__(kThreads, kBlocks)
    apply_kernel(Shape s, const Affine* __restrict__ affine, const T* __restrict__ x, T* __restrict__ y) {
  constexpr int K = Chunk::kChannels;
  const Chunk chunk(s, gridDim.x - 1 - blockIdx.x, gridDim.y - 1 - blockIdx.y);
  if (chunk.channel >= s.channels) return;
  Affine own[K];
#pragma unroll
  for (int k = 0; k < K; ++k) own[k] = affine[int64_t(chunk.image) * s.channels + chunk.channel + k];
  const auto apply = [&](int64_t at, auto pack) {
    constexpr int N = sizeof pack.v / sizeof(T);
#pragma unroll
    for (int i = 0; i < N; ++i) pack.v[i] = T(own[i % K].relu(float(pack.v[i])));
    store_pack(y + at, pack, N);
  };
  chunk.visit(apply, x);
}

// ---- backward ----

template <class T, class Chunk>
__global__ void __launch_bounds__(kThreads, Chunk::kSumsBlocks)
    grad_sums_kernel(Shape s, const T* __restrict__ x, const T* __restrict__ upstream, Parameters parameters,
                     const float* __restrict__ mean, const float* __restrict__ rstd,  // (B, G)
                     Pair* __restrict__ partial) {                                    // (chunks, B, C)
  constexpr int K = Chunk::kChannels;
  const Chunk chunk(s, blockIdx.x, blockIdx.y);
  if (chunk.channel >= s.channels) return;
  Affine own[K];
  float sums[K] = {}, centered_sums[K] = {};
  const auto affine = [&](unsigned channel) {
    const int64_t group = int64_t(chunk.image) * s.groups + channel / s.group_channels;
    return parameters.affine(channel, mean[group], rstd[group]);
  };
  chunk.spread(affine, own);
  const auto add = [&](int64_t, auto pack, auto flow) {
#pragma unroll
    for (int i = 0; i < int(sizeof pack.v / sizeof(T)); ++i) {
      const int k = i % K;
      const float centered = float(pack.v[i]) - own[k].mean;
      const float g = own[k].relu_grad(centered, float(flow.v[i]));
      sums[k] += g;
      centered_sums[k] = math::fma(g, centered, centered_sums[k]);
    }
  };
  chunk.visit(add, x, upstream);
  partial += (blockIdx.y * s.batch + chunk.image) * s.channels;
  chunk.add_up(sums, centered_sums, [&](unsigned channel, const Pair& all) { partial[channel] = all; });
}

__device__ void write(const ParameterGrad& grad, unsigned channel, float value) {
  if (grad.data == nullptr) return;
  switch (grad.dtype) {
    case Dtype::kBFloat16:
      static_cast<BFloat16*>(grad.data)[channel] = BFloat16(value);
      break;
    case Dtype::kFloat16:
      static_cast<Half*>(grad.data)[channel] = Half(value);
      break;
    default:
      static_cast<float*>(grad.data)[channel] = value;
  }
}

// One row of threads per group, then one per channel.
__global__ void __launch_bounds__(kThreads)
    merge_sums_kernel(Shape s, const Pair* __restrict__ partial, Parameters parameters,
                      const float* __restrict__ mean, const float* __restrict__ rstd,  // (B, G)
                      Affine* __restrict__ affine,                                     // (B, C)
                      GroupGradient* __restrict__ gradient,                            // (B, G)
                      ParameterGrad grad_weight, ParameterGrad grad_bias) {            // (C)
  const int64_t groups = s.batch * s.groups, row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  float sum = 0, centered_sum = 0;
  if (row < groups) {
    const unsigned first = unsigned(row % s.groups) * s.group_channels;
    each_part(s, partial, row, [&](unsigned c, unsigned, const Pair& sums) {
      const float w = Parameters::at(parameters.weight, first + c, 1);
      sum += w * sums.a;
      centered_sum += w * sums.b;
    });
    sum = row_total(sum);
    centered_sum = row_total(centered_sum);
    if (threadIdx.x == 0) gradient[row] = math::group_gradient(sum, centered_sum, s.group_size(), rstd[row]);
    for (unsigned c = threadIdx.x; c < s.group_channels; c += blockDim.x) {
      affine[row * s.group_channels + c] = parameters.affine(first + c, mean[row], rstd[row]);
    }
  } else if (row < groups + s.channels) {
    const unsigned channel = unsigned(row - groups);
    for (int64_t j = threadIdx.x; j < s.batch * s.chunks; j += blockDim.x) {
      const int64_t image = j / s.chunks;
      const Pair sums = partial[j % s.chunks * s.all_channels() + image * s.channels + channel];
      sum += sums.a;
      centered_sum += sums.b * rstd[image * s.groups + channel / s.group_channels];
    }
    sum = row_total(sum);
    centered_sum = row_total(centered_sum);
    if (threadIdx.x > 0) return;
    write(grad_bias, channel, sum);
    write(grad_weight, channel, centered_sum);
  }
}

template <class T, class Chunk>
__global__ void __launch_bounds__(kThreads, kBlocks)
    grad_apply_kernel(Shape s, const Affine* __restrict__ affine, const GroupGradient* __restrict__ gradient,
                      const T* __restrict__ x, const T* __restrict__ upstream, T* __restrict__ grad) {
  constexpr int K = Chunk::kChannels;
  const Chunk chunk(s, gridDim.x - 1 - blockIdx.x, gridDim.y - 1 - blockIdx.y);
  if (chunk.channel >= s.channels) return;
  Affine own[K];
  GroupGradient of_group[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const unsigned channel = chunk.channel + k;
    own[k] = affine[int64_t(chunk.image) * s.channels + channel];
    of_group[k] = gradient[int64_t(chunk.image) * s.groups + channel / s.group_channels];
  }
  const auto apply = [&](int64_t at, auto pack, auto flow) {
    constexpr int N = sizeof pack.v / sizeof(T);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int k = i % K;
      const float centered = float(pack.v[i]) - own[k].mean;
      const float g = own[k].relu_grad(centered, float(flow.v[i]));
      const float of_all = math::fma(centered, of_group[k].slope, of_group[k].offset);
      pack.v[i] = T(math::fma(own[k].scale, g, -of_all));
    }
    store_pack(grad + at, pack, N);
  };
  chunk.visit(apply, x, upstream);
}

// ---- host ----

// Calls f with null pointers that carry the element type and the chunk type.
template <class F>
void dispatch_chunk(const GroupNormInput& in, const F& f) {
  dispatch_to_float32(in.dtype, [&](auto element) {
    using T = decltype(element);
    if (in.channels_last) return f(element, static_cast<ChannelsLastChunk<T>*>(nullptr));
    f(element, static_cast<ContiguousChunk<T>*>(nullptr));
  });
}

// Threads per row: a warp, or the whole block if there is much to merge.
struct MergeLaunch {
  dim3 block, grid;

  MergeLaunch(const Shape& s, int64_t rows)
      : block(int64_t(s.chunks) * s.group_channels > 128 ? dim3(kThreads) : dim3(32, kThreads / 32)),
        grid(unsigned((rows + block.y - 1) / block.y)) {}
};

}  // namespace

void run_group_norm_relu(Cuda device, const GroupNormInput& in, const GroupNormResult& result) {
  dispatch_chunk(in, [&](auto element, auto* kind) {
    using T = decltype(element);
    using Chunk = std::remove_pointer_t<decltype(kind)>;
    const Shape s(in, Chunk::size(in));
    const Launch launch = Chunk::launch(s);
    const MergeLaunch merge(s, in.batch * in.groups);
    const cudaStream_t stream = stream_of(device);
    const auto* x = static_cast<const T*>(in.x);
    auto* partial = device.scratch<Pair>(s.chunks * in.batch * in.channels);
    auto* affine = device.scratch<Affine>(in.batch * in.channels);
    moments_kernel<T, Chunk><<<launch.grid, launch.block, launch.shared_bytes, stream>>>(s, x, partial);
    check_launch();
    merge_moments_kernel<<<merge.grid, merge.block, 0, stream>>>(
        s, partial, Parameters{in.weight, in.bias}, float(result.eps), static_cast<float*>(result.mean),
        static_cast<float*>(result.rstd), affine);
    check_launch();
    apply_kernel<T, Chunk><<<launch.grid, launch.block, 0, stream>>>(s, affine, x, static_cast<T*>(result.y));
    check_launch();
  });
}

void run_group_norm_relu_backward(Cuda device, const GroupNormInput& in, const GroupNormGrad& grad) {
  dispatch_chunk(in, [&](auto element, auto* kind) {
    using T = decltype(element);
    using Chunk = std::remove_pointer_t<decltype(kind)>;
    const Shape s(in, Chunk::size(in));
    const Launch launch = Chunk::launch(s);
    const MergeLaunch merge(s, in.batch * in.groups + in.channels);
    const cudaStream_t stream = stream_of(device);
    const Parameters parameters{in.weight, in.bias};
    const auto *x = static_cast<const T*>(in.x), *upstream = static_cast<const T*>(grad.upstream);
    const auto *mean = static_cast<const float*>(grad.mean), *rstd = static_cast<const float*>(grad.rstd);
    auto* partial = device.scratch<Pair>(s.chunks * in.batch * in.channels);
    auto* affine = device.scratch<Affine>(in.batch * in.channels);
    auto* gradient = device.scratch<GroupGradient>(in.batch * in.groups);
    grad_sums_kernel<T, Chunk><<<launch.grid, launch.block, launch.shared_bytes, stream>>>(
        s, x, upstream, parameters, mean, rstd, partial);
    check_launch();
    merge_sums_kernel<<<merge.grid, merge.block, 0, stream>>>(s, partial, parameters, mean, rstd, affine,
                                                              gradient, grad.weight, grad.bias);
    check_launch();
    grad_apply_kernel<T, Chunk>
        <<<launch.grid, launch.block, 0, stream>>>(s, affine, gradient, x, upstream, static_cast<T*>(grad.x));
    check_launch();
  });
}

}  // namespace fcos_fast
