// The kernels for float16 logits.
#include "cuda/launch.cuh"

namespace weighted_bce::cuda {
template void launch_dtype<Half>(Problem, const Workspace&, int, cudaStream_t);
}  // namespace weighted_bce::cuda
