// Runs the CUDA kernels on the host, as csrc/cuda/launch.cuh does on a GPU.
#pragma once

#include "gpu.h"

#include "cuda/choice.h"
#include "cuda/pack.h"

namespace native {

namespace cuda = weighted_bce::cuda;
using cuda::Mode;

template <class X>
constexpr Dtype dtype_of() {
  if (std::is_same_v<X, cuda::Half>) return Dtype::kFloat16;
  if (std::is_same_v<X, cuda::BFloat16>) return Dtype::kBFloat16;
  return sizeof(X) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;
}

/// Drops the dimensions of size 1, and merges neighbours that every operand walks in one step.
inline void collapse(weighted_bce::Problem& problem) {
  std::vector<weighted_bce::Operand*> present;
  for (auto* o :
       {&problem.x, &problem.y, &problem.w, &problem.p, &problem.upstream, &problem.out}) {
    if (o->data != nullptr) present.push_back(o);
  }
  int dims = 0;
  for (int d = 0; d < problem.dims; ++d) {
    const int64_t size = problem.sizes[d];
    if (size == 1) continue;
    const bool merges = dims > 0 && std::all_of(present.begin(), present.end(), [&](auto* o) {
                          return o->strides[dims - 1] == o->strides[d] * size;
                        });
    if (!merges) problem.sizes[dims++] = 1;
    problem.sizes[dims - 1] *= size;
    for (auto* o : present) o->strides[dims - 1] = o->strides[d];
  }
  if (dims == 0) {
    problem.sizes[dims++] = 1;
    for (auto* o : present) o->strides[0] = 1;
  }
  problem.dims = dims;
  for (auto* o : present) {
    o->linear = true;
    int64_t expected = 1;
    for (int d = dims - 1; d >= 0; expected *= problem.sizes[d--]) {
      o->linear = o->linear && o->strides[d] == expected;
    }
  }
}

/// What the launcher gives to choose_kernel, on the host.
struct Start {
  const cuda::Problem& problem;
  const Grid& grid;

  template <void (*kernel)(cuda::Problem), void (*)(cuda::Problem)>
  void run(int64_t) const {
    grid.run([&] { kernel(problem); });
  }
};

/// A kernel, and where it sums over several blocks, the one that adds up their parts.
template <class X, Mode kMode>
void start_mode(const cuda::Problem& problem, bool vectors, const Grid& grid) {
  using T = typename cuda::Arithmetic<X>::T;
  cuda::choose_kernel<X, kMode>(problem, vectors, Start{problem, grid});
  if (kMode == Mode::kGrad && problem.guessed != nullptr) {
    Grid{1, grid.order}.run([&] { cuda::learn<T>(problem); });
  }
  if constexpr (cuda::kAddsUp<kMode>) {
    if (grid.blocks != 1 && grid.only.empty()) {
      Grid{1, grid.order}.run([&] { cuda::finish<T, T>(problem, grid.blocks); });
    }
  }
}

template <class X>
void start(Mode mode, const cuda::Problem& problem, bool vectors, const Grid& grid) {
  switch (mode) {
    case Mode::kLoss: return start_mode<X, Mode::kLoss>(problem, vectors, grid);
    case Mode::kLossAndGrad: return start_mode<X, Mode::kLossAndGrad>(problem, vectors, grid);
    case Mode::kGrad: return start_mode<X, Mode::kGrad>(problem, vectors, grid);
    case Mode::kUnreduced: return start_mode<X, Mode::kUnreduced>(problem, vectors, grid);
  }
}

template <class T>
void start_count(const cuda::Problem& problem, const Grid& grid) {
  const bool sparse = problem.positives.crow != nullptr;
  grid.run(
      [&] { sparse ? cuda::count_sparse_targets<T>(problem) : cuda::count_targets<T>(problem); });
  if (grid.blocks != 1 && grid.only.empty()) {
    Grid{1, grid.order}.run([&] { cuda::finish<double, T>(problem, grid.blocks); });
  }
}

}  // namespace native
