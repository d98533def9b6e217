// Computes a group of elements in pairs: for long terms of several losses, whose code would be too
// long, and need too many registers, for all of the group at once.
#pragma once

#include "cuda/group_thread.h"

namespace weighted_bce::cuda {

template <class Losses, class X, Targets kTargets, Mode kMode>
class PairwiseThread : public GroupThread<Losses, X, kTargets, kMode> {
  using Base = GroupThread<Losses, X, kTargets, kMode>;
  using Base::shared_;
  using typename Base::T;

 public:
  using Base::Base;
  using Base::kLanes;
  using typename Base::Group;

  /// The results take the places of the logits in shared memory until all of the group are there.
  WEIGHTED_BCE_DEVICE void compute(Group& group, int64_t i) {
    const bool hard =
        kMode != Mode::kUnreduced && shared_.hard_fast_path && Base::prepare_hard(group.targets, i);
    uint32_t positives = 0, left = (1u << kLanes) - 1;  // a bit for each lane
    if (hard || kTargets == Targets::kSparse) positives = Base::positives_of(group.targets);
    if (hard) {
      left = Base::with_loss([&](auto loss) { return hard_group(loss, group.logits, positives); });
    }
#pragma unroll 1
    for (; left != 0; left &= left - 1) {
      const int j = lowest_bit(left);
      const Factors<T> factors = Base::factors_at(i + j, i + j, positives >> j & 1);
      compute<1>(group.logits, j, [&](int, T x) { return Base::general(x, factors); });
    }
    if constexpr (kMode != Mode::kLoss) {
      Bits<16> results;
      load_copy<16>(group.logits, results.words);
      store<16>(Base::out() + i, results.words);
    }
  }

 private:
  /// Computes all lanes but those that are left to general(): the positives where each has its own
  /// pos_weight, or a term that is not that of a negative. They are few.
  template <class Terms>
  WEIGHTED_BCE_DEVICE uint32_t hard_group(const Chosen<Terms>& loss, SharedAddress logits,
                                          uint32_t positives) {
    const uint32_t left = Terms::kIsMirrored && !shared_.own_p ? 0 : positives;
#pragma unroll 1
    for (int j = 0; j < kLanes; j += 2) {
      compute<2>(logits, j, [&](int k, T x) {
        const bool positive = Terms::kIsMirrored && (positives >> k & 1) != 0;
        const bool counts = (left >> k & 1) == 0;
        const T result = Base::hard(loss, x, positive, counts);
        return counts ? result : x;
      });
    }
    return left;
  }

  /// Replaces the logits of kCount lanes from j on by what run(lane, logit) returns.
  template <int kCount, class Run>
  WEIGHTED_BCE_DEVICE void compute(SharedAddress logits, int j, const Run& run) {
    constexpr int kBytes = kCount * sizeof(X);
    const SharedAddress at = logits + j * static_cast<int>(sizeof(X));
    Bits<kBytes> in;
    load_copy<kBytes>(at, in.words);
    T results[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) results[k] = run(j + k, widened<X>(in, k));
    if constexpr (kMode != Mode::kLoss) store_copy<kBytes>(at, narrowed<X>(results).words);
  }
};

}  // namespace weighted_bce::cuda
