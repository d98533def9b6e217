// Computes a group of elements at once, in registers: for short terms.
#pragma once

#include "cuda/group_thread.h"

namespace weighted_bce::cuda {

template <class Losses, class X, Targets kTargets, Mode kMode>
class UnrolledThread : public GroupThread<Losses, X, kTargets, kMode> {
  using Base = GroupThread<Losses, X, kTargets, kMode>;
  using Base::constants_;
  using Base::problem_;
  using Base::shared_;
  using typename Base::T;

 public:
  using Base::Base;
  using Base::kLanes;
  using typename Base::Group;

  WEIGHTED_BCE_DEVICE void compute(Group& group, int64_t i) {
    Bits<16> logits;
    load_copy<16>(group.logits, logits.words);
    Base::with_loss([&](auto loss) { compute(loss, logits, group.targets, i); });
  }

 private:
  template <class Terms>
  WEIGHTED_BCE_DEVICE void compute(const Chosen<Terms>& loss, const Bits<16>& logits,
                                   Bits<kLanes>& targets, int64_t i) {
    if (kMode != Mode::kUnreduced && shared_.hard_fast_path && Base::prepare_hard(targets, i)) {
      if (kTargets == Targets::kSparse && !any(targets)) {
        negative_group(loss, logits, i);
      } else if (shared_.own_p) {  // constants give two versions of the code
        hard_group(loss, logits, targets, i, true);
      } else {
        hard_group(loss, logits, targets, i, false);
      }
    } else if (within_row(i)) {
      general_group(logits, targets, i);
    } else {
      const uint32_t positives = kTargets == Targets::kSparse ? Base::positives_of(targets) : 0;
#pragma unroll 1
      for (int j = 0; j < kLanes; ++j) Base::element(i + j, positives >> j & 1);
    }
  }

  WEIGHTED_BCE_DEVICE void write(const T (&results)[kLanes], int64_t i) const {
    if constexpr (kMode != Mode::kLoss) {
      store<16>(Base::out() + i, narrowed<X>(results).words);
    }
  }

  static WEIGHTED_BCE_DEVICE bool any(const Bits<kLanes>& targets) {
    uint32_t all = 0;
#pragma unroll
    for (const uint32_t word : targets.words) all |= word;
    return all != 0;
  }

  /// Does what hard_group does where all targets are 0, as most are with sparse labels.
  template <class Terms>
  WEIGHTED_BCE_DEVICE void negative_group(const Chosen<Terms>& loss, const Bits<16>& logits,
                                          int64_t i) {
    T results[kLanes];
#pragma unroll
    for (int j = 0; j < kLanes; ++j)
      results[j] = Base::hard(loss, widened<X>(logits, j), false, true);
    write(results, i);
  }

  template <class Terms>
  WEIGHTED_BCE_DEVICE void hard_group(const Chosen<Terms>& loss, const Bits<16>& logits,
                                      const Bits<kLanes>& targets, int64_t i, bool own_p) {
    T results[kLanes];
    uint32_t positives = 0;
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      const auto y = static_cast<uint32_t>(targets.template element<1>(j));
      results[j] = Base::hard(loss, widened<X>(logits, j), y != 0, !own_p || y == 0);
      positives |= y << j;
    }
    if (own_p) take_positives(logits, positives, i, results);
    write(results, i);
  }

  /// Computes the positives of a group one by one: they are few. Registers have no index at run
  /// time.
  WEIGHTED_BCE_DEVICE void take_positives(const Bits<16>& logits, uint32_t lanes, int64_t i,
                                          T (&results)[kLanes]) {
#pragma unroll 1
    for (; lanes != 0; lanes &= lanes - 1) {
      const int lane = lowest_bit(lanes);
      T x = 0;
#pragma unroll
      for (int j = 0; j < kLanes; ++j) x = j == lane ? widened<X>(logits, j) : x;
      T p = shared_.pos_weight;
      if (problem_.p.form > Form::kUniform) p = factor_at<X, T>(problem_, problem_.p, i + lane);
      const T result = Base::general(x, {T(1), T(1), p, T(1)});
#pragma unroll
      for (int j = 0; j < kLanes; ++j) results[j] = j == lane ? result : results[j];
    }
  }

  WEIGHTED_BCE_DEVICE void general_group(const Bits<16>& logits, const Bits<kLanes>& targets,
                                         int64_t i) {
    T y[kLanes], w[kLanes], p[kLanes], grad_output[kLanes], results[kLanes];
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      w[j] = constants_.weight;
      p[j] = shared_.pos_weight;
      grad_output[j] = 1;
    }
    read_targets(targets, i, y);
    if (problem_.w.data != nullptr) read_factors<X>(problem_, problem_.w, i, w);
    if (problem_.p.form > Form::kUniform) read_factors<X>(problem_, problem_.p, i, p);
    if (Base::has_own_grad_output()) {
      read_factors<X>(problem_, problem_.grad_output, i, grad_output);
    }
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      results[j] = Base::general(widened<X>(logits, j), {y[j], w[j], p[j], grad_output[j]});
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

  WEIGHTED_BCE_DEVICE void read_targets(const Bits<kLanes>& targets, int64_t i,
                                        T (&y)[kLanes]) const {
    if constexpr (kTargets != Targets::kAnySize) {
      decode<1>(targets, y);
    } else {
      Base::with_size([&](auto size) {
        constexpr int kSize = decltype(size)::value;
        decode<kSize>(Base::template load_targets<kSize>(i), y);
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
