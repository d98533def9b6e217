// What one thread does with 16 bytes of logits at a time.
//
// A target of exactly 0 or 1, a hard one, makes an element a negative of x, or a positive: a
// negative of -x with its own weight. Their log1p terms go into products (scalar.h), so that a hard
// element takes two special-function instructions. All others take the general way.
#pragma once

#include "cuda/stream.h"
#include "cuda/worker.h"

namespace weighted_bce::cuda {

/// Worker on groups of elements, where logits, targets and output are lines.
/// kTargetBytes is 1, or 0 for larger targets; or kSparse: the targets are then set as bytes of 0
/// and 1 before compute().
template <class X, int kTargetBytes, Mode kMode>
class VectorWorker : public Worker<X, kMode> {
  using Base = Worker<X, kMode>;
  using Base::kSlopes;
  using Base::kSums;
  using Base::problem_;
  using Base::sum_;
  using Base::u_;
  using typename Base::Formula;
  using typename Base::S;
  using typename Base::T;

  Product<T> negatives_, positives_;  // log1p terms that have a weight in common

 public:
  static constexpr int kLanes = 16 / sizeof(X);

  using Stream = cuda::Stream<X, kTargetBytes>;
  using Group = typename Stream::Group;
  using Shared = typename Stream::Shared;

  using Base::Base;

  /// The groups at element i and every `step` from there.
  WEIGHTED_BCE_DEVICE Stream stream(Shared& shared, int64_t i, int64_t step) const {
    return Stream(problem_, shared, i, step);
  }

  WEIGHTED_BCE_DEVICE void compute(Group& group, int64_t i) {
    if (kMode != Mode::kUnreduced && u_.has_hard && prepare_hard(group.targets, i)) {
      if (kTargetBytes == kSparse && !any(group.targets)) {
        negative_group(group, i);
      } else {
        u_.p_varies ? hard_group<true>(group, i) : hard_group<false>(group, i);
      }
    } else if (within_row(i)) {
      general_group(group, i);
    } else if constexpr (kTargetBytes == kSparse) {
      const uint32_t positives = positives_of(group);
#pragma unroll 1
      for (int j = 0; j < kLanes; ++j) Base::template element<true>(i + j, positives >> j & 1);
    } else {
#pragma unroll 1
      for (int j = 0; j < kLanes; ++j) Base::element(i + j);
    }
  }

  /// To be called after at most Product::kFactors elements.
  WEIGHTED_BCE_DEVICE void collect() {
    if constexpr (kSums) {
      sum_ += log1p_of_product(negatives_.value);
      const T of_positives = log1p_of_product(positives_.value);
      if (u_.has_hard && !u_.p_varies) sum_ = S::fma(u_.pos_weight, of_positives, sum_);
      negatives_.value = positives_.value = 0;
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

  /// A bit for each lane whose target byte is 1.
  static WEIGHTED_BCE_DEVICE uint32_t positives_of(const Group& group) {
    uint32_t positives = 0;
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      positives |= static_cast<uint32_t>(group.targets.template element<1>(j)) << j;
    }
    return positives;
  }

  /// hard_group where all targets are 0, as most are with sparse labels.
  WEIGHTED_BCE_DEVICE void negative_group(const Group& group, int64_t i) {
    T results[kLanes];
#pragma unroll
    for (int j = 0; j < kLanes; ++j) results[j] = hard<false>(widened<X>(group.logits, j), false);
    write(results, i);
  }

  template <bool p_varies>
  WEIGHTED_BCE_DEVICE void hard_group(const Group& group, int64_t i) {
    T results[kLanes];
    uint32_t positives = 0;
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      const auto y = static_cast<uint32_t>(group.targets.template element<1>(j));
      results[j] = hard<p_varies>(widened<X>(group.logits, j), y != 0);
      positives |= y << j;
    }
    if constexpr (p_varies) take_positives(group, positives, i, results);
    write(results, i);
  }

  /// An element with a target of 0 or 1 and no weight of its own. Where the weight of positives
  /// varies, they have yet to be taken.
  template <bool p_varies>
  WEIGHTED_BCE_DEVICE T hard(T x, bool positive) {
    const T z = S::exp_minus_abs(x);
    const bool wrong = (x > 0) != positive;  // the side of 0 on which the loss is large
    if constexpr (kSums) {
      if (!positive) {
        negatives_.times_one_plus(z);
      } else if constexpr (!p_varies) {
        positives_.times_one_plus(z);
      }
      // What is left of LossMath::linear_part: pos_weight |x| for a positive, |x| for a negative.
      if constexpr (p_varies) {
        sum_ += wrong && !positive ? x : T(0);
      } else {
        sum_ = wrong ? S::fma(positive ? -u_.pos_weight : T(1), x, sum_) : sum_;
      }
    }
    if constexpr (!kSlopes) return 0;
    return Formula::gradient_of_hard(wrong, z, positive ? u_.factor_of_positives : u_.factor.scale);
  }

  /// The positives of a group, one by one: they are few. Registers have no index at run time.
  WEIGHTED_BCE_DEVICE void take_positives(const Group& group, uint32_t lanes, int64_t i,
                                          T (&results)[kLanes]) {
#pragma unroll 1
    for (; lanes != 0; lanes &= lanes - 1) {
      const int lane = lowest_bit(lanes);
      T x = 0;
#pragma unroll
      for (int j = 0; j < kLanes; ++j) x = j == lane ? widened<X>(group.logits, j) : x;
      const T p = factor_at<X, T>(problem_, problem_.p, i + lane);
      const T result = Base::general(x, T(1), T(1), p, T(1));
#pragma unroll
      for (int j = 0; j < kLanes; ++j) results[j] = j == lane ? result : results[j];
    }
  }

  WEIGHTED_BCE_DEVICE void general_group(const Group& group, int64_t i) {
    T y[kLanes], w[kLanes], p[kLanes], upstream[kLanes], results[kLanes];
#pragma unroll
    for (int j = 0; j < kLanes; ++j) w[j] = u_.weight, p[j] = u_.pos_weight, upstream[j] = 1;
    read_targets(group.targets, i, y);
    if (u_.w_varies) read_factors<X>(problem_, problem_.w, i, w);
    if (u_.p_varies) read_factors<X>(problem_, problem_.p, i, p);
    if (kMode == Mode::kGrad && u_.has_upstream) {
      read_factors<X>(problem_, problem_.upstream, i, upstream);
    }
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      results[j] = Base::general(widened<X>(group.logits, j), y[j], w[j], p[j], upstream[j]);
    }
    write(results, i);
  }

  /// Whether the factors of the elements lie evenly spaced.
  WEIGHTED_BCE_DEVICE bool within_row(int64_t i) const {
    if (problem_.dims == 1) return true;
    const int d = problem_.dims - 1;
    const int64_t row = quotient(i, problem_.dividers[d]);
    return i - row * problem_.sizes[d] + kLanes <= problem_.sizes[d];
  }

  /// Whether all targets are 0 or 1; then `targets` holds a byte of 0 or 1 for each.
  WEIGHTED_BCE_DEVICE bool prepare_hard(Bits<kLanes>& targets, int64_t i) const {
    if constexpr (kTargetBytes == kSparse) {
      return true;
    } else if constexpr (kTargetBytes == 1) {
      uint32_t others = 0;
#pragma unroll
      for (const uint32_t word : targets.words) others |= word & ~0x01010101u;
      return others == 0;
    } else {
      switch (problem_.y.size) {
        case 2: return prepare_larger<2>(targets, i);
        case 4: return prepare_larger<4>(targets, i);
        default: return prepare_larger<8>(targets, i);
      }
    }
  }
  template <int kSize>
  WEIGHTED_BCE_DEVICE bool prepare_larger(Bits<kLanes>& targets, int64_t i) const {
    Bits<kLanes * kSize> run;
    load<kLanes * kSize>(static_cast<const char*>(problem_.y.data) + i * kSize, run.words);
    targets = {};
    uint64_t others = 0;
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      const uint64_t bits = run.template element<kSize>(j);
      const bool one = bits == u_.one;
      targets.template set_element<1>(j, one);
      others |= one ? 0 : bits;
    }
    return others == 0;
  }

  WEIGHTED_BCE_DEVICE void read_targets(const Bits<kLanes>& targets, int64_t i,
                                        T (&y)[kLanes]) const {
    if constexpr (kTargetBytes != 0) {
      decode<1>(targets, y);
    } else {
      switch (problem_.y.size) {
        case 2: return read_larger<2>(i, y);
        case 4: return read_larger<4>(i, y);
        default: return read_larger<8>(i, y);
      }
    }
  }
  template <int kSize>
  WEIGHTED_BCE_DEVICE void read_larger(int64_t i, T (&y)[kLanes]) const {
    Bits<kLanes * kSize> run;
    load<kLanes * kSize>(static_cast<const char*>(problem_.y.data) + i * kSize, run.words);
    decode<kSize>(run, y);
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
