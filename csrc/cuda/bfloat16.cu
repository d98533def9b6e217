// The kernels for bfloat16 logits.
#include "cuda/launch.cuh"

namespace weighted_bce::cuda {
template void launch_dtype<BFloat16>(Mode, const Problem&, int, void*);
}  // namespace weighted_bce::cuda
