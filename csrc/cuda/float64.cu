// The kernels for float64 logits.
#include "cuda/launch.cuh"

namespace weighted_bce::cuda {
template void launch_dtype<double>(Mode, const Problem&, int, void*);
}  // namespace weighted_bce::cuda
