// The CPU kernels, once for each level. Work goes block by block: operands that are not already a
// line of the compute type are converted into a buffer that stays in the L1 cache, the formula runs
// on whole vectors, and the result is converted back. So one kernel serves every dtype and layout.
// Half-precision logits and gradients in a line, which many have, are converted in registers.
//
// Included by level.h inside a level's namespace.

/// The part of a problem that is the same for every element, in the compute type.
template <class T>
struct Uniform {
  using S = Simd<T>;
  using V = typename S::Value;
  using Formula = LossMath<S>;

  V pos_weight, keep, shift;
  V scale, scale_low;     // the scale is their sum
  V factor_of_positives;  // -pos_weight times the scale
  bool ignores, ignores_nan;
  V ignore_index;
  bool has_hard;         // a target of 0 has the coefficients 0 and 1, and no factor of its own
  bool positives_alike;  // one of 1 has pos_weight and 0; times a loss, that is never NaN

  explicit Uniform(const Problem& problem)
      : pos_weight(S::set(static_cast<T>(problem.pos_weight))),
        keep(S::set(static_cast<T>(1 - problem.label_smoothing))),
        shift(S::set(static_cast<T>(problem.label_smoothing / 2))),
        scale(S::set(static_cast<T>(problem.scale))),
        scale_low(S::set(remainder_of(problem.scale))),
        ignores(problem.ignores),
        ignores_nan(problem.ignore_index != problem.ignore_index),
        ignore_index(S::set(static_cast<T>(problem.ignore_index))),
        has_hard(problem.w.data == nullptr && problem.upstream.data == nullptr &&
                 problem.label_smoothing == 0 && !ignores_hard(problem)),
        positives_alike(problem.p.data == nullptr && pos_weight[0] > 0 &&
                        std::isfinite(pos_weight[0])) {
    factor_of_positives = -Formula::scaled(pos_weight, scale, scale_low);
  }

  static bool ignores_hard(const Problem& problem) {
    return problem.ignores && (problem.ignore_index == 0 || problem.ignore_index == 1);
  }

  /// What the scale loses in T.
  static T remainder_of(double scale) {
    const T rounded = static_cast<T>(scale);
    return std::isfinite(rounded) ? static_cast<T>(scale - static_cast<double>(rounded)) : T(0);
  }

  WEIGHTED_BCE_INLINE typename S::Mask ignored(V y) const {
    return ignores_nan ? y != y : y == ignore_index;
  }
};

enum class Mode { kLoss, kLossAndGrad, kGrad, kUnreduced };

/// Any element: the coefficients are made anew. Adds its loss to `sum`; returns its loss or its
/// gradient, as the mode wants. `in` has its factors, as vector j of the group at i.
template <class T, Mode mode, int kVectors>
WEIGHTED_BCE_INLINE typename Simd<T>::Value general(typename Simd<T>::Value x,
                                                    typename Simd<T>::Value y, const Lines<T>& in,
                                                    const Uniform<T>& u, int64_t i, int j,
                                                    typename Simd<T>::Mask valid,
                                                    typename Simd<T>::Value& sum) {
  using S = Simd<T>;
  using Formula = LossMath<S>;
  if (u.ignores) valid &= ~u.ignored(y);
  const auto p = in.p ? vector_of<kVectors>(in.p, i, j) : u.pos_weight;
  auto c = Formula::coefficients(y, p, u.keep, u.shift);
  if (in.w) {
    const auto w = vector_of<kVectors>(in.w, i, j);
    c = {w * c.positive, w * c.negative};
  }
  const auto z = S::exp_minus_abs(x);
  typename S::Value result = S::set(0);
  if (mode != Mode::kGrad) {
    result = S::select(valid, Formula::loss(x, z, c), S::set(0));
    sum += result;
  }
  if (mode == Mode::kLossAndGrad || mode == Mode::kGrad) {
    if (in.upstream) {
      c = Formula::scaled(c, u.scale * vector_of<kVectors>(in.upstream, i, j), S::set(0));
    } else {
      c = Formula::scaled(c, u.scale, u.scale_low);
    }
    result = S::select(valid, Formula::gradient(x, z, c), S::set(0));
  }
  return result;
}

/// The losses of a range: those of any element and of hard negatives, and those of hard positives,
/// which have yet to be weighted.
template <class T>
struct Sums {
  Sum<T> negatives, positives;
  double total(const Uniform<T>& u) {
    const double sum = negatives.total();
    return u.positives_alike ? sum + static_cast<double>(u.pos_weight[0]) * positives.total() : sum;
  }
};

/// A negative. Adds its loss; returns its gradient.
template <class T, Mode mode>
WEIGHTED_BCE_INLINE typename Simd<T>::Value negative(typename Simd<T>::Value x, const Uniform<T>& u,
                                                     typename Sum<T>::Part& negatives) {
  const auto z = Simd<T>::exp_minus_abs(x);
  if (mode != Mode::kGrad) negatives.add(x, z);
  return LossMath<Simd<T>>::gradient_of_hard(x > 0, z, u.scale);
}

/// A target of 0 or 1. A positive at x is a negative at -x, but for its factor.
template <class T, Mode mode>
WEIGHTED_BCE_INLINE typename Simd<T>::Value hard(typename Simd<T>::Value x,
                                                 typename Simd<T>::Mask positive,
                                                 const Uniform<T>& u,
                                                 typename Sum<T>::Part& negatives,
                                                 typename Sum<T>::Part& positives) {
  using S = Simd<T>;
  const auto s = S::select(positive, -x, x), z = S::exp_minus_abs(x);
  if (mode != Mode::kGrad) {
    negatives.add_where(~positive, s, z);
    positives.add_where(positive, s, z);
  }
  const auto factor = S::select(positive, u.factor_of_positives, u.scale);
  return LossMath<S>::gradient_of_hard(s > 0, z, factor);
}

/// S: as what the logits and the results lie in memory. Where a group is more than a vector, the
/// block is whole groups.
template <class T, Mode mode, class S>
void block(const S* logits, const Lines<T>& in, const Uniform<T>& u, int64_t n, Sums<T>& sums,
           const Output<T, S>& out) {
  using V = typename Simd<T>::Value;
  using Mask = typename Simd<T>::Mask;
  constexpr int kVectors = Line<T, S>::kVectors;
  constexpr bool kSums = mode == Mode::kLoss || mode == Mode::kLossAndGrad;
  typename Sum<T>::Part negatives, positives;
  bool any_positives = false;
  int64_t i = 0;
  for (; i + kGroup<T, S> <= n; i += kGroup<T, S>) {
    V x[kVectors], result[kVectors];
    Line<T, S>::load(logits + i, x);
    const bool short_way = mode != Mode::kUnreduced && u.has_hard;
    if (short_way && !any_positive<kVectors>(in, i)) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) result[j] = negative<T, mode>(x[j], u, negatives);
    } else if (short_way && u.positives_alike && all_hard<kVectors>(in, i)) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        const Mask positive = targets_of<kVectors>(in, i, j) != 0;
        result[j] = hard<T, mode>(x[j], positive, u, negatives, positives);
      }
      any_positives = true;
    } else {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        result[j] = general<T, mode, kVectors>(x[j], targets_of<kVectors>(in, i, j), in, u, i, j,
                                               ~Mask{}, negatives.linear);
      }
    }
    if (mode != Mode::kLoss) out.put(i, result);
  }
  if constexpr (kVectors == 1) {
    if (i < n) {
      Mask valid{};
      for (int lane = 0; lane < n - i; ++lane) valid[lane] = -1;
      V x[1];
      Line<T, S>::load(logits + i, x);
      x[0] = general<T, mode, 1>(x[0], targets_of<1>(in, i, 0, n - i), in, u, i, 0, valid,
                                 negatives.linear);
      if (mode != Mode::kLoss) out.put(i, x);
    }
  }
  if (kSums) sums.negatives.add(negatives);
  if (kSums && any_positives) sums.positives.add(positives);
}

/// S: the dtype of the logits and of the results, where they may go through registers alone.
template <class T, Mode mode, class S>
double run_as(const Problem& problem, int64_t begin, int64_t end) {
  const Uniform<T> u(problem);
  Buffer<T> x, y, w, p, upstream, out;
  // Bytes are tested as they are, and converted only where there is a positive among them.
  const bool byte_targets = problem.y.dtype == Dtype::kBool || problem.y.dtype == Dtype::kUInt8;
  const bool tested = mode != Mode::kUnreduced && u.has_hard;
  const uint8_t most = problem.y.dtype == Dtype::kUInt8 ? 255 : 1;
  const auto* bytes = byte_targets && tested && problem.y.linear
                          ? static_cast<const uint8_t*>(problem.y.data)
                          : nullptr;
  const bool sparse = problem.positives.crow != nullptr;
  Marks marks(problem.positives, begin);
  Sums<T> sums;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min(kBlock, end - at);
    const uint8_t* const y8 = sparse ? marks.next(n) : bytes ? bytes + at : nullptr;
    const Lines<T> in{y8 ? nullptr : read(problem, problem.y, at, n, y),
                      y8,
                      most,
                      read(problem, problem.w, at, n, w),
                      read(problem, problem.p, at, n, p),
                      read(problem, problem.upstream, at, n, upstream)};
    if constexpr (!std::is_same_v<S, T>) {
      if (is_line<T, S>(problem.x, n) && (mode == Mode::kLoss || is_line<T, S>(problem.out, n))) {
        const S* const logits = static_cast<const S*>(problem.x.data) + at;
        const auto output = mode == Mode::kLoss ? Output<T, S>() : Output<T, S>(problem, at);
        block<T, mode, S>(logits, in, u, n, sums, output);
        continue;
      }
    }
    const bool straight = is_line<T, T>(problem.out, n);
    const auto output = straight ? Output<T, T>(problem, at) : Output<T, T>(out);
    block<T, mode, T>(read(problem, problem.x, at, n, x), in, u, n, sums, output);
    if (mode != Mode::kLoss && !straight) write(problem, at, n, out);
  }
#if defined(__SSE2__)
  if (problem.stream) _mm_sfence();
#endif
  return sums.total(u);
}

template <class T, Mode mode>
double run(const Problem& problem, int64_t begin, int64_t end) {
  if constexpr (Line<T, BFloat16>::kVectors > 0) {
    if (problem.x.dtype == Dtype::kBFloat16) return run_as<T, mode, BFloat16>(problem, begin, end);
  }
  if constexpr (Line<T, Half>::kVectors > 0) {
    if (problem.x.dtype == Dtype::kFloat16) return run_as<T, mode, Half>(problem, begin, end);
  }
  return run_as<T, mode, T>(problem, begin, end);
}

template <class T>
double count(const Problem& problem, int64_t begin, int64_t end) {
  const Uniform<T> u(problem);
  Buffer<T> buffer;
  const bool sparse = problem.positives.crow != nullptr;
  Marks marks(problem.positives, begin);
  int64_t valid = 0;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min(kBlock, end - at);
    const T* y = sparse ? buffer.values : read(problem, problem.y, at, n, buffer);
    if (sparse) load_run<uint8_t>(marks.next(n), 1, n, buffer.values);
    const T ignore = u.ignore_index[0];
    for (int64_t i = 0; i < n; ++i) valid += !(u.ignores_nan ? y[i] != y[i] : y[i] == ignore);
  }
  return static_cast<double>(valid);
}

template <class T>
constexpr Kernels kernels() {
  return {run<T, Mode::kLoss>, run<T, Mode::kLossAndGrad>, run<T, Mode::kGrad>,
          run<T, Mode::kUnreduced>, count<T>};
}
