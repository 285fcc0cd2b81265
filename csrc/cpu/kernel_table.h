// The kernel table of one instruction set. Included by simd_<name>.cpp.
#include "box_loss_kernel.h"
#include "centerness_kernel.h"
#include "focal_loss_kernel.h"
#include "group_norm_relu_kernel.h"
#include "match_anchors_kernel.h"
#include "nms_kernel.h"
#include "postprocess_kernel.h"
#include "winograd_kernel.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

template <class T>
constexpr Kernels kernels_for() {
  return {focal_span<T>,
          box_loss_span<T>,
          centerness_span<T>,
          overlaps_any<vec_t<T>>,
          find_logits<T>,
          group_norm_kernels<T>(),
          {match_box, claim_equal},
          {winograd_read<math::WinogradInput>, winograd_read<math::WinogradGradient>, winograd_write}};
}

#define FCOS_STRING(x) #x
#define FCOS_NAME(x) FCOS_STRING(x)

extern const KernelSet kernel_set;
const KernelSet kernel_set{
    FCOS_NAME(FCOS_SIMD_NAMESPACE), kernels_for<float>(), kernels_for<BFloat16>(), kernels_for<Half>(),
    kernels_for<double>(),
};

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
