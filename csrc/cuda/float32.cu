// The kernels for float32 logits.
#include "cuda/launch.cuh"

namespace weighted_bce::cuda {
template void launch_dtype<float>(Problem, const Workspace&, int, cudaStream_t);
}  // namespace weighted_bce::cuda
