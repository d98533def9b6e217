// Chooses the kernels by the dtype of the logits, and counts targets.
#include "cuda/launch.cuh"

namespace weighted_bce::cuda {

extern template void launch_dtype<Half>(Problem, const Workspace&, int, cudaStream_t);
extern template void launch_dtype<BFloat16>(Problem, const Workspace&, int, cudaStream_t);
extern template void launch_dtype<float>(Problem, const Workspace&, int, cudaStream_t);
extern template void launch_dtype<double>(Problem, const Workspace&, int, cudaStream_t);

namespace {

/// The caller has made the device torch's current one, and undoes it. This runtime, linked
/// statically, may remember another.
void use(int device) {
  int current = 0;
  check(cudaGetDevice(&current));
  if (current != device) check(cudaSetDevice(device));
}

template <class T>
void launch_count(const Problem& problem, const Workspace& workspace, int device,
                  cudaStream_t stream) {
  const Start start{problem, workspace, finish<double, T>, device, stream};
  if (problem.csr.crow_indices != nullptr) {
    start.run<count_sparse_targets<T>>(kThreads * problem.csr.num_labels);
  } else {
    start.run<count_targets<T>>(kThreads * 4);
  }
}

}  // namespace

void launch(const Problem& problem, const Workspace& workspace, int device, void* stream) {
  use(device);
  const auto on = static_cast<cudaStream_t>(stream);
  const bool wide = problem.x.dtype == Dtype::kFloat64;
  if (problem.mode == Mode::kCount) {
    const auto count = wide ? launch_count<double> : launch_count<float>;
    return count(problem, workspace, device, on);
  }
  switch (problem.x.dtype) {
    case Dtype::kFloat16: return launch_dtype<Half>(problem, workspace, device, on);
    case Dtype::kBFloat16: return launch_dtype<BFloat16>(problem, workspace, device, on);
    case Dtype::kFloat64: return launch_dtype<double>(problem, workspace, device, on);
    default: return launch_dtype<float>(problem, workspace, device, on);
  }
}

int driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version));
  return version;
}

}  // namespace weighted_bce::cuda
