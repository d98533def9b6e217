// How many blocks a kernel gets, and its start. Included by the .cu files, one for each dtype of
// the logits so that they compile side by side.
#pragma once

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "cuda/intrinsics.h"

#include "cuda/choice.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace weighted_bce::cuda {

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

using Kernel = void (*)(Problem);
using Finish = void (*)(Problem, int);

/// The blocks that run on a device at the same time; asked for once.
template <Kernel kernel>
int resident_blocks(int device) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  if (device < kDevices && known[device] > 0) return known[device];
  int per_processor = 0, processors = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, 0));
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const int blocks = std::clamp(per_processor * processors, 1, kMostBlocks);
  if (device < kDevices) known[device] = blocks;
  return blocks;
}

/// Starts a kernel, and where several blocks leave parts of a sum, the one that adds them up.
struct Start {
  const Problem& problem;
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
      kernel<<<blocks, kThreads, 0, stream>>>(problem);
      check(cudaGetLastError());
    }
    if (finish != nullptr && blocks != 1) {
      finish<<<1, kThreads, 0, stream>>>(problem, blocks);
      check(cudaGetLastError());
    }
  }
};

template <class X, Mode kMode>
void launch_mode(const Problem& problem, int device, cudaStream_t stream) {
  using T = typename Arithmetic<X>::T;
  const Finish last = kAddsUp<kMode> ? finish<T, T> : nullptr;
  choose_kernel<X, kMode>(problem, takes_vectors(problem), Start{problem, last, device, stream});
  if (kMode == Mode::kGrad && problem.guessed != nullptr) {
    learn<T><<<1, 1, 0, stream>>>(problem);
    check(cudaGetLastError());
  }
}

template <class X>
void launch_dtype(Mode mode, const Problem& problem, int device, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (mode) {
    case Mode::kLoss: return launch_mode<X, Mode::kLoss>(problem, device, on);
    case Mode::kLossAndGrad: return launch_mode<X, Mode::kLossAndGrad>(problem, device, on);
    case Mode::kGrad: return launch_mode<X, Mode::kGrad>(problem, device, on);
    case Mode::kUnreduced: return launch_mode<X, Mode::kUnreduced>(problem, device, on);
  }
}

}  // namespace weighted_bce::cuda
