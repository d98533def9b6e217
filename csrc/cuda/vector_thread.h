// Computes the elements of one thread, 16 bytes of logits at a time.
//
// Targets of exactly 0 or 1, hard ones, whose coefficients the call shares, need neither the other
// term nor a logarithm of their own: the logarithms go into products (thread_math.h). All others
// take the general way.
#pragma once

#include "cuda/prefetch.h"
#include "cuda/thread.h"

namespace weighted_bce::cuda {

/// A VectorThread computes groups of elements, where logits, targets and output are contiguous.
/// Sparse targets are set as bytes of 0 and 1 before compute().
template <class Losses, class X, Targets kTargets, Mode kMode>
class VectorThread : public Thread<Losses, X, kTargets, kMode> {
  using Base = Thread<Losses, X, kTargets, kMode>;
  using Base::constants_;
  using Base::problem_;
  using Base::shared_;
  using Base::sum_;
  using typename Base::S;
  using typename Base::T;

  /// The code for a group of any targets is long for several losses: where most groups take the
  /// fast path, the others are computed element by element.
  static constexpr bool kHasGeneralGroup = !Losses::kChooses || kMode == Mode::kUnreduced;

  const uint64_t one_;                // the bits of a hard positive
  Product<T> negatives_, positives_;  // logarithms that have a coefficient in common

 public:
  static constexpr int kLanes = 16 / sizeof(X);
  static constexpr int kUncollected = Product<T>::kFactors;  // elements

  using Prefetcher = cuda::Prefetcher<X, kTargets == Targets::kBytes>;
  using Group = typename Prefetcher::Group;

  WEIGHTED_BCE_DEVICE VectorThread(const Problem& problem, const BlockConstants<T>& shared)
      : Base(problem, shared), one_(bits_of_one(problem.y.dtype)) {}

  WEIGHTED_BCE_DEVICE void compute(Group& group, int64_t i) {
    if (kMode != Mode::kUnreduced && shared_.hard_fast_path && prepare_hard(group.targets, i)) {
      Base::with_loss([&](auto loss) {
        if constexpr (Losses::kChooses) {
          hard_group(loss, group, i, shared_.own_p);
        } else if (kTargets == Targets::kSparse && !any(group.targets)) {
          negative_group(loss, group, i);
        } else if (shared_.own_p) {  // constants give two versions of the code
          hard_group(loss, group, i, true);
        } else {
          hard_group(loss, group, i, false);
        }
      });
    } else if (kHasGeneralGroup && within_row(i)) {
      Base::with_loss([&](auto loss) { general_group(loss, group, i); });
    } else {
      const uint32_t positives = kTargets == Targets::kSparse ? positives_of(group) : 0;
#pragma unroll 1
      for (int j = 0; j < kLanes; ++j) Base::element(i + j, positives >> j & 1);
    }
  }

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

 private:
  WEIGHTED_BCE_DEVICE void write(const T (&results)[kLanes], int64_t i) const {
    if constexpr (kMode != Mode::kLoss) {
      X* const out = static_cast<X*>(const_cast<void*>(problem_.out.data));
      store<16>(out + i, narrowed<X>(results).words);
    }
  }

  static WEIGHTED_BCE_DEVICE bool any(const Bits<kLanes>& targets) {
    uint32_t all = 0;
#pragma unroll
    for (const uint32_t word : targets.words) all |= word;
    return all != 0;
  }

  /// Returns a bit for each lane whose target byte is 1.
  static WEIGHTED_BCE_DEVICE uint32_t positives_of(const Group& group) {
    uint32_t positives = 0;
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      positives |= static_cast<uint32_t>(group.targets.template element<1>(j)) << j;
    }
    return positives;
  }

  /// Does what hard_group does where all targets are 0, as most are with sparse labels.
  template <class Terms>
  WEIGHTED_BCE_DEVICE void negative_group(const Chosen<Terms>& loss, const Group& group,
                                          int64_t i) {
    T results[kLanes];
#pragma unroll
    for (int j = 0; j < kLanes; ++j)
      results[j] = hard(loss, widened<X>(group.logits, j), false, false);
    write(results, i);
  }

  template <class Terms>
  WEIGHTED_BCE_DEVICE void hard_group(const Chosen<Terms>& loss, const Group& group, int64_t i,
                                      bool own_p) {
    T results[kLanes];
    uint32_t positives = 0;
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      const auto y = static_cast<uint32_t>(group.targets.template element<1>(j));
      results[j] = hard(loss, widened<X>(group.logits, j), y != 0, own_p);
      positives |= y << j;
    }
    if (own_p) take_positives(loss, group, positives, i, results);
    write(results, i);
  }

  /// Computes an element with a hard target. A positive that has its own pos_weight is left to
  /// take_positives.
  template <class Terms>
  WEIGHTED_BCE_DEVICE T hard(const Chosen<Terms>& loss, T x, bool positive, bool own_p) {
    const Term<T> term =
        Terms::hard(x, positive, {shared_.positive_factor, shared_.scale.high}, loss.parameters);
    if constexpr (kSums<kMode>) {
      if constexpr (Terms::kHasLogarithm) {
        if (!positive) {
          negatives_.times_one_plus(term.logarithm);
        } else if (!own_p) {
          positives_.times_one_plus(term.logarithm);
        }
      }
      if (!own_p || !positive) {
        sum_ = Terms::add_rest(sum_, x, positive, {shared_.pos_weight, T(1)}, term);
      }
    }
    return term.slope;
  }

  /// Computes the positives of a group one by one: they are few. Registers have no index at run
  /// time.
  template <class Terms>
  WEIGHTED_BCE_DEVICE void take_positives(const Chosen<Terms>& loss, const Group& group,
                                          uint32_t lanes, int64_t i, T (&results)[kLanes]) {
#pragma unroll 1
    for (; lanes != 0; lanes &= lanes - 1) {
      const int lane = lowest_bit(lanes);
      T x = 0;
#pragma unroll
      for (int j = 0; j < kLanes; ++j) x = j == lane ? widened<X>(group.logits, j) : x;
      T p = shared_.pos_weight;
      if (problem_.p.form > Form::kUniform) p = factor_at<X, T>(problem_, problem_.p, i + lane);
      const T result = Base::general(loss, x, T(1), T(1), p, T(1));
#pragma unroll
      for (int j = 0; j < kLanes; ++j) results[j] = j == lane ? result : results[j];
    }
  }

  template <class Terms>
  WEIGHTED_BCE_DEVICE void general_group(const Chosen<Terms>& loss, const Group& group, int64_t i) {
    T y[kLanes], w[kLanes], p[kLanes], grad_output[kLanes], results[kLanes];
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      w[j] = constants_.weight;
      p[j] = shared_.pos_weight;
      grad_output[j] = 1;
    }
    read_targets(group.targets, i, y);
    if (problem_.w.data != nullptr) read_factors<X>(problem_, problem_.w, i, w);
    if (problem_.p.form > Form::kUniform) read_factors<X>(problem_, problem_.p, i, p);
    if (Base::has_own_grad_output()) {
      read_factors<X>(problem_, problem_.grad_output, i, grad_output);
    }
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      results[j] =
          Base::general(loss, widened<X>(group.logits, j), y[j], w[j], p[j], grad_output[j]);
    }
    write(results, i);
  }

  /// Tells whether the factors of the elements lie evenly spaced.
  WEIGHTED_BCE_DEVICE bool within_row(int64_t i) const {
    if (problem_.dims == 1) return true;
    const int d = problem_.dims - 1;
    const int64_t row = quotient(i, problem_.dividers[d]);
    return i - row * problem_.sizes[d] + kLanes <= problem_.sizes[d];
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

  WEIGHTED_BCE_DEVICE void read_targets(const Bits<kLanes>& targets, int64_t i,
                                        T (&y)[kLanes]) const {
    if constexpr (kTargets != Targets::kAnySize) {
      decode<1>(targets, y);
    } else {
      with_size([&](auto size) {
        constexpr int kSize = decltype(size)::value;
        decode<kSize>(load_targets<kSize>(i), y);
      });
    }
  }
  template <int kSize>
  WEIGHTED_BCE_DEVICE void decode(const Bits<kLanes * kSize>& run, T (&y)[kLanes]) const {
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      y[j] = decoded<T, kSize>(run.template element<kSize>(j), problem_.y.dtype);
    }
  }
};

}  // namespace weighted_bce::cuda
