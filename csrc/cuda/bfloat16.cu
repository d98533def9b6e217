// The kernels for bfloat16 logits.
#include "cuda/launch.cuh"

namespace weighted_bce::cuda {
template void launch_dtype<BFloat16>(Problem, const Workspace&, int, cudaStream_t);
}  // namespace weighted_bce::cuda
