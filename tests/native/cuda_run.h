// Runs the CUDA kernels on the host, as csrc/cuda/launch.cuh does on a GPU.
#pragma once

#include "gpu.h"

#include "cuda/kernel.h"
#include "planned.h"

namespace native {

namespace cuda = weighted_bce::cuda;
using weighted_bce::BFloat16;
using weighted_bce::Half;

template <class X>
constexpr Dtype dtype_of() {
  if (std::is_same_v<X, Half>) return Dtype::kFloat16;
  if (std::is_same_v<X, BFloat16>) return Dtype::kBFloat16;
  return sizeof(X) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;
}

/// Runs the kernel that choose_kernel() has chosen.
struct Start {
  const Problem& problem;
  const cuda::Workspace& workspace;
  const Grid& grid;

  template <void (*kernel)(Problem, cuda::Workspace), void (*)(Problem, cuda::Workspace)>
  void run(int64_t) const {
    grid.run([&] { kernel(problem, workspace); });
  }
};

template <class X>
void start_mode(const Start& start, bool vectors) {
  const Problem& problem = start.problem;
  switch (problem.mode) {
    case Mode::kLoss: return cuda::choose_kernel<X, Mode::kLoss>(problem, vectors, start);
    case Mode::kLossAndGrad:
      return cuda::choose_kernel<X, Mode::kLossAndGrad>(problem, vectors, start);
    case Mode::kGrad: return cuda::choose_kernel<X, Mode::kGrad>(problem, vectors, start);
    case Mode::kUnreduced: return cuda::choose_kernel<X, Mode::kUnreduced>(problem, vectors, start);
    case Mode::kCount: return fail("a count is started by start_count");
  }
}

/// Adds up the sums of the blocks, where there are several and all have run.
template <class Sum, class T>
void finish(const Problem& problem, const cuda::Workspace& workspace, const Grid& grid) {
  if (grid.blocks == 1 || !grid.only.empty()) return;
  Grid{1, grid.order}.run([&] { cuda::finish<Sum, T>(problem, workspace, grid.blocks); });
}

template <class X>
void start(Problem problem, const cuda::Workspace& workspace, bool vectors, const Grid& grid) {
  using T = typename cuda::Arithmetic<X>::T;
  if (problem.mode == Mode::kLossAndGrad && grid.blocks != 1) {
    std::memcpy(workspace.used, problem.grad_output.data, sizeof(T));
    problem.grad_output.data = workspace.used;
  }
  start_mode<X>({problem, workspace, grid}, vectors);
  if (workspace.expected != nullptr) {
    Grid{1, grid.order}.run([&] { cuda::remember_grad_output<T>(problem, workspace); });
  }
  if (weighted_bce::sums(problem.mode)) finish<T, T>(problem, workspace, grid);
}

template <class T>
void start_count(const Problem& problem, const cuda::Workspace& workspace, const Grid& grid) {
  const bool sparse = problem.csr.crow_indices != nullptr;
  const auto kernel = sparse ? cuda::count_sparse_targets<T> : cuda::count_targets<T>;
  grid.run([&] { kernel(problem, workspace); });
  finish<double, T>(problem, workspace, grid);
}

}  // namespace native
