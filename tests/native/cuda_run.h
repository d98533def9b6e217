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

/// What the launcher gives to choose_kernel, on the host.
struct Start {
  const Problem& problem;
  const cuda::Workspace& workspace;
  const Grid& grid;

  template <void (*kernel)(Problem, cuda::Workspace), void (*)(Problem, cuda::Workspace)>
  void run(int64_t) const {
    grid.run([&] { kernel(problem, workspace); });
  }
};

/// A kernel, and where it sums over several blocks, the one that adds up their parts.
template <template <class> class L, class X, Mode kMode>
void start_mode(const Problem& problem, const cuda::Workspace& workspace, bool vectors,
                const Grid& grid) {
  using T = typename cuda::Arithmetic<X>::T;
  cuda::choose_kernel<L, X, kMode>(problem, vectors, Start{problem, workspace, grid});
  if (workspace.expected != nullptr) {
    Grid{1, grid.order}.run([&] { cuda::remember_grad_output<T>(problem, workspace); });
  }
  if constexpr (weighted_bce::kSums<kMode>) {
    if (grid.blocks != 1 && grid.only.empty()) {
      Grid{1, grid.order}.run([&] { cuda::finish<T, T>(problem, workspace, grid.blocks); });
    }
  }
}

template <template <class> class L, class X>
void start_loss(const Problem& problem, const cuda::Workspace& workspace, bool vectors,
                const Grid& grid) {
  switch (problem.mode) {
    case Mode::kLoss: return start_mode<L, X, Mode::kLoss>(problem, workspace, vectors, grid);
    case Mode::kLossAndGrad:
      return start_mode<L, X, Mode::kLossAndGrad>(problem, workspace, vectors, grid);
    case Mode::kGrad: return start_mode<L, X, Mode::kGrad>(problem, workspace, vectors, grid);
    case Mode::kUnreduced:
      return start_mode<L, X, Mode::kUnreduced>(problem, workspace, vectors, grid);
    case Mode::kCount: return die("a count is started by start_count");
  }
}

template <class X>
void start(Problem problem, const cuda::Workspace& workspace, bool vectors, const Grid& grid) {
  using T = typename cuda::Arithmetic<X>::T;
  if (problem.mode == Mode::kLossAndGrad && grid.blocks != 1) {
    std::memcpy(workspace.used, problem.grad_output.data, sizeof(T));
    problem.grad_output.data = workspace.used;
  }
  weighted_bce::with_loss(problem.loss, [&](auto loss) {
    start_loss<decltype(loss)::template Terms, X>(problem, workspace, vectors, grid);
  });
}

template <class T>
void start_count(const Problem& problem, const cuda::Workspace& workspace, const Grid& grid) {
  const bool sparse = problem.csr.crow_indices != nullptr;
  const auto kernel = sparse ? cuda::count_sparse_targets<T> : cuda::count_targets<T>;
  grid.run([&] { kernel(problem, workspace); });
  if (grid.blocks != 1 && grid.only.empty()) {
    Grid{1, grid.order}.run([&] { cuda::finish<double, T>(problem, workspace, grid.blocks); });
  }
}

}  // namespace native
