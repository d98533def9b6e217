// The losses: formulas, slopes and errors of each, the one copy for all kernels. The numbers by
// which ops know the losses are in problem.h.
//
// S is the softplus, u = sigmoid(x), v = sigmoid(-x). The errors stated below are those of an
// arithmetic that rounds quotients correctly and whose exp(-|x|) is at most 1 ulp off, as on the
// CPU; cuda/thread_math.h says by how much a GPU's are. They hold for the coefficients of hard
// targets; for soft ones, where the two terms' slopes cancel, relative to the larger of the two.
//
// A loss is added here, with its line in with_loss(); its number, kLosses and kMaxParameters are in
// problem.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "asymmetric.h"
#include "logistic.h"
#include "terms.h"

namespace weighted_bce {

/// Binary cross-entropy: P(x) = S(-x), N(x) = S(x). Value and slope are at most 4 ulp off.
template <class Math>
class Bce : public LossTerms<Bce, Math> {
  using typename LossTerms<Bce, Math>::V;
  using typename LossTerms<Bce, Math>::Constants;
  V x_, z_;

 public:
  static constexpr bool kHasLogarithm = true, kIsMirrored = true;
  struct Parameters {
    WEIGHTED_BCE_INLINE explicit Parameters(const Constants&) {}
  };

  WEIGHTED_BCE_INLINE Bce(V x, const Parameters&) : x_(x), z_(Math::exp_minus_abs(x)) {}

  WEIGHTED_BCE_INLINE Term<V> negative(V factor) const {
    return term(x_, x_ > Math::set(0), factor);
  }
  WEIGHTED_BCE_INLINE Term<V> positive(V factor) const {
    return term(-x_, !(x_ > Math::set(0)), -factor);
  }

  using LossTerms<Bce, Math>::hard;
  /// The same for a scalar: its masks are predicates, which are cheaper than another sign of x.
  static WEIGHTED_BCE_INLINE Term<V> hard(V x, bool positive, Coefficients<V> factors,
                                          const Parameters& parameters) {
    const V z = Bce(x, parameters).z_;
    const bool above = (x > 0) != positive;  // the mirrored x is above 0
    const V factor = positive ? factors.positive : factors.negative;
    const V large = Math::divide(factor, 1 + z);
    return {z, above ? Math::abs(x) : 0, above ? large : z * large};
  }
  static WEIGHTED_BCE_INLINE V add_rest(V sum, V x, bool positive, Coefficients<V> c,
                                        const Term<V>&) {
    const bool above = (x > 0) != positive;
    return above ? Math::fma(positive ? -c.positive : c.negative, x, sum) : sum;
  }

 private:
  /// N at x or -x, and its slope times `factor`. At 0, P is `above` as in hard(): an approximate
  /// arithmetic may have another z than 1 there.
  template <class Mask>
  WEIGHTED_BCE_INLINE Term<V> term(V x, Mask above, V factor) const {
    const V large = Math::divide(factor, Math::set(1) + z_);
    return {z_, Math::max(x, Math::set(0)), Math::select(above, large, z_ * large)};
  }
};

/// The focal loss (Lin et al., Focal Loss for Dense Object Detection, 2017): P(x) = alpha v^gamma
/// S(-x), N(x) = (1 - alpha) u^gamma S(x). For an alpha of -1 both factors are 1. Value and slope
/// are at most 8 ulp off for gamma <= 10 and |x| <= 87 (float) or 700 (double), and results below
/// the smallest normal number by 8 ulp of that. For a larger gamma the error grows to about
/// gamma / 2, since the power takes up that of z.
///
/// Parameters: gamma, alpha.
template <class Math>
class Focal : public LossTerms<Focal, Math> {
  using typename LossTerms<Focal, Math>::V;
  using typename LossTerms<Focal, Math>::E;
  using typename LossTerms<Focal, Math>::Constants;

 public:
  static constexpr bool kIsMirrored = true;  // but for alpha
  static constexpr int kParameters = 2;
  static const char* fault(const double* parameters) {
    if (!(parameters[0] >= 0 && parameters[0] <= 1e300)) return "gamma must be in [0, 1e300]";
    if (!(parameters[1] == -1 || (parameters[1] >= 0 && parameters[1] <= 1)))
      return "alpha must be in [0, 1], or -1 for none";
    return nullptr;
  }
  struct Parameters {
    Exponent<Math> gamma;
    Coefficients<V> alphas;

    WEIGHTED_BCE_INLINE explicit Parameters(const Constants& constants)
        : gamma(constants.parameters[0], constants.remainders[0]) {
      const E alpha = constants.parameters[1], one_minus = E(1) - alpha - constants.remainders[1];
      alphas = {Math::set(alpha < 0 ? E(1) : alpha), Math::set(alpha < 0 ? E(1) : one_minus)};
    }
  };

  WEIGHTED_BCE_INLINE Focal(V x, const Parameters& parameters) : parameters_(parameters), at_(x) {}

  WEIGHTED_BCE_INLINE Term<V> negative(V factor) const {
    return term(at_, parameters_.alphas.negative, factor);
  }
  WEIGHTED_BCE_INLINE Term<V> positive(V factor) const {
    return term(at_.mirrored(), parameters_.alphas.positive, -factor);
  }
  template <class Mask>
  static WEIGHTED_BCE_INLINE Term<V> hard(V x, Mask positive, Coefficients<V> factors,
                                          const Parameters& parameters) {
    const Coefficients<V>& alphas = parameters.alphas;
    const Focal mirrored(Math::select(positive, -x, x), parameters);
    return mirrored.term(mirrored.at_, Math::select(positive, alphas.positive, alphas.negative),
                         Math::select(positive, factors.positive, factors.negative));
  }

 private:
  const Parameters& parameters_;
  Logistic<Math> at_;

  WEIGHTED_BCE_INLINE Term<V> term(const Logistic<Math>& at, V alpha, V factor) const {
    const Term<V> plain = focal_term(at, parameters_.gamma, parameters_.gamma.gamma);
    return {Math::set(0), weighted<Math>(alpha, plain.rest), (factor * alpha) * plain.slope};
  }
};

/// The squared hinge loss, as extreme classifiers use it (Babbar and Schoelkopf, DiSMEC, 2017):
/// P(x) = max(0, 1 - x)^2, N(x) = max(0, 1 + x)^2. Value and slope are at most 3 ulp off.
template <class Math>
class SquaredHinge : public LossTerms<SquaredHinge, Math> {
  using typename LossTerms<SquaredHinge, Math>::V;
  using typename LossTerms<SquaredHinge, Math>::Constants;
  V x_;

 public:
  static constexpr bool kIsMirrored = true;
  struct Parameters {
    WEIGHTED_BCE_INLINE explicit Parameters(const Constants&) {}
  };

  WEIGHTED_BCE_INLINE SquaredHinge(V x, const Parameters&) : x_(x) {}

  WEIGHTED_BCE_INLINE Term<V> negative(V factor) const { return term(x_, factor); }
  WEIGHTED_BCE_INLINE Term<V> positive(V factor) const { return term(-x_, -factor); }

 private:
  static WEIGHTED_BCE_INLINE Term<V> term(V x, V factor) {
    const V margin = Math::set(1) + x;
    const V positive = Math::select(Math::set(0) > margin, Math::set(0), margin);  // or NaN
    return {Math::set(0), positive * positive, weighted<Math>(factor, positive + positive)};
  }
};

/// Poly-1 cross-entropy (Leng et al., PolyLoss, 2022): P(x) = S(-x) + epsilon v, N(x) = S(x) +
/// epsilon u. Value and slope are at most 8 ulp off; where epsilon < 0, relative to the sum of both
/// parts.
///
/// Parameters: epsilon.
template <class Math>
class Poly1 : public LossTerms<Poly1, Math> {
  using typename LossTerms<Poly1, Math>::V;
  using typename LossTerms<Poly1, Math>::Constants;

 public:
  static constexpr bool kHasLogarithm = true, kIsMirrored = true;
  static constexpr int kParameters = 1;
  static const char* fault(const double* parameters) {
    return std::isfinite(parameters[0]) ? nullptr : "epsilon must be finite";
  }
  struct Parameters {
    V epsilon;
    WEIGHTED_BCE_INLINE explicit Parameters(const Constants& constants)
        : epsilon(Math::set(constants.parameters[0])) {}
  };

  WEIGHTED_BCE_INLINE Poly1(V x, const Parameters& parameters)
      : parameters_(parameters),
        x_(x),
        z_(Math::exp_minus_abs(x)),
        larger_(Math::reciprocal(Math::set(1) + z_)) {}

  WEIGHTED_BCE_INLINE Term<V> negative(V factor) const { return term(x_, factor); }
  WEIGHTED_BCE_INLINE Term<V> positive(V factor) const { return term(-x_, -factor); }

 private:
  const Parameters& parameters_;
  V x_, z_, larger_;  // z = exp(-|x|), sigmoid(|x|)

  /// N at x or -x, and its slope u (1 + epsilon v).
  WEIGHTED_BCE_INLINE Term<V> term(V x, V factor) const {
    const auto above = x > Math::set(0);
    const V smaller = z_ * larger_;
    const V u = Math::select(above, larger_, smaller), v = Math::select(above, smaller, larger_);
    return {z_, Math::fma(parameters_.epsilon, u, Math::max(x, Math::set(0))),
            factor * (u * Math::fma(parameters_.epsilon, v, Math::set(1)))};
  }
};

/// The Hill loss (Zhang et al., Simple and Robust Loss Design for Multi-Label Learning with Missing
/// Labels, 2021): P(x) = v^gamma S(-x) at x - margin, N(x) = (lam - u) u^2. Value and slope are at
/// most 8 ulp off; where lam < 1.5, those of N relative to the sum of the absolute parts.
///
/// Parameters: lam, margin, gamma.
template <class Math>
class Hill : public LossTerms<Hill, Math> {
  using typename LossTerms<Hill, Math>::V;
  using typename LossTerms<Hill, Math>::Constants;

 public:
  static constexpr int kParameters = 3;
  static const char* fault(const double* parameters) {
    if (!std::isfinite(parameters[0])) return "lam must be finite";
    if (!std::isfinite(parameters[1])) return "margin must be finite";
    if (!(parameters[2] >= 0 && parameters[2] <= 1e300)) return "gamma must be in [0, 1e300]";
    return nullptr;
  }
  struct Parameters {
    // lam - u is above + v or below - u, and 2 lam - 3 u is above + 3 v or below - 3 u, of which
    // above 0 and below it no part cancels where lam is 1.5, or 0.
    struct Constant {
      V above, below;
    } value, slope;
    Pair<V> margin;
    Exponent<Math> gamma;

    WEIGHTED_BCE_INLINE explicit Parameters(const Constants& constants)
        : margin{Math::set(constants.parameters[1]), Math::set(constants.remainders[1])},
          gamma(constants.parameters[2], constants.remainders[2]) {
      const auto lam = constants.parameters[0], rest = constants.remainders[0];
      value = {Math::set((lam - 1) + rest), Math::set(lam + rest)};
      slope = {Math::set((lam + lam - 3) + (rest + rest)), Math::set((lam + rest) * 2)};
    }
  };

  WEIGHTED_BCE_INLINE Hill(V x, const Parameters& parameters) : parameters_(parameters), x_(x) {}

  WEIGHTED_BCE_INLINE Term<V> negative(V factor) const {
    const V z = Math::exp_minus_abs(x_);
    const Pair<V> inverse = reciprocal<Math>(sum_of_larger(Math::set(1), z));
    const V larger = inverse.high + inverse.low, smaller = z * larger;
    const auto above = x_ > Math::set(0);
    const V u = Math::select(above, larger, smaller), v = Math::select(above, smaller, larger);
    const V change = Math::select(above, smaller, -smaller);  // v or -u
    const auto &of_value = parameters_.value, &of_slope = parameters_.slope;
    const V value = Math::select(above, of_value.above, of_value.below) + change;
    const V slope =
        Math::fma(Math::set(3), change, Math::select(above, of_slope.above, of_slope.below));
    return {Math::set(0), (u * u) * value, factor * ((u * u) * (v * slope))};
  }
  WEIGHTED_BCE_INLINE Term<V> positive(V factor) const {
    const Pair<V> d = sum(x_, -parameters_.margin.high);
    const Pair<V> exact = sum_of_larger(d.high, d.low - parameters_.margin.low);
    const auto finite = d.high - d.high == Math::set(0);
    const Pair<V> x = {Math::select(finite, exact.high, d.high),
                       Math::select(finite, exact.low, Math::set(0))};
    const Term<V> plain =
        focal_term(Logistic<Math>(x).mirrored(), parameters_.gamma, parameters_.gamma.gamma);
    return {Math::set(0), plain.rest, -factor * plain.slope};
  }

 private:
  const Parameters& parameters_;
  V x_;
};

/// This arithmetic computes nothing: it serves to ask a loss for what is the same in all.
struct NoMath {
  using Value = double;
  using Element = double;
};

template <template <class Math> class L>
struct LossOf {
  template <class Math>
  using Terms = L<Math>;
};

/// The one list of losses: returns visit(LossOf<...>()) for a number.
template <class Visit>
WEIGHTED_BCE_INLINE auto with_loss(Loss loss, const Visit& visit) {
  switch (loss) {
    case Loss::kFocal: return visit(LossOf<Focal>());
    case Loss::kSquaredHinge: return visit(LossOf<SquaredHinge>());
    case Loss::kPoly1: return visit(LossOf<Poly1>());
    case Loss::kHill: return visit(LossOf<Hill>());
    case Loss::kAsymmetric: return visit(LossOf<Asymmetric>());
    case Loss::kBce: break;
  }
  return visit(LossOf<Bce>());
}

/// Sets what the constants of a call have from the parameters of its loss.
template <class T>
void set_parameters(CallConstants<T>& constants, Loss loss, const double* parameters) {
  // Sums and products with a larger one might be infinite where others are 0.
  constexpr double kMost = std::numeric_limits<T>::max() / 8;
  with_loss(loss, [&](auto kind) {
    using Terms = typename decltype(kind)::template Terms<NoMath>;
    for (int k = 0; k < Terms::kParameters; ++k) {
      const Pair<T> parameter = split<T>(std::clamp(parameters[k], -kMost, kMost));
      constants.parameters[k] = parameter.high;
      constants.remainders[k] = parameter.low;
    }
    const Pair<T> derived = split<T>(Terms::derived(parameters));
    constants.derived = derived.high;
    constants.derived_remainder = derived.low;
  });
}

}  // namespace weighted_bce
