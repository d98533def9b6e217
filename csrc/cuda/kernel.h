// The CUDA kernels compute loss and gradient in one pass over the logits. A thread sums its losses;
// a block adds up its threads and stores the sum in device memory, where `finish` adds all in a
// fixed order. The work of a thread is in thread.h, unrolled_thread.h and pairwise_thread.h.
//
// This is included after intrinsics.h, or after what takes its place on the host.
#pragma once

#include "cuda/pairwise_thread.h"
#include "cuda/unrolled_thread.h"

namespace weighted_bce::cuda {

/// Returns the sum over all threads of a block to thread 0, in the same order on each run.
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

/// Stores the sum of a block, or the result where there is one block. All threads call it.
template <class Out>
WEIGHTED_BCE_DEVICE void store_block_sum(const Problem& problem, const Workspace& workspace,
                                         double total) {
  const double sum = sum_of_block(total);
  if (thread() != 0) return;
  if (blocks() == 1) {
    *static_cast<Out*>(workspace.loss) = static_cast<Out>(divided(problem, workspace, sum));
  } else {
    workspace.sums[block()] = sum;
  }
}

/// Tells whether problem.out was made with this grad_output already, so that nothing is to be done.
template <class T>
WEIGHTED_BCE_DEVICE bool matches_used(const Problem& problem, const Workspace& workspace) {
  return workspace.expected != nullptr &&
         *static_cast<const T*>(workspace.used) == *static_cast<const T*>(problem.grad_output.data);
}

/// Computes what the threads of a block share, before a barrier. Returns false where nothing is to
/// be done.
template <class X, Mode kMode, class T, class Source>
WEIGHTED_BCE_DEVICE bool start(const Problem& problem, const Workspace& workspace,
                               BlockConstants<T> (&copies)[kCopies<kMode>], Source& targets,
                               const Share& share) {
  if (kMode == Mode::kGrad && matches_used<T>(problem, workspace)) return false;
  targets.prepare(share);
  if (thread() == 0) {
    BlockConstants<T>& shared = copies[0];
    shared.pos_weight = problem.p.form == Form::kUniform ? factor_at<X, T>(problem, problem.p, 0)
                                                         : constants_of<T>(problem).pos_weight;
    shared.hard_fast_path = problem.hard_fast_path;
    shared.own_p = problem.p.form > Form::kUniform || !multiplies_sums(shared.pos_weight);
    if constexpr (kHasGrad<kMode>) {
      T grad_output = 1;
      if (problem.grad_output.form == Form::kUniform) {
        grad_output = factor_at<X, T>(problem, problem.grad_output, 0);
      }
      const Pair<T> scale = split<T>(divided(problem, workspace, static_cast<double>(grad_output)));
      shared.scale = scale;
      shared.positive_factor = -scaled<Scalar<T>>(shared.pos_weight, scale.high, scale.low);
      if (kMode == Mode::kLossAndGrad && blocks() == 1) {
        *static_cast<T*>(workspace.used) = grad_output;
      }
    }
    for (int k = 1; k < kCopies<kMode>; ++k) copies[k] = shared;
  }
  barrier();
  return true;
}

/// Computes the groups of this thread, with the next kAhead on their way.
template <class Work, class Source>
WEIGHTED_BCE_DEVICE void compute_groups(Work& work, typename Work::Prefetcher prefetcher,
                                        Source& targets, const Share& share) {
  // i grows at that place in the loop where the compiler needs no copy of it.
  constexpr bool kEarly = !Source::kStepIsConstant;
  int64_t i = kEarly ? share.first - share.step : share.first;
  int left = share.count;
#pragma unroll
  for (int k = 0; k < kAhead; ++k) prefetcher.load(k + share.missing < left);
  int factors = 0;
  for (; left > 0; --left, i += kEarly ? 0 : share.step) {
    if (kEarly) i += share.step;
    prefetcher.load(left - share.missing > kAhead);
    typename Work::Group group;
    targets.set(group.targets, i, left);
    prefetcher.wait();
    if (left > share.missing) {
      prefetcher.take(group);
      work.compute(group, i);
    }
    factors += Work::kLanes;
    if (factors == Work::kUncollected) {
      work.collect();
      factors = 0;
    }
  }
  work.collect();
}

/// A multiprocessor has registers for so many blocks of `on_vectors`. One with 100 KiB of shared
/// memory may hold one less. The loss alone gets no more blocks than the loss with its gradient
/// (see choose_kernel), so that with sparse targets it may have as many registers. Several
/// losses need more of them.
template <class Losses, class X, Targets kTargets, Mode kMode>
constexpr int kResident =
    Losses::kChooses || (sizeof(X) == 2 && (kHasGrad<kMode> ||
                                            (kTargets == Targets::kSparse && kMode == Mode::kLoss)))
        ? 3
        : 4;

/// Takes logits, targets and output that are contiguous and aligned as takes_vectors() says.
template <class Losses, class X, Targets kTargets, Mode kMode>
WEIGHTED_BCE_KERNEL((kResident<Losses, X, kTargets, kMode>))
on_vectors(const WEIGHTED_BCE_PARAMETER Problem problem,
           const WEIGHTED_BCE_PARAMETER Workspace workspace) {
  using T = typename Arithmetic<X>::T;
  using Work = std::conditional_t<Losses::kChooses, PairwiseThread<Losses, X, kTargets, kMode>,
                                  UnrolledThread<Losses, X, kTargets, kMode>>;
  constexpr int kLanes = Work::kLanes;
  using Source = TargetsOf<kTargets, kLanes>;
  WEIGHTED_BCE_SHARED BlockConstants<T> copies[kCopies<kMode>];
  WEIGHTED_BCE_SHARED typename Work::Prefetcher::Shared shared_groups;
  WEIGHTED_BCE_SHARED typename Source::Shared shared_targets;
  Source targets(problem, shared_targets);
  const int64_t groups = problem.numel / kLanes;
  const Share share = targets.share_of(groups);
  if (!start<X, kMode>(problem, workspace, copies, targets, share)) return;

  Work work(problem, copies[thread() % kCopies<kMode>]);
  compute_groups(work, {problem, shared_groups, share.first, share.step}, targets, share);
  // Some elements at the end may fill no group.
  const int64_t rest = groups * kLanes + thread();
  if (block() == 0 && rest < problem.numel) {
    work.element(rest, targets.is_positive(rest));
    work.collect();
  }
  if constexpr (kSums<kMode>) store_block_sum<T>(problem, workspace, work.total());
}

/// Takes any layout, an element at a time.
template <class Losses, class X, Targets kTargets, Mode kMode>
WEIGHTED_BCE_KERNEL(!Losses::kChooses ? 4
                    : sizeof(X) < 8   ? 3
                                      : 2)
on_elements(const WEIGHTED_BCE_PARAMETER Problem problem,
            const WEIGHTED_BCE_PARAMETER Workspace workspace) {
  using T = typename Arithmetic<X>::T;
  using Source = TargetsOf<kTargets, 1>;
  WEIGHTED_BCE_SHARED BlockConstants<T> copies[kCopies<kMode>];
  WEIGHTED_BCE_SHARED typename Source::Shared shared_targets;
  Source targets(problem, shared_targets);
  const Share share = targets.share_of(problem.numel);
  if (!start<X, kMode>(problem, workspace, copies, targets, share)) return;

  Thread<Losses, X, kTargets, kMode> work(problem, copies[thread() % kCopies<kMode>]);
  // Loads that do not wait for one another pay where terms are short.
  [[maybe_unused]] constexpr int kUnrolled =
      kTargets != Targets::kSparse && !Losses::kChooses ? 4 : 1;
  int64_t i = share.first;
#pragma unroll(kUnrolled)
  for (int left = share.count; left > 0; --left, i += share.step) {
    Bits<1> target;
    targets.set(target, i, left);
    if (left > share.missing) work.element(i, target.words[0] != 0);
    work.collect();
  }
  if constexpr (kSums<kMode>) store_block_sum<T>(problem, workspace, work.total());
}

/// Computes the number of targets that are not ignored, as a double.
template <class T>
WEIGHTED_BCE_KERNEL(4)
count_targets(const WEIGHTED_BCE_PARAMETER Problem problem,
              const WEIGHTED_BCE_PARAMETER Workspace workspace) {
  if (matches_used<T>(problem, workspace)) return;
  const T ignore_index = constants_of<T>(problem).ignore_index;
  const int64_t step = int64_t{kThreads} * blocks();
  int64_t count = 0;
#pragma unroll 4
  for (int64_t i = int64_t{kThreads} * block() + thread(); i < problem.numel; i += step) {
    const int64_t offset = offset_of(problem, problem.y, i);
    const T y = decoded<T>(load_element(problem.y, offset), problem.y.dtype);
    count += !is_ignored(y, ignore_index);
  }
  store_block_sum<double>(problem, workspace, static_cast<double>(count));
}

/// Computes the same for sparse targets, where ignore_index is 0 or 1.
template <class T>
WEIGHTED_BCE_KERNEL(4)
count_sparse_targets(const WEIGHTED_BCE_PARAMETER Problem problem,
                     const WEIGHTED_BCE_PARAMETER Workspace workspace) {
  if (matches_used<T>(problem, workspace)) return;
  const Csr& csr = problem.csr;
  const bool counts_positives = constants_of<T>(problem).ignore_index == 0;
  const int64_t step = int64_t{kThreads} * blocks();
  int64_t count = 0;
  for (int64_t row = int64_t{kThreads} * block() + thread(); row < csr.num_rows; row += step) {
    const int64_t begin = start_of_row(csr, row), end = start_of_row(csr, row + 1);
    const int64_t first = lower_bound(csr, begin, end, csr.first_label);
    const int64_t positives =
        lower_bound(csr, first, end, csr.first_label + csr.num_labels) - first;
    count += counts_positives ? positives : csr.num_labels - positives;
  }
  store_block_sum<double>(problem, workspace, static_cast<double>(count));
}

/// Adds up what the blocks of another kernel have stored. It is one block.
template <class Out, class T>
WEIGHTED_BCE_KERNEL(1)
finish(const WEIGHTED_BCE_PARAMETER Problem problem,
       const WEIGHTED_BCE_PARAMETER Workspace workspace, int parts) {
  if (matches_used<T>(problem, workspace)) return;
  double sum = 0;
  for (int k = thread(); k < parts; k += kThreads) sum += workspace.sums[k];
  store_block_sum<Out>(problem, workspace, sum);
}

/// Ends a backward pass with an expected grad_output: problem.out is made with grad_output now, and
/// the next forward pass expects it. It is a kernel of its own, of one thread, since each block of
/// that pass compares with `used`.
template <class T>
WEIGHTED_BCE_KERNEL(1)
remember_grad_output(const WEIGHTED_BCE_PARAMETER Problem problem,
                     const WEIGHTED_BCE_PARAMETER Workspace workspace) {
  if (thread() != 0) return;
  const T grad_output = *static_cast<const T*>(problem.grad_output.data);
  *static_cast<T*>(workspace.used) = grad_output;
  // 0 has two signs, and needs no gradient in advance.
  if (grad_output != 0) *static_cast<T*>(workspace.expected) = grad_output;
}

/// Tells whether logits, targets and output are contiguous and start where a vector of 16 bytes of
/// logits may. Wider vectors bring nothing to float64, whose elements fill whole sectors of memory.
inline bool takes_vectors(const Problem& problem) {
  const auto aligned = [](const Operand& o, int64_t bytes) {
    return o.form == Form::kAbsent ||
           (o.form == Form::kContiguous && reinterpret_cast<uintptr_t>(o.data) % bytes == 0);
  };
  const int64_t size = problem.x.element_size, targets = 16 / size * problem.y.element_size;
  return size < 8 && aligned(problem.x, 16) && aligned(problem.out, 16) &&
         aligned(problem.y, targets < 16 ? targets : 16);
}

/// Calls start.run<kernel, sized_by>(elements) for these losses: `elements` is what a block takes
/// at a time, and `kernel` gets as many blocks as `sized_by` could have. So the loss alone is
/// summed by as many blocks as the loss with its gradient, and has the same bits.
template <class Losses, class X, Mode kMode, class Start>
void choose_kernel_for(const Problem& problem, bool vectors, const Start& start) {
  constexpr Mode kSizedBy = kMode == Mode::kLoss ? Mode::kLossAndGrad : kMode;
  const auto run = [&](auto targets) {
    constexpr Targets kTargets = decltype(targets)::value;
    if constexpr (sizeof(X) < 8) {
      if (vectors) {
        return start.template run<on_vectors<Losses, X, kTargets, kMode>,
                                  on_vectors<Losses, X, kTargets, kSizedBy>>(kThreads * 16 /
                                                                             sizeof(X));
      }
    }
    if constexpr (kTargets != Targets::kBytes) {
      start.template run<on_elements<Losses, X, kTargets, kMode>,
                         on_elements<Losses, X, kTargets, kSizedBy>>(kThreads);
    }
  };
  if (problem.csr.crow_indices != nullptr) {
    run(std::integral_constant<Targets, Targets::kSparse>());
  } else if (vectors && problem.y.element_size == 1) {
    run(std::integral_constant<Targets, Targets::kBytes>());
  } else {
    run(std::integral_constant<Targets, Targets::kAnySize>());
  }
}
template <class X, Mode kMode, class Start>
void choose_kernel(const Problem& problem, bool vectors, const Start& start) {
  if (problem.loss == Loss::kBce) {
    choose_kernel_for<BceAlone, X, kMode>(problem, vectors, start);
  } else {
    choose_kernel_for<AllOthers, X, kMode>(problem, vectors, start);
  }
}

}  // namespace weighted_bce::cuda
