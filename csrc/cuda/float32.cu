// The kernels for float32 logits.
#include "cuda/launch.cuh"

namespace weighted_bce::cuda {
template void launch_dtype<float>(Mode, const Problem&, int, void*);
}  // namespace weighted_bce::cuda
