// Chooses the kernels by the dtype of the logits, and counts targets.
#include "cuda/launch.cuh"

namespace weighted_bce::cuda {

extern template void launch_dtype<Half>(Mode, const Problem&, int, void*);
extern template void launch_dtype<BFloat16>(Mode, const Problem&, int, void*);
extern template void launch_dtype<float>(Mode, const Problem&, int, void*);
extern template void launch_dtype<double>(Mode, const Problem&, int, void*);

namespace {

/// The caller has made the device torch's current one, and undoes it. This runtime, linked
/// statically, may remember another.
void use(int device) {
  int current = 0;
  check(cudaGetDevice(&current));
  if (current != device) check(cudaSetDevice(device));
}

template <class T>
void count(const Problem& problem, int device, cudaStream_t stream) {
  constexpr int64_t kElements = kThreads * 4;  // for a block at a time
  const Start start{problem, finish<double, T>, device, stream};
  if (problem.positives.crow != nullptr) {
    start.run<count_sparse_targets<T>>(kElements);
  } else {
    start.run<count_targets<T>>(kElements);
  }
}

}  // namespace

void launch(Mode mode, const Problem& problem, int device, void* stream) {
  use(device);
  switch (problem.x.dtype) {
    case Dtype::kFloat16: return launch_dtype<Half>(mode, problem, device, stream);
    case Dtype::kBFloat16: return launch_dtype<BFloat16>(mode, problem, device, stream);
    case Dtype::kFloat64: return launch_dtype<double>(mode, problem, device, stream);
    default: return launch_dtype<float>(mode, problem, device, stream);
  }
}

void launch_count(const Problem& problem, bool wide, int device, void* stream) {
  use(device);
  const auto on = static_cast<cudaStream_t>(stream);
  wide ? count<double>(problem, device, on) : count<float>(problem, device, on);
}

int driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version));
  return version;
}

}  // namespace weighted_bce::cuda
