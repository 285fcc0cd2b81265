// Two launches forward (moments, apply), two backward (sums, apply), 16 bytes per access. The first of each leaves
// partial results per block; every block of the second begins by adding those of its groups in order.
//
// A thread always meets the same channels. In channels-last memory a panel is an image and the threads at work are a
// multiple of the packs in a row; in NCHW memory a panel is a channel, or for the moments a group.
#include "../group_norm_layout.h"
#include "../math/element.h"
#include "../math/group_norm_relu.h"
#include "launch_torch.h"

namespace fcos_fast {
namespace {

using math::GroupGradient;
using math::Moments;

constexpr int kBlock = 512;
constexpr int64_t kPacksPerThread = 8;  // at least, where the panel has as many
constexpr int64_t kMaxPartials = 64;    // per panel: the second launch reads them in every block
constexpr int64_t kMaxChannels = 4096;  // in channels-last memory; what a block shares lies in 32 KiB

// How a panel is cut into chunks, one per block. A pack is one memory access.
struct Cut {
  unsigned panels, chunks;  // chunks: of a panel
  int64_t packs, chunk;     // packs: of a panel; chunk: in packs
  int stride;               // threads at work

  __device__ unsigned panel() const { return blockIdx.x / chunks; }
  __device__ unsigned index() const { return blockIdx.x % chunks; }
  __device__ int64_t begin() const { return index() * chunk; }
  __device__ int64_t first_pack() const { return panel() * packs; }
  __device__ int64_t size(int64_t k) const { return min(chunk, packs - k * chunk); }
  __device__ int64_t end() const { return begin() + size(index()); }
  // How many packs of this chunk a thread meets.
  __device__ int64_t met_by(int thread) const {
    return thread < stride ? (size(index()) - thread + stride - 1) / stride : 0;
  }
  __host__ __device__ unsigned blocks() const { return panels * chunks; }
  int threads() const { return (stride + 31) / 32 * 32; }
};

Cut cut(int64_t panels, int64_t packs, int64_t packs_per_row, int64_t max_chunks) {
  Cut c{unsigned(panels), 0, packs, 0, 0};
  c.stride =
      int(packs_per_row > 0 ? kBlock / packs_per_row * packs_per_row : std::min<int64_t>(kBlock, packs));
  const int64_t rounds = (packs + c.stride - 1) / c.stride;
  const int64_t rounds_per_chunk = std::max(kPacksPerThread, (rounds + max_chunks - 1) / max_chunks);
  c.chunk = rounds_per_chunk * c.stride;
  const int64_t chunks = (packs + c.chunk - 1) / c.chunk;
  c.chunks = unsigned(chunks);
  STD_TORCH_CHECK(panels * chunks < int64_t(1) << 30,
                  "fcos_fast::group_norm_relu: too many images or channels for one launch");
  return c;
}

struct Sizes {
  int64_t batch, spatial;
  unsigned channels, groups, group_channels;
};

// weight or bias, in its own type.
struct Parameter {
  const void* data;  // null where absent
  Dtype dtype;

  template <class C>
  __device__ C at(int64_t i, C absent) const {
    return data == nullptr ? absent : math::read_element<C>(data, dtype, i);
  }
};

struct ParameterGradient {
  void* data;
  Dtype dtype;

  __device__ void set(int64_t i, double value) const {
    if (data != nullptr) math::write_element(data, dtype, i, value);
  }
};

template <class C>
struct Pair {  // mean and m2, or the sums of g and of g * (x - mean)
  C a, b;
};

extern __shared__ double shared_memory[];
template <class S>
__device__ __forceinline__ S* shared() {
  return reinterpret_cast<S*>(shared_memory);
}

// Of of(0) .. of(n - 1), by one warp; valid in lane 0.
template <class F>
__device__ __forceinline__ Moments warp_merged(unsigned n, const F& of) {
  Moments own{0, 0, 0};
  for (unsigned j = threadIdx.x % 32; j < n; j += 32) own = math::merged(own, of(j));
  for (int offset = 16; offset > 0; offset /= 2) {
    const Moments other{__shfl_down_sync(0xffffffffu, own.count, offset),
                        __shfl_down_sync(0xffffffffu, own.mean, offset),
                        __shfl_down_sync(0xffffffffu, own.m2, offset)};
    own = math::merged(own, other);
  }
  return own;
}
template <class F>
__device__ __forceinline__ Pair<double> warp_sums(unsigned n, const F& of) {
  Pair<double> own{0, 0};
  for (unsigned j = threadIdx.x % 32; j < n; j += 32) {
    const Pair<double> next = of(j);
    own.a += next.a;
    own.b += next.b;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    own.a += __shfl_down_sync(0xffffffffu, own.a, offset);
    own.b += __shfl_down_sync(0xffffffffu, own.b, offset);
  }
  return own;
}

// ---- moments ----

template <class T, int N, bool ChannelsLast>
__global__ void __launch_bounds__(kBlock)
    moments_kernel(const T* x, Cut cut, Sizes sizes, Pair<compute_t<T>>* partial) {
  using C = compute_t<T>;
  const T* panel = x + cut.first_pack() * N;
  const int thread = threadIdx.x, warp = thread / 32;
  C mean[N] = {}, m2[N] = {}, count = 0;
  if (thread < cut.stride) {
    const int64_t end = cut.end();
#pragma unroll 4
    for (int64_t p = cut.begin() + thread; p < end; p += cut.stride) {
      const auto pack = *reinterpret_cast<const Pack<T, N>*>(panel + p * N);
      count += 1;
      const C share = math::reciprocal(count);
#pragma unroll
      for (int i = 0; i < N; ++i) {  // Welford
        const C step = C(pack.v[i]) - mean[i];
        mean[i] = math::multiply_add(step, share, mean[i]);
        m2[i] = math::multiply_add(step, C(pack.v[i]) - mean[i], m2[i]);
      }
    }
  }

  auto* entries = shared<Pair<C>>();
  Pair<C>* out = partial + int64_t(blockIdx.x) * (ChannelsLast ? sizes.groups : 1);
  auto write = [&](unsigned g, const Moments& all) {
    if (thread % 32 == 0) out[g] = {C(all.mean), C(all.m2)};
  };
  if constexpr (ChannelsLast) {
    if (thread < cut.stride) {
#pragma unroll
      for (int i = 0; i < N; ++i) entries[thread * N + i] = {mean[i], m2[i]};
    }
    __syncthreads();
    const unsigned rows = cut.stride * N / sizes.channels, width = sizes.group_channels;
    for (unsigned g = warp; g < sizes.groups; g += blockDim.x / 32) {
      write(g, warp_merged(rows * width, [&](unsigned j) -> Moments {
              const unsigned at = j / width * sizes.channels + g * width + j % width;
              return {double(cut.met_by(at / N)), double(entries[at].a), double(entries[at].b)};
            }));
    }
  } else {
    C all_mean = 0, all_m2 = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) all_mean += mean[i];
    all_mean /= N;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const C step = mean[i] - all_mean;
      all_m2 += math::multiply_add(count * step, step, m2[i]);
    }
    if (thread < cut.stride) entries[thread] = {all_mean, all_m2};
    __syncthreads();
    if (warp == 0) {
      write(0, warp_merged(cut.stride, [&](unsigned j) -> Moments {
              return {double(cut.met_by(j) * N), double(entries[j].a), double(entries[j].b)};
            }));
    }
  }
}

// ---- what a thread knows of its channels ----

template <class C, int K>
struct Affine {
  C mean[K], scale[K], shift[K];
};

// The channel, within its image, of element i of each pack that this thread meets.
template <int N, bool ChannelsLast>
__device__ __forceinline__ unsigned channel_of(const Cut& cut, const Sizes& sizes, int i) {
  if constexpr (ChannelsLast) return threadIdx.x * N % sizes.channels + i;
  return cut.panel() % sizes.channels;
}

// mean and rstd begin with the panel's first group.
template <class C, int N, bool ChannelsLast>
__device__ __forceinline__ auto affine_of(const Cut& cut, const Sizes& sizes, const C* mean, const C* rstd,
                                          const Parameter& weight, const Parameter& bias) {
  constexpr int K = ChannelsLast ? N : 1;
  Affine<C, K> affine;
#pragma unroll
  for (int i = 0; i < K; ++i) {
    const unsigned channel = channel_of<N, ChannelsLast>(cut, sizes, i);
    const unsigned group = ChannelsLast ? channel / sizes.group_channels : 0;
    affine.mean[i] = mean[group];
    affine.scale[i] = rstd[group] * weight.at(channel, C(1));
    affine.shift[i] = bias.at(channel, C(0));
  }
  return affine;
}

// Index of the panel's first group among all (B, G).
template <bool ChannelsLast>
__device__ __forceinline__ unsigned first_group(const Cut& cut, const Sizes& sizes) {
  return ChannelsLast ? cut.panel() * sizes.groups : cut.panel() / sizes.group_channels;
}

// ---- forward ----

template <class T, int N, bool ChannelsLast>
__global__ void __launch_bounds__(kBlock)
    apply_kernel(const T* x, Cut cut, Sizes sizes, Cut moments_cut, const Pair<compute_t<T>>* partial,
                 double eps, Parameter weight, Parameter bias, compute_t<T>* mean, compute_t<T>* rstd, T* y) {
  using C = compute_t<T>;
  const unsigned groups = ChannelsLast ? sizes.groups : 1;
  const unsigned first = first_group<ChannelsLast>(cut, sizes);
  const bool writes = cut.index() == 0 && (ChannelsLast || cut.panel() % sizes.group_channels == 0);
  C* shared_mean = shared<C>();
  C* shared_rstd = shared_mean + groups;
  for (unsigned g = threadIdx.x / 32; g < groups; g += blockDim.x / 32) {
    const int64_t panel = ChannelsLast ? cut.panel() : first;  // of the moments
    const Moments all = warp_merged(moments_cut.chunks, [&](unsigned k) -> Moments {
      const Pair<C> p = partial[(panel * moments_cut.chunks + k) * groups + g];
      return {double(moments_cut.size(k) * N / groups), double(p.a), double(p.b)};
    });
    if (threadIdx.x % 32 == 0) {
      shared_mean[g] = C(all.mean);
      shared_rstd[g] = C(math::reciprocal_deviation(all, eps));
      if (writes) {
        mean[first + g] = shared_mean[g];
        rstd[first + g] = shared_rstd[g];
      }
    }
  }
  __syncthreads();
  if (int(threadIdx.x) >= cut.stride) return;

  const auto own = affine_of<C, N, ChannelsLast>(cut, sizes, shared_mean, shared_rstd, weight, bias);
  const int64_t base = cut.first_pack(), end = cut.end();
#pragma unroll 2
  for (int64_t p = cut.begin() + threadIdx.x; p < end; p += cut.stride) {
    auto pack = *reinterpret_cast<const Pack<T, N>*>(x + (base + p) * N);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int k = ChannelsLast ? i : 0;
      pack.v[i] = T(math::relu(math::normalized(C(pack.v[i]) - own.mean[k], own.scale[k], own.shift[k])));
    }
    *reinterpret_cast<Pack<T, N>*>(y + (base + p) * N) = pack;
  }
}

// ---- backward ----

// of_channels: (panels, chunks, channels of a panel). of_groups, in channels-last memory: (B, chunks, G), weighted.
template <class T, int N, bool ChannelsLast>
__global__ void __launch_bounds__(kBlock)
    grad_sums_kernel(const T* x, const T* grad, Cut cut, Sizes sizes, const compute_t<T>* mean,
                     const compute_t<T>* rstd, Parameter weight, Parameter bias,
                     Pair<compute_t<T>>* of_channels, Pair<compute_t<T>>* of_groups) {
  using C = compute_t<T>;
  constexpr int K = ChannelsLast ? N : 1;
  const unsigned first = first_group<ChannelsLast>(cut, sizes);
  const int thread = threadIdx.x;
  C sums[K] = {}, centered_sums[K] = {};
  if (thread < cut.stride) {
    const auto own = affine_of<C, N, ChannelsLast>(cut, sizes, mean + first, rstd + first, weight, bias);
    const int64_t base = cut.first_pack(), end = cut.end();
    for (int64_t p = cut.begin() + thread; p < end; p += cut.stride) {
      const auto pack = *reinterpret_cast<const Pack<T, N>*>(x + (base + p) * N);
      const auto flow = *reinterpret_cast<const Pack<T, N>*>(grad + (base + p) * N);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int k = ChannelsLast ? i : 0;
        const C centered = C(pack.v[i]) - own.mean[k];
        const C g = math::relu_grad(math::normalized(centered, own.scale[k], own.shift[k]), C(flow.v[i]));
        sums[k] += g;
        centered_sums[k] = math::multiply_add(g, centered, centered_sums[k]);
      }
    }
  }

  if constexpr (ChannelsLast) {
    auto* entries = shared<Pair<C>>();
    if (thread < cut.stride) {
#pragma unroll
      for (int i = 0; i < N; ++i) entries[thread * N + i] = {sums[i], centered_sums[i]};
    }
    __syncthreads();
    const unsigned channels = sizes.channels, width = sizes.group_channels;
    for (unsigned c = thread; c < channels; c += blockDim.x) {
      Pair<double> all{0, 0};
      for (unsigned at = c; at < cut.stride * N; at += channels) {
        all.a += double(entries[at].a);
        all.b += double(entries[at].b);
      }
      of_channels[int64_t(blockIdx.x) * channels + c] = {C(all.a), C(all.b)};
      const double w = weight.at(c, 1.0);
      entries[c] = {C(w * all.a), C(w * all.b)};
    }
    __syncthreads();
    for (unsigned g = thread; g < sizes.groups; g += blockDim.x) {
      Pair<double> all{0, 0};
      for (unsigned c = g * width; c < (g + 1) * width; ++c) {
        all.a += double(entries[c].a);
        all.b += double(entries[c].b);
      }
      of_groups[int64_t(blockIdx.x) * sizes.groups + g] = {C(all.a), C(all.b)};
    }
  } else {
    const double sum = block_sum(double(sums[0])), centered_sum = block_sum(double(centered_sums[0]));
    if (thread == 0) of_channels[blockIdx.x] = {C(sum), C(centered_sum)};
  }
}

// Adds over images and chunks; the block's warps share them out, its lanes are neighbouring channels.
template <class C, bool ChannelsLast>
__device__ void parameter_gradients(unsigned first_channel, const Cut& cut, const Sizes& sizes, const C* rstd,
                                    const Pair<C>* of_channels, const ParameterGradient& weight,
                                    const ParameterGradient& bias) {
  auto* of_warps = shared<Pair<double>>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const unsigned channel = first_channel + lane;
  Pair<double> all{0, 0};
  if (channel < sizes.channels) {
    for (int64_t j = warp; j < sizes.batch * cut.chunks; j += warps) {
      const int64_t image = j / cut.chunks, k = j % cut.chunks;
      const int64_t at =
          ChannelsLast ? j * sizes.channels + channel : (image * sizes.channels + channel) * cut.chunks + k;
      all.a += double(of_channels[at].a);
      all.b +=
          double(of_channels[at].b) * double(rstd[image * sizes.groups + channel / sizes.group_channels]);
    }
  }
  of_warps[threadIdx.x] = all;
  __syncthreads();
  if (warp != 0 || channel >= sizes.channels) return;
  for (int w = 1; w < warps; ++w) {
    all.a += of_warps[w * 32 + lane].a;
    all.b += of_warps[w * 32 + lane].b;
  }
  bias.set(channel, all.a);
  weight.set(channel, all.b);
}

template <class T>
struct GradArguments {
  using C = compute_t<T>;
  const T* x;
  const T* grad;
  const C* mean;
  const C* rstd;
  Parameter weight, bias;
  const Pair<C>* of_channels;
  const Pair<C>* of_groups;
  T* grad_x;
  ParameterGradient grad_weight, grad_bias;
};

// The blocks after those of grad_x add the gradients of the parameters meanwhile.
template <class T, int N, bool ChannelsLast>
__global__ void __launch_bounds__(kBlock)
    grad_apply_kernel(const __grid_constant__ GradArguments<T> a, Cut cut, Cut sums_cut, Sizes sizes) {
  using C = compute_t<T>;
  constexpr int K = ChannelsLast ? N : 1;
  if (blockIdx.x >= cut.blocks()) {
    parameter_gradients<C, ChannelsLast>(32 * (blockIdx.x - cut.blocks()), sums_cut, sizes, a.rstd,
                                         a.of_channels, a.grad_weight, a.grad_bias);
    return;
  }

  const unsigned groups = ChannelsLast ? sizes.groups : 1;
  const unsigned first = first_group<ChannelsLast>(cut, sizes);
  C* offset = shared<C>();
  C* slope = offset + groups;
  for (unsigned g = threadIdx.x / 32; g < groups; g += blockDim.x / 32) {
    Pair<double> sums;
    if constexpr (ChannelsLast) {
      sums = warp_sums(sums_cut.chunks, [&](unsigned k) -> Pair<double> {
        const Pair<C> p = a.of_groups[(int64_t(cut.panel()) * sums_cut.chunks + k) * groups + g];
        return {double(p.a), double(p.b)};
      });
    } else {
      const unsigned channel = first % sizes.groups * sizes.group_channels;
      const Pair<C>* own = a.of_channels + int64_t(first) * sizes.group_channels * sums_cut.chunks;
      sums = warp_sums(sizes.group_channels * sums_cut.chunks, [&](unsigned j) -> Pair<double> {
        const double w = a.weight.at(channel + j / sums_cut.chunks, 1.0);
        return {w * double(own[j].a), w * double(own[j].b)};
      });
    }
    if (threadIdx.x % 32 == 0) {
      const GroupGradient gradient = math::group_gradient(
          sums.a, sums.b, double(sizes.group_channels * sizes.spatial), double(a.rstd[first + g]));
      offset[g] = C(gradient.offset);
      slope[g] = C(gradient.slope);
    }
  }
  __syncthreads();
  if (int(threadIdx.x) >= cut.stride) return;

  const auto own =
      affine_of<C, N, ChannelsLast>(cut, sizes, a.mean + first, a.rstd + first, a.weight, a.bias);
  C own_offset[K], own_slope[K];
#pragma unroll
  for (int i = 0; i < K; ++i) {
    const unsigned g = ChannelsLast ? channel_of<N, ChannelsLast>(cut, sizes, i) / sizes.group_channels : 0;
    own_offset[i] = offset[g];
    own_slope[i] = slope[g];
  }
  const int64_t base = cut.first_pack(), end = cut.end();
  for (int64_t p = cut.begin() + threadIdx.x; p < end; p += cut.stride) {
    auto pack = *reinterpret_cast<const Pack<T, N>*>(a.x + (base + p) * N);
    const auto flow = *reinterpret_cast<const Pack<T, N>*>(a.grad + (base + p) * N);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int k = ChannelsLast ? i : 0;
      const C centered = C(pack.v[i]) - own.mean[k];
      const C g = math::relu_grad(math::normalized(centered, own.scale[k], own.shift[k]), C(flow.v[i]));
      pack.v[i] =
          T(math::multiply_add(own.scale[k], g, -math::multiply_add(centered, own_slope[k], own_offset[k])));
    }
    *reinterpret_cast<Pack<T, N>*>(a.grad_x + (base + p) * N) = pack;
  }
}

// ---- host ----

int64_t pack_size(int64_t length, const Tensor& x) {
  const int64_t pack = 16 / int64_t(x.element_size());
  return length % pack == 0 ? pack : 1;
}

// Does a block reach over all channels of a location?
bool reaches_over(int64_t channels, const Tensor& x) {
  return channels <= kMaxChannels && channels / pack_size(channels, x) <= kBlock;
}

// `t` where the kernels can read it, else a copy.
Tensor arranged(const Tensor& t) {
  const Tensor x = readable(t);
  return aligned(reaches_over(x.size(1), x) ? x : torch::stable::contiguous(x));
}

// The cuts of a tensor, for its memory order and the size of a pack.
struct Plan {
  Sizes sizes;
  bool channels_last;
  int64_t pack;
  Cut moments, sums, apply;

  Plan(const Tensor& x, int64_t groups) {
    const GroupNormLayout l = group_norm_layout(x, groups);
    sizes = {l.batch, l.spatial, unsigned(l.channels), unsigned(l.groups), unsigned(l.group_channels())};
    channels_last = l.channels_last && reaches_over(l.channels, x);
    pack = pack_size(channels_last ? l.channels : l.spatial, x);
    const int64_t row = channels_last ? l.channels / pack : 0;
    const int64_t panels = channels_last ? l.batch : l.batch * l.channels;
    const int64_t packs = (channels_last ? l.channels * l.spatial : l.spatial) / pack;
    moments = channels_last ? cut(panels, packs, row, kMaxPartials)
                            : cut(l.batch * l.groups, l.group_size() / pack, row, kMaxPartials);
    sums = cut(panels, packs, row, kMaxPartials);
    apply = cut(panels, packs, row, packs);
  }

  // Bytes that a block shares.
  template <class C>
  size_t entries(const Cut& c) const {
    return sizeof(Pair<C>) * size_t(c.stride * (channels_last ? pack : 1));
  }
  template <class C>
  size_t of_groups() const {
    return sizeof(Pair<C>) * size_t(channels_last ? sizes.groups : 1);
  }
  int64_t groups_of_panel() const { return channels_last ? sizes.groups : 1; }
};

// f(pack size, is channels-last) as constants.
template <class T, class F>
void dispatch_plan(const Plan& plan, const F& f) {
  constexpr int kPack = 16 / sizeof(T);
  using Vector = std::integral_constant<int, kPack>;
  using Scalar = std::integral_constant<int, 1>;
  if (plan.channels_last) {
    plan.pack == 1 ? f(Scalar(), std::true_type()) : f(Vector(), std::true_type());
  } else {
    plan.pack == 1 ? f(Scalar(), std::false_type()) : f(Vector(), std::false_type());
  }
}

std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(torch::stable::contiguous(*t)) : std::nullopt;
}
Parameter parameter_of(const std::optional<Tensor>& t) {
  return t.has_value() ? Parameter{t->const_data_ptr(), dtype_of(*t)} : Parameter{nullptr, Dtype::kFloat32};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_relu(const Tensor& input, std::optional<Tensor> weight,
                                                   std::optional<Tensor> bias, int64_t groups, double eps) {
  check_group_norm(input, weight, bias, groups);
  check_number("group_norm_relu", "eps", eps, 0, INFINITY);
  const OnDeviceOf device(input);
  const Tensor x = arranged(input);
  const auto w = dense(weight), b = dense(bias);
  Tensor y = torch::stable::empty_like(x);
  const ScalarType real = sum_type(x.scalar_type());
  if (x.numel() == 0) {
    return {in_order_of(y, input), torch::stable::new_zeros(x, {x.size(0), groups}, real),
            torch::stable::new_zeros(x, {x.size(0), groups}, real)};
  }
  Tensor mean = new_empty(x, {x.size(0), groups}, real), rstd = new_empty(x, {x.size(0), groups}, real);

  const Plan plan(x, groups);
  Tensor partial = new_empty(x, {plan.moments.blocks(), plan.groups_of_panel(), 2}, real);
  dispatch_floating("group_norm_relu", x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using C = compute_t<T>;
    const T* in = static_cast<const T*>(x.const_data_ptr());
    auto* pairs = static_cast<Pair<C>*>(partial.mutable_data_ptr());
    dispatch_plan<T>(plan, [&](auto pack, auto channels_last) {
      constexpr int kPack = decltype(pack)::value;
      constexpr bool kLast = decltype(channels_last)::value;
      moments_kernel<T, kPack, kLast>
          <<<plan.moments.blocks(), plan.moments.threads(), plan.entries<C>(plan.moments), device.stream()>>>(
              in, plan.moments, plan.sizes, pairs);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      apply_kernel<T, kPack, kLast>
          <<<plan.apply.blocks(), plan.apply.threads(), plan.of_groups<C>(), device.stream()>>>(
              in, plan.apply, plan.sizes, plan.moments, pairs, eps, parameter_of(w), parameter_of(b),
              static_cast<C*>(mean.mutable_data_ptr()), static_cast<C*>(rstd.mutable_data_ptr()),
              static_cast<T*>(y.mutable_data_ptr()));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return {in_order_of(y, input), mean, rstd};
}

Tensor new_gradient(const std::optional<Tensor>& parameter, const Tensor& x) {
  if (!parameter.has_value()) return new_empty(x, {0}, x.scalar_type());
  return torch::stable::new_zeros(x, {x.size(1)}, parameter->scalar_type());
}
ParameterGradient gradient_of(const std::optional<Tensor>& parameter, Tensor& grad) {
  return {parameter.has_value() ? grad.mutable_data_ptr() : nullptr, dtype_of(grad)};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_relu_backward(const Tensor& grad, const Tensor& input,
                                                            const Tensor& mean, const Tensor& rstd,
                                                            std::optional<Tensor> weight,
                                                            std::optional<Tensor> bias) {
  check_group_norm_grad(grad, input, mean, rstd, weight, bias);
  const OnDeviceOf device(input);
  const Tensor x = arranged(input);
  const Tensor upstream = aligned(in_order_of(converted(grad, x.scalar_type()), x));
  const ScalarType real = sum_type(x.scalar_type());
  const Tensor means = torch::stable::contiguous(converted(mean, real));
  const Tensor rstds = torch::stable::contiguous(converted(rstd, real));
  const auto w = dense(weight), b = dense(bias);
  Tensor grad_x = torch::stable::empty_like(x);
  Tensor grad_weight = new_gradient(weight, x), grad_bias = new_gradient(bias, x);
  if (x.numel() == 0) return {in_order_of(grad_x, input), grad_weight, grad_bias};

  const Plan plan(x, mean.size(1));
  const int64_t chunks = plan.sums.blocks();
  Tensor of_channels = new_empty(x, {chunks, plan.channels_last ? plan.sizes.channels : 1, 2}, real);
  Tensor of_groups = new_empty(x, {plan.channels_last ? chunks : 0, plan.sizes.groups, 2}, real);
  dispatch_floating("group_norm_relu_backward", x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using C = compute_t<T>;
    auto* channel_pairs = static_cast<Pair<C>*>(of_channels.mutable_data_ptr());
    auto* group_pairs = static_cast<Pair<C>*>(of_groups.mutable_data_ptr());
    const GradArguments<T> a{static_cast<const T*>(x.const_data_ptr()),
                             static_cast<const T*>(upstream.const_data_ptr()),
                             static_cast<const C*>(means.const_data_ptr()),
                             static_cast<const C*>(rstds.const_data_ptr()),
                             parameter_of(w),
                             parameter_of(b),
                             channel_pairs,
                             group_pairs,
                             static_cast<T*>(grad_x.mutable_data_ptr()),
                             gradient_of(weight, grad_weight),
                             gradient_of(bias, grad_bias)};
    dispatch_plan<T>(plan, [&](auto pack, auto channels_last) {
      constexpr int kPack = decltype(pack)::value;
      constexpr bool kLast = decltype(channels_last)::value;
      grad_sums_kernel<T, kPack, kLast>
          <<<plan.sums.blocks(), plan.sums.threads(), plan.entries<C>(plan.sums), device.stream()>>>(
              a.x, a.grad, plan.sums, plan.sizes, a.mean, a.rstd, a.weight, a.bias, channel_pairs,
              group_pairs);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      const unsigned blocks = plan.apply.blocks() + unsigned((plan.sizes.channels + 31) / 32);
      const int threads = plan.apply.threads();
      const size_t bytes = std::max(plan.of_groups<C>(), sizeof(Pair<double>) * size_t(threads));
      grad_apply_kernel<T, kPack, kLast>
          <<<blocks, threads, bytes, device.stream()>>>(a, plan.apply, plan.sums, plan.sizes);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return {in_order_of(grad_x, input), grad_weight, grad_bias};
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) {
  m.impl("group_norm_relu", TORCH_BOX(&fcos_fast::group_norm_relu));
  m.impl("group_norm_relu_backward", TORCH_BOX(&fcos_fast::group_norm_relu_backward));
}
