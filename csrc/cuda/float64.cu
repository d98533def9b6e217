// The kernels for float64 logits.
#include "cuda/launch.cuh"

namespace weighted_bce::cuda {
template void launch_dtype<double>(Problem, const Workspace&, int, cudaStream_t);
}  // namespace weighted_bce::cuda
