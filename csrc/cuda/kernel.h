// The CUDA kernels: loss and gradient in one pass over the logits. A thread sums its losses; a
// block adds up its threads and leaves its part in device memory, where `finish` adds the parts in
// a fixed order. The work of a thread is in worker.h and vector_worker.h.
//
// Included after intrinsics.h, or after what takes its place on the host.
#pragma once

#include "cuda/vector_worker.h"

namespace weighted_bce::cuda {

/// The sum over all threads of a block, in thread 0. The same order on each run.
WEIGHTED_BCE_DEVICE double sum_of_block(double v) {
  constexpr int kWarps = kThreads / 32;
  WEIGHTED_BCE_SHARED double parts[kWarps];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += from_higher_lane(v, offset);
  if (thread() % 32 == 0) parts[thread() / 32] = v;
  barrier();
  if (thread() == 0) {
    for (int k = 1; k < kWarps; ++k) v += parts[k];
  }
  return v;
}

/// Writes the results of all blocks, the sum as Out. One thread calls it.
template <class Out, class T>
WEIGHTED_BCE_DEVICE void write_results(const Problem& problem, double sum, T factor) {
  *static_cast<Out*>(problem.loss) = static_cast<Out>(divided(problem, sum));
  if (problem.used != nullptr) *static_cast<T*>(problem.used) = factor;
}

/// A block's part of the results, or all of them where there is one block.
template <class Out, class T>
WEIGHTED_BCE_DEVICE void leave_part(const Problem& problem, double total, const T& factor) {
  const double sum = sum_of_block(total);
  if (thread() != 0) return;
  if (blocks() == 1) return write_results<Out>(problem, sum, factor);
  problem.sums[block()] = sum;
  static_cast<T*>(problem.factors)[block()] = factor;
}

/// What a block finds out before it starts, in shared memory.
template <class T>
struct Found {
  T factor;
  Scale<T> scale;  // what the gradient is multiplied by
};

template <class T>
WEIGHTED_BCE_DEVICE T factor_of(const Problem& problem) {
  return problem.factor ? read_scalar<T>(problem.factor) : T(1);
}

/// Whether the forward pass has guessed right, so that nothing is to be done.
template <class T>
WEIGHTED_BCE_DEVICE bool guessed_right(const Problem& problem) {
  return problem.guessed != nullptr && read_scalar<T>(problem.guessed) == factor_of<T>(problem);
}

struct Nothing {
  template <class... Arguments>
  WEIGHTED_BCE_DEVICE void operator()(Arguments&&...) const {}
};

/// Reads the factor, while others prepare what they have in shared memory. False where nothing is
/// to be done.
template <class T, Mode kMode, class Prepare = Nothing>
WEIGHTED_BCE_DEVICE bool start(const Problem& problem, Found<T>& shared,
                               const Prepare& prepare = {}) {
  if (kMode == Mode::kGrad && guessed_right<T>(problem)) return false;
  prepare();
  if (thread() == 0) {
    shared.factor = factor_of<T>(problem);
    shared.scale = kHasSlopes<kMode> ? scale_of(problem, shared.factor) : Scale<T>{1, 0};
  }
  barrier();
  return true;
}

/// Computes `left` groups of this thread, at element i and every `step` from there, with the next
/// kAhead on their way. All threads of a block call before(group, i, left) ahead of each; a thread
/// that `idles` has no last group.
template <class T, class Work, class Before = Nothing>
WEIGHTED_BCE_DEVICE void compute_groups(Work& work, typename Work::Shared& shared, int64_t i,
                                        int64_t step, int left, bool idles = false,
                                        const Before& before = {}) {
  auto stream = work.stream(shared, i, step);
#pragma unroll
  for (int k = 0; k < kAhead; ++k) stream.load(k + idles < left);
  int factors = 0;
  for (; left > 0; --left, i += step) {
    stream.load(left - idles > kAhead);
    typename Work::Group group;
    before(group, i, left);
    stream.wait();
    if (left > idles) {
      stream.take(group);
      work.compute(group, i);
    }
    factors += Work::kLanes;
    if (factors == Product<T>::kFactors) {
      work.collect();
      factors = 0;
    }
  }
  work.collect();
}

/// The blocks of `on_vectors` that a multiprocessor has registers for. One with 100 KiB of shared
/// memory may hold one less.
template <class X, Mode kMode>
constexpr int kResident = kHasSlopes<kMode> && sizeof(X) == 2 ? 3 : 4;

/// Logits, targets and output that are lines, aligned as takes_vectors() says.
template <class X, int kTargetBytes, Mode kMode>
WEIGHTED_BCE_KERNEL((kResident<X, kMode>))
on_vectors(const WEIGHTED_BCE_PARAMETER Problem problem) {
  using T = typename Arithmetic<X>::T;
  using Work = VectorWorker<X, kTargetBytes, kMode>;
  constexpr int kLanes = Work::kLanes;
  WEIGHTED_BCE_SHARED Found<T> shared;
  WEIGHTED_BCE_SHARED typename Work::Shared shared_groups;
  if (!start<T, kMode>(problem, shared)) return;
  Work work(problem, shared.scale);

  const int64_t step = int64_t{kThreads} * blocks(), groups = problem.numel / kLanes;
  const int64_t first = int64_t{kThreads} * block() + thread();
  // Of this thread: all that a block of kMostBlocks cannot do in 2^31 rounds fits into no memory.
  const int left = first < groups ? static_cast<int>((groups - first + step - 1) / step) : 0;
  compute_groups<T>(work, shared_groups, first * kLanes, step * kLanes, left);
  // What fills no group.
  const int64_t rest = groups * kLanes + thread();
  if (block() == 0 && rest < problem.numel) {
    work.element(rest);
    work.collect();
  }
  if constexpr (kAddsUp<kMode>) {
    leave_part<T>(problem, work.total(), shared.factor);
  }
}

/// Any layout, an element at a time.
template <class X, Mode kMode>
WEIGHTED_BCE_KERNEL(4)
on_elements(const WEIGHTED_BCE_PARAMETER Problem problem) {
  using T = typename Arithmetic<X>::T;
  WEIGHTED_BCE_SHARED Found<T> shared;
  if (!start<T, kMode>(problem, shared)) return;
  Worker<X, kMode> work(problem, shared.scale);
  const int64_t step = int64_t{kThreads} * blocks();
#pragma unroll 4
  for (int64_t i = int64_t{kThreads} * block() + thread(); i < problem.numel; i += step) {
    work.element(i);
    work.collect();
  }
  if constexpr (kAddsUp<kMode>) {
    leave_part<T>(problem, work.total(), shared.factor);
  }
}

/// The number of targets that are not ignored, as a double: `loss` receives it.
template <class T>
WEIGHTED_BCE_KERNEL(4)
count_targets(const WEIGHTED_BCE_PARAMETER Problem problem) {
  if (guessed_right<T>(problem)) return;
  const T ignore_index = numbers_of<T>(problem).ignore_index;
  const int64_t step = int64_t{kThreads} * blocks();
  int64_t kept = 0;
#pragma unroll 4
  for (int64_t i = int64_t{kThreads} * block() + thread(); i < problem.numel; i += step) {
    const int64_t offset = offset_of(problem, problem.y, i);
    const T y = decoded<T>(load_element(problem.y, offset), problem.y.dtype);
    kept += !is_mark(y, ignore_index);
  }
  leave_part<double>(problem, static_cast<double>(kept), T(1));
}

/// Adds up what the blocks of another kernel left. One block.
template <class Out, class T>
WEIGHTED_BCE_KERNEL(1)
finish(const WEIGHTED_BCE_PARAMETER Problem problem, int parts) {
  if (guessed_right<T>(problem)) return;
  const T* const factors = static_cast<const T*>(problem.factors);
  double sum = 0, differ = 0;
  for (int k = thread(); k < parts; k += kThreads) {
    sum += problem.sums[k];
    differ += !(factors[k] == factors[0]);
  }
  sum = sum_of_block(sum);
  barrier();  // before the shared memory is used again
  differ = sum_of_block(differ);
  if (thread() != 0) return;
  // A learned factor that another stream changes meanwhile is no guess of a right gradient.
  const T nan = from_bits(static_cast<typename Scalar<T>::Bits>(~typename Scalar<T>::Bits{0}));
  const T found = parts > 0 ? factors[0] : factor_of<T>(problem);
  write_results<Out>(problem, sum, differ > 0 ? nan : found);
}

/// After the backward pass that follows a guess: the gradient carries the factor now, and the next
/// forward pass guesses it. A kernel of its own, since each block of that pass compares with the
/// guess. One thread is enough.
template <class T>
WEIGHTED_BCE_KERNEL(1)
learn(const WEIGHTED_BCE_PARAMETER Problem problem) {
  if (thread() != 0) return;
  const T factor = factor_of<T>(problem);
  *static_cast<T*>(problem.guessed) = factor;
  // 0 has two signs, and needs no gradient in advance.
  if (factor != 0) *static_cast<T*>(problem.learned) = factor;
}

}  // namespace weighted_bce::cuda
