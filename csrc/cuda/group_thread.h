// What threads share that compute 16 bytes of logits at a time.
//
// Targets of exactly 0 or 1, hard ones, whose coefficients the call shares, need neither the other
// term nor a logarithm of their own: the logarithms go into products (thread_math.h). All others
// take the general way.
#pragma once

#include "cuda/prefetch.h"
#include "cuda/thread.h"

namespace weighted_bce::cuda {

/// A GroupThread has groups of elements, where logits, targets and output are contiguous. Sparse
/// targets are set as bytes of 0 and 1.
template <class Losses, class X, Targets kTargets, Mode kMode>
class GroupThread : public Thread<Losses, X, kTargets, kMode> {
 protected:
  using Base = Thread<Losses, X, kTargets, kMode>;
  using Base::problem_;
  using Base::shared_;
  using Base::sum_;
  using typename Base::S;
  using typename Base::T;

 private:
  const uint64_t one_;                // the bits of a hard positive
  Product<T> negatives_, positives_;  // logarithms that have a coefficient in common

 public:
  static constexpr int kLanes = 16 / sizeof(X);
  static constexpr int kUncollected = Product<T>::kFactors;  // elements

  using Prefetcher = cuda::Prefetcher<X, kTargets == Targets::kBytes>;
  using Group = typename Prefetcher::Group;

  WEIGHTED_BCE_DEVICE GroupThread(const Problem& problem, const BlockConstants<T>& shared)
      : Base(problem, shared), one_(bits_of_one(problem.y.dtype)) {}

  /// Callers do this after at most kUncollected elements.
  WEIGHTED_BCE_DEVICE void collect() {
    if constexpr (kSums<kMode>) {
      sum_ += log1p<S>(negatives_.value);
      const T of_positives = log1p<S>(positives_.value);
      if (shared_.hard_fast_path && !shared_.own_p) {
        sum_ = S::fma(shared_.pos_weight, of_positives, sum_);
      }
      negatives_.value = 0;
      positives_.value = 0;
    }
    Base::collect();
  }

 protected:
  WEIGHTED_BCE_DEVICE X* out() const {
    return static_cast<X*>(const_cast<void*>(problem_.out.data));
  }

  /// Computes an element with a hard target. Its loss is added to the sums where it `counts`.
  template <class Terms>
  WEIGHTED_BCE_DEVICE T hard(const Chosen<Terms>& loss, T x, bool positive, bool counts) {
    const Term<T> term =
        Terms::hard(x, positive, {shared_.positive_factor, shared_.scale.high}, loss.parameters);
    if constexpr (kSums<kMode>) {
      if constexpr (Terms::kHasLogarithm) {
        if (!positive) {
          if (counts) negatives_.times_one_plus(term.logarithm);
        } else if (counts) {
          positives_.times_one_plus(term.logarithm);
        }
      }
      if (counts) {
        sum_ = Terms::add_rest(sum_, x, positive, {shared_.pos_weight, T(1)}, term);
      }
    }
    return term.slope;
  }

  /// Returns a bit for each lane whose target byte is 1.
  static WEIGHTED_BCE_DEVICE uint32_t positives_of(const Bits<kLanes>& targets) {
    uint32_t positives = 0;
#pragma unroll
    for (int j = 0; j < kLanes; j += 4) {
      positives |= targets.words[j / 4] * 0x01020408u >> 24 << j;
    }
    return positives;
  }

  /// Calls run(size) with the bytes of a target as a type.
  template <class Run>
  WEIGHTED_BCE_DEVICE auto with_size(const Run& run) const {
    switch (problem_.y.element_size) {
      case 2: return run(std::integral_constant<int, 2>());
      case 4: return run(std::integral_constant<int, 4>());
      default: return run(std::integral_constant<int, 8>());
    }
  }
  template <int kSize>
  WEIGHTED_BCE_DEVICE Bits<kLanes * kSize> load_targets(int64_t i) const {
    Bits<kLanes * kSize> run;
    load<kLanes * kSize>(static_cast<const char*>(problem_.y.data) + i * kSize, run.words);
    return run;
  }

  /// Tells whether all targets are 0 or 1; then `targets` holds a byte of 0 or 1 for each.
  WEIGHTED_BCE_DEVICE bool prepare_hard(Bits<kLanes>& targets, int64_t i) const {
    if constexpr (kTargets == Targets::kSparse) {
      return true;
    } else if constexpr (kTargets == Targets::kBytes) {
      uint32_t others = 0;
#pragma unroll
      for (const uint32_t word : targets.words) others |= word & ~0x01010101u;
      return others == 0;
    } else {
      return with_size([&](auto size) {
        constexpr int kSize = decltype(size)::value;
        const auto run = load_targets<kSize>(i);
        targets = {};
        uint64_t others = 0;
#pragma unroll
        for (int j = 0; j < kLanes; ++j) {
          const uint64_t bits = run.template element<kSize>(j);
          const bool one = bits == one_;
          targets.template set_element<1>(j, one);
          others |= one ? 0 : bits;
        }
        return others == 0;
      });
    }
  }
};

}  // namespace weighted_bce::cuda
