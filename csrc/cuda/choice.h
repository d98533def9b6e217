// Which kernel takes a problem.
#pragma once

#include "cuda/kernel.h"
#include "cuda/sparse_kernel.h"

namespace weighted_bce::cuda {

/// Calls start.run<kernel, sized_by>(elements): `elements` is what a block takes at a time, and
/// `kernel` gets as many blocks as `sized_by` could have. So the loss alone is summed by as many
/// blocks as the loss beside its gradient, and has the same bits.
template <class X, Mode kMode, class Start>
void choose_kernel(const Problem& problem, bool vectors, const Start& start) {
  const bool sparse = problem.positives.crow != nullptr;
  constexpr Mode kSizedBy = kMode == Mode::kLoss ? Mode::kLossAndGrad : kMode;
  if constexpr (sizeof(X) < 8) {
    constexpr int64_t kElements = kThreads * 16 / sizeof(X);
    if (vectors && sparse) {
      return start.template run<on_sparse_vectors<X, kMode>, on_sparse_vectors<X, kSizedBy>>(
          kElements);
    }
    if (vectors && problem.y.size == 1) {
      return start.template run<on_vectors<X, 1, kMode>, on_vectors<X, 1, kSizedBy>>(kElements);
    }
    if (vectors) {
      return start.template run<on_vectors<X, 0, kMode>, on_vectors<X, 0, kSizedBy>>(kElements);
    }
  }
  if (sparse) {
    return start.template run<on_sparse_elements<X, kMode>, on_sparse_elements<X, kSizedBy>>(
        kThreads);
  }
  start.template run<on_elements<X, kMode>, on_elements<X, kSizedBy>>(kThreads);
}

}  // namespace weighted_bce::cuda
