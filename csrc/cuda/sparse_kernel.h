// The CUDA kernels for sparse labels: a block takes consecutive elements, so that it finds its
// positives one after the other.
#pragma once

#include "cuda/kernel.h"
#include "cuda/positives.h"

namespace weighted_bce::cuda {

/// What one block takes of all rounds: as many as any other, or one more.
struct Part {
  int64_t first;
  int count;
};
WEIGHTED_BCE_DEVICE Part part_of_block(int64_t rounds) {
  const int64_t each = rounds / blocks(), more = rounds - each * blocks();
  const int64_t before = block() < more ? block() : more;
  return {each * block() + before, static_cast<int>(each + (block() < more))};
}

/// on_vectors with sparse labels. The loss alone gets no more blocks than the loss beside its
/// gradient (choice.h), so it may have as many registers.
template <class X, Mode kMode>
WEIGHTED_BCE_KERNEL((kResident < X, kMode == Mode::kLoss ? Mode::kLossAndGrad : kMode >))
on_sparse_vectors(const WEIGHTED_BCE_PARAMETER Problem problem) {
  using T = typename Arithmetic<X>::T;
  using Work = VectorWorker<X, kSparse, kMode>;
  constexpr int kLanes = Work::kLanes, kRound = kThreads * kLanes;
  WEIGHTED_BCE_SHARED Found<T> shared;
  WEIGHTED_BCE_SHARED typename Work::Shared shared_groups;
  WEIGHTED_BCE_SHARED typename Marks<kLanes>::Shared shared_marks;
  Marks<kLanes> marks(problem, shared_marks);
  const int64_t groups = problem.numel / kLanes;
  const Part part = part_of_block((groups + kThreads - 1) / kThreads);
  const auto prepare = [&] {
    if (part.count > 0) marks.prepare(part.first * kRound);
  };
  if (!start<T, kMode>(problem, shared, prepare)) return;
  Work work(problem, shared.scale);

  const bool idles = (part.first + part.count - 1) * kThreads + thread() >= groups;
  const int64_t first = part.first * kRound + thread() * kLanes;
  compute_groups<T>(work, shared_groups, first, kRound, part.count, idles,
                    [&](typename Work::Group& group, int64_t i, int left) {
                      group.targets = marks.take(i - thread() * kLanes, left);
                    });
  // What fills no group.
  const int64_t rest = groups * kLanes + thread();
  if (block() == 0 && rest < problem.numel) {
    work.template element<true>(rest, is_positive(problem, rest));
    work.collect();
  }
  if constexpr (kAddsUp<kMode>) {
    leave_part<T>(problem, work.total(), shared.factor);
  }
}

/// on_elements with sparse labels.
template <class X, Mode kMode>
WEIGHTED_BCE_KERNEL(4)
on_sparse_elements(const WEIGHTED_BCE_PARAMETER Problem problem) {
  using T = typename Arithmetic<X>::T;
  WEIGHTED_BCE_SHARED Found<T> shared;
  WEIGHTED_BCE_SHARED Marks<1>::Shared shared_marks;
  Marks<1> marks(problem, shared_marks);
  const Part part = part_of_block((problem.numel + kThreads - 1) / kThreads);
  const auto prepare = [&] {
    if (part.count > 0) marks.prepare(part.first * kThreads);
  };
  if (!start<T, kMode>(problem, shared, prepare)) return;
  Worker<X, kMode> work(problem, shared.scale);
  int64_t i = part.first * kThreads + thread();
  for (int left = part.count; left > 0; --left, i += kThreads) {
    const bool positive = marks.take(i - thread(), left).words[0] != 0;
    if (i < problem.numel) work.template element<true>(i, positive);
    work.collect();
  }
  if constexpr (kAddsUp<kMode>) {
    leave_part<T>(problem, work.total(), shared.factor);
  }
}

/// count_targets with sparse labels.
template <class T>
WEIGHTED_BCE_KERNEL(4)
count_sparse_targets(const WEIGHTED_BCE_PARAMETER Problem problem) {
  if (guessed_right<T>(problem)) return;
  const T ignore_index = numbers_of<T>(problem).ignore_index;
  const Part part = part_of_block((problem.numel + kThreads - 1) / kThreads);
  int64_t kept = 0, i = part.first * kThreads + thread();
  for (int left = part.count; left > 0 && i < problem.numel; --left, i += kThreads) {
    kept += !is_mark(is_positive(problem, i) ? T(1) : T(0), ignore_index);
  }
  leave_part<double>(problem, static_cast<double>(kept), T(1));
}

}  // namespace weighted_bce::cuda
