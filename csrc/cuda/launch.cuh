// Says how many blocks a kernel gets, and starts it. The .cu files include this, one for each dtype
// of the logits so that they compile side by side.
#pragma once

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "cuda/intrinsics.h"

#include "cuda/kernel.h"

namespace weighted_bce::cuda {

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

using Kernel = void (*)(Problem, Workspace);
using Finish = void (*)(Problem, Workspace, int);

/// Returns how many blocks run on a device at the same time, which is asked for once.
template <Kernel kernel>
int resident_blocks(int device) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  if (device < kDevices && known[device] > 0) return known[device];
  int per_processor = 0, processors = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, 0));
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const int blocks = std::clamp(per_processor * processors, 1, kMaxBlocks);
  if (device < kDevices) known[device] = blocks;
  return blocks;
}

/// Starts a kernel, and where several blocks store sums, the one that adds them up.
struct Start {
  const Problem& problem;
  const Workspace& workspace;
  Finish finish;  // null: nothing is summed
  int device;
  cudaStream_t stream;

  template <Kernel kernel, Kernel sized_by = kernel>
  void run(int64_t elements) const {
    int blocks = 0;
    if (problem.numel > 0) {
      const int64_t wanted =
          problem.numel <= kOneBlock ? 1 : (problem.numel + elements - 1) / elements;
      blocks = static_cast<int>(std::min<int64_t>(wanted, resident_blocks<sized_by>(device)));
      kernel<<<blocks, kThreads, 0, stream>>>(problem, workspace);
      check(cudaGetLastError());
    }
    if (finish != nullptr && blocks != 1) {
      finish<<<1, kThreads, 0, stream>>>(problem, workspace, blocks);
      check(cudaGetLastError());
    }
  }
};

template <class X>
void launch_mode(const Problem& problem, const Start& start) {
  const bool vectors = takes_vectors(problem);
  switch (problem.mode) {
    case Mode::kLoss: return choose_kernel<X, Mode::kLoss>(problem, vectors, start);
    case Mode::kLossAndGrad: return choose_kernel<X, Mode::kLossAndGrad>(problem, vectors, start);
    case Mode::kGrad: return choose_kernel<X, Mode::kGrad>(problem, vectors, start);
    case Mode::kUnreduced: return choose_kernel<X, Mode::kUnreduced>(problem, vectors, start);
    case Mode::kCount: return;
  }
}

/// Starts the kernels of all modes but kCount, for logits of type X.
template <class X>
void launch_dtype(Problem problem, const Workspace& workspace, int device, cudaStream_t stream) {
  using T = typename Arithmetic<X>::T;
  // `expected` may change while the blocks run: so they read a copy. One block makes it itself.
  if (problem.mode == Mode::kLossAndGrad && (problem.numel == 0 || problem.numel > kOneBlock)) {
    check(cudaMemcpyAsync(workspace.used, problem.grad_output.data, sizeof(T),
                          cudaMemcpyDeviceToDevice, stream));
    problem.grad_output.data = workspace.used;
  }
  const Finish last = sums(problem.mode) ? finish<T, T> : nullptr;
  const Start start{problem, workspace, last, device, stream};
  launch_mode<X>(problem, start);
  if (workspace.expected != nullptr) {
    remember_grad_output<T><<<1, 1, 0, stream>>>(problem, workspace);
    check(cudaGetLastError());
  }
}

}  // namespace weighted_bce::cuda
