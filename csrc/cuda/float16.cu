// The kernels for float16 logits.
#include "cuda/launch.cuh"

namespace weighted_bce::cuda {
template void launch_dtype<Half>(Mode, const Problem&, int, void*);
}  // namespace weighted_bce::cuda
