#include "../math/centerness.h"

#include "kernels.h"
#include "reduction.h"

namespace fcos_fast {

constexpr int64_t kGrain = 4096;  // locations

void run_centerness(Cpu, const CenternessWork& work) {
  const Kernels& kernels_of_type = kernels(work.dtype);
  const int64_t element = size_of(work.dtype), columns = work.upstream == nullptr ? 1 : 4;
  torch::stable::parallel_for(0, work.n, kGrain, [&](int64_t begin, int64_t end) {
    kernels_of_type.centerness(advance(work.ltrb, begin * 4 * element),
                               advance(work.upstream, begin * element),
                               advance(work.out, begin * columns * element), end - begin);
  });
}

}  // namespace fcos_fast
