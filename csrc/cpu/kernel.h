// The CPU kernels. Work goes block by block: operands that do not lie in memory as groups of the
// compute type are converted into a buffer that stays in the L1 cache, the terms are computed on
// whole vectors, and the result is converted back. So one kernel serves every dtype and layout.
// Half-precision logits and gradients that are contiguous, as many are, are converted in registers.
#pragma once

#include "cpu/sum.h"
#include "cpu/targets.h"

namespace weighted_bce::WEIGHTED_BCE_ISA {
namespace {

/// These are the same for every element of a call, as vectors.
template <class L, class T>
struct Constants {
  using S = Simd<T>;
  using V = typename S::Value;
  using Terms = typename L::template Terms<S>;

  V pos_weight, weight, keep, shift, ignore_index;
  V scale, scale_low;       // a gradient is multiplied by their sum
  Coefficients<V> factors;  // of the slopes of hard targets, see LossTerms::hard
  typename Terms::Parameters parameters;
  bool has_weight, ignores, ignores_nan;
  bool negatives_are_fast, positives_are_fast;  // where hard targets are

  explicit Constants(const Problem& problem) : Constants(problem, constants_of<T>(problem)) {}

  WEIGHTED_BCE_INLINE typename S::Mask ignored(V y) const {
    return ignores_nan ? y != y : y == ignore_index;
  }

 private:
  Constants(const Problem& problem, const CallConstants<T>& c)
      : pos_weight(S::set(c.pos_weight)),
        weight(S::set(c.weight)),
        keep(S::set(c.keep)),
        shift(S::set(c.shift)),
        ignore_index(S::set(c.ignore_index)),
        parameters(c),
        has_weight(problem.w.data != nullptr || c.weight != 1),
        ignores(problem.ignores),
        ignores_nan(c.ignore_index != c.ignore_index),
        negatives_are_fast(problem.hard_fast_path),
        positives_are_fast(problem.hard_fast_path && problem.p.data == nullptr &&
                           multiplies_sums(c.pos_weight)) {
    const Pair<T> split_scale = split<T>(scale_of(problem));
    scale = S::set(split_scale.high);
    scale_low = S::set(split_scale.low);
    factors = {-scaled<S>(pos_weight, scale, scale_low), scale};
  }

  /// Returns grad_output, where it is one number, by the divisor. Where nothing counts, that is 0.
  static double scale_of(const Problem& problem) {
    double grad_output = 1;
    if (problem.grad_output.form == Form::kUniform) {
      loader<double>(problem.grad_output.dtype)(problem.grad_output.data, 1, 1, &grad_output);
    }
    return problem.divisor == 0 ? 0 : grad_output / problem.divisor;
  }
};

/// Computes elements with any targets. Their coefficients come from their own targets and factors,
/// which `in` has as vector j of the group at i. Adds its loss to `sum`; returns its loss or its
/// gradient, as the mode wants.
template <class L, class T, Mode mode, int kVectors>
WEIGHTED_BCE_INLINE typename Simd<T>::Value any_target(typename Simd<T>::Value x,
                                                       typename Simd<T>::Value y,
                                                       const Block<T>& in,
                                                       const Constants<L, T>& constants, int64_t i,
                                                       int j, typename Simd<T>::Mask valid,
                                                       typename Simd<T>::Value& sum) {
  using S = Simd<T>;
  if (constants.ignores) valid &= ~constants.ignored(y);
  const auto p = in.p ? vector_of<kVectors>(in.p, i, j) : constants.pos_weight;
  auto c = coefficients<S>(y, p, constants.keep, constants.shift);
  if (constants.has_weight) {
    const auto w = in.w ? vector_of<kVectors>(in.w, i, j) : constants.weight;
    c = {w * c.positive, w * c.negative};
  }
  const typename L::template Terms<S> terms(x, constants.parameters);
  typename S::Value result = S::set(0);
  if constexpr (mode != Mode::kGrad) {
    result = S::select(valid, terms.value(c), S::set(0));
    sum += result;
  }
  if constexpr (kHasGrad<mode>) {
    if (in.grad_output) {
      const auto factor = constants.scale * vector_of<kVectors>(in.grad_output, i, j);
      c = scaled<S>(c, factor, S::set(0));
    } else {
      c = scaled<S>(c, constants.scale, constants.scale_low);
    }
    result = S::select(valid, terms.slope(c), S::set(0));
  }
  return result;
}

/// The losses of a range are summed in two: those of hard positives, which pos_weight multiplies at
/// the end, and all others.
template <class L, class T>
struct Sums {
  using One = Sum<T, L::template Terms<Simd<T>>::kHasLogarithm>;
  One negatives, positives;
  double total(const Constants<L, T>& constants) {
    const double of_positives = positives.total();
    if (of_positives == 0) return negatives.total();  // pos_weight may be infinite
    return negatives.total() + static_cast<double>(constants.pos_weight[0]) * of_positives;
  }
};

/// Logits are asked for so many bytes before they are used: the processor's own prefetcher is late
/// where the arithmetic takes as long as the memory does.
constexpr int kAhead = 2048;

/// Computes a block whose logits and results lie in memory as S. Where a group is more than a
/// vector, the block is whole groups.
template <class L, class T, Mode mode, class S>
void compute_block(const S* logits, const Block<T>& in, const Constants<L, T>& constants, int64_t n,
                   Sums<L, T>& sums, const Output<T, S>& out) {
  using V = typename Simd<T>::Value;
  using Mask = typename Simd<T>::Mask;
  using Terms = typename L::template Terms<Simd<T>>;
  constexpr int kVectors = Group<T, S>::kVectors;
  typename Sums<L, T>::One::Part negatives, positives;
  bool any_positives = false;
  int64_t i = 0;
  for (; i + kGroup<T, S> <= n; i += kGroup<T, S>) {
    V x[kVectors], result[kVectors];
    __builtin_prefetch(reinterpret_cast<const char*>(logits + i) + kAhead);
    Group<T, S>::load(logits + i, x);
    constexpr bool kFast = mode != Mode::kUnreduced;
    if (kFast && constants.negatives_are_fast && !any_positive<kVectors>(in, i)) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        const auto term = Terms(x[j], constants.parameters).negative(constants.scale);
        if (kSums<mode>) negatives.add(term);
        result[j] = term.slope;
      }
    } else if (kFast && constants.positives_are_fast && all_hard<kVectors>(in, i)) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        const Mask positive = targets_of<kVectors>(in, i, j) != 0;
        const auto term = Terms::hard(x[j], positive, constants.factors, constants.parameters);
        if (kSums<mode>) negatives.add_where(~positive, term);
        if (kSums<mode>) positives.add_where(positive, term);
        result[j] = term.slope;
      }
      any_positives = true;
    } else {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        result[j] = any_target<L, T, mode, kVectors>(x[j], targets_of<kVectors>(in, i, j), in,
                                                     constants, i, j, ~Mask{}, negatives.rest);
      }
    }
    if (mode != Mode::kLoss) out.put(i, result);
  }
  if constexpr (kVectors == 1) {
    if (i < n) {
      Mask valid{};
      for (int lane = 0; lane < n - i; ++lane) valid[lane] = -1;
      V x[1];
      Group<T, S>::load(logits + i, x);
      x[0] = any_target<L, T, mode, 1>(x[0], targets_of<1>(in, i, 0, n - i), in, constants, i, 0,
                                       valid, negatives.rest);
      if (mode != Mode::kLoss) out.put(i, x);
    }
  }
  if (kSums<mode>) sums.negatives.add(negatives);
  if (kSums<mode> && any_positives) sums.positives.add(positives);
}

/// Computes a range. S is the dtype of logits and results where they may be converted in registers.
template <class L, class T, class S, Mode mode>
double run_mode(const Problem& problem, int64_t begin, int64_t end) {
  const Constants<L, T> constants(problem);
  Buffer<T> x, y, w, p, grad_output, out;
  // Bytes are tested as they are, and converted only where there is a positive among them.
  const bool byte_targets = problem.y.dtype == Dtype::kBool || problem.y.dtype == Dtype::kUInt8;
  const bool tested = mode != Mode::kUnreduced && problem.hard_fast_path;
  const uint8_t largest = problem.y.dtype == Dtype::kUInt8 ? 255 : 1;
  const auto* bytes = byte_targets && tested && problem.y.form == Form::kContiguous
                          ? static_cast<const uint8_t*>(problem.y.data)
                          : nullptr;
  const bool sparse = problem.csr.crow_indices != nullptr;
  const bool each_has_grad_output = problem.grad_output.form > Form::kUniform;
  SparseTargets sparse_targets(problem.csr, begin);
  Sums<L, T> sums;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min(kBlock, end - at);
    const uint8_t* const y_bytes = sparse ? sparse_targets.next(n) : bytes ? bytes + at : nullptr;
    const Block<T> in{
        y_bytes ? nullptr : read(problem, problem.y, at, n, y),
        y_bytes,
        largest,
        read(problem, problem.w, at, n, w),
        read(problem, problem.p, at, n, p),
        each_has_grad_output ? read(problem, problem.grad_output, at, n, grad_output) : nullptr};
    if constexpr (!std::is_same_v<S, T>) {
      if (is_in_groups<T, S>(problem.x, n) &&
          (mode == Mode::kLoss || is_in_groups<T, S>(problem.out, n))) {
        const S* const logits = static_cast<const S*>(problem.x.data) + at;
        const auto output = mode == Mode::kLoss ? Output<T, S>() : Output<T, S>(problem, at);
        compute_block<L, T, mode, S>(logits, in, constants, n, sums, output);
        continue;
      }
    }
    const bool direct = is_in_groups<T, T>(problem.out, n);
    const auto output = direct ? Output<T, T>(problem, at) : Output<T, T>(out);
    compute_block<L, T, mode, T>(read(problem, problem.x, at, n, x), in, constants, n, sums,
                                 output);
    if (mode != Mode::kLoss && !direct) write(problem, at, n, out);
  }
#if defined(__SSE2__)
  if (problem.non_temporal) _mm_sfence();
#endif
  return sums.total(constants);
}

template <class T>
double count(const Problem& problem, int64_t begin, int64_t end) {
  const T ignore_index = constants_of<T>(problem).ignore_index;
  const bool sparse = problem.csr.crow_indices != nullptr;
  Buffer<T> buffer;
  SparseTargets sparse_targets(problem.csr, begin);
  int64_t valid = 0;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min(kBlock, end - at);
    const T* y = sparse ? buffer.values : read(problem, problem.y, at, n, buffer);
    if (sparse) load_run<uint8_t>(sparse_targets.next(n), 1, n, buffer.values);
    for (int64_t i = 0; i < n; ++i) valid += !is_ignored(y[i], ignore_index);
  }
  return static_cast<double>(valid);
}

template <class L, class T, class S>
double run_dtype(const Problem& problem, int64_t begin, int64_t end) {
  switch (problem.mode) {
    case Mode::kLoss: return run_mode<L, T, S, Mode::kLoss>(problem, begin, end);
    case Mode::kLossAndGrad: return run_mode<L, T, S, Mode::kLossAndGrad>(problem, begin, end);
    case Mode::kGrad: return run_mode<L, T, S, Mode::kGrad>(problem, begin, end);
    case Mode::kUnreduced: return run_mode<L, T, S, Mode::kUnreduced>(problem, begin, end);
    case Mode::kCount: break;
  }
  return count<T>(problem, begin, end);
}

/// This is the function that an instruction set offers (isa.h).
double run(const Problem& problem, int64_t begin, int64_t end) {
  return with_loss(problem.loss, [&](auto loss) {
    using L = decltype(loss);
    // Halves go through the buffer where no group of them is converted in registers.
    using InRegisters = std::conditional_t<(Group<float, Half>::kVectors > 0), Half, float>;
    switch (problem.x.dtype) {
      case Dtype::kFloat64: return run_dtype<L, double, double>(problem, begin, end);
      case Dtype::kBFloat16: return run_dtype<L, float, BFloat16>(problem, begin, end);
      case Dtype::kFloat16: return run_dtype<L, float, InRegisters>(problem, begin, end);
      default: return run_dtype<L, float, float>(problem, begin, end);
    }
  });
}

}  // namespace
}  // namespace weighted_bce::WEIGHTED_BCE_ISA
