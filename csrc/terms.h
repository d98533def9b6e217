// The losses: formulas, slopes and errors of each, the one copy for every backend. The numbers by
// which ops know the losses are in problem.h.
//
// For logit x, target y, positive weight p, weight w and label smoothing e, each loss is
//
//     y'    = y (1 - e) + e / 2
//     a     = w p y'                       the coefficient of the positive term
//     b     = w (1 - y')                   the coefficient of the negative term
//     loss  = a P(x) + b N(x)
//     grad  = a P'(x) + b N'(x)
//
// A loss is a struct of the terms P and N at a logit. With z = exp(-|x|), which is in [0, 1] and so
// never overflows,
//
//     softplus(+-x)  = log1p(z) + max(+-x, 0)
//     sigmoid(|x|)   = 1 / (1 + z),     sigmoid(-|x|) = z / (1 + z)
//
// so that no difference of nearby numbers appears, and each factor keeps its relative accuracy at
// any x. The errors stated below are those of an arithmetic that rounds quotients correctly and
// whose exp(-|x|) is at most 1 ulp off, as on the CPU; cuda/thread_math.h says by how much a GPU's
// are.
//
// A loss is added here, with its line in with_loss(); its number, kLosses and kMaxParameters are in
// problem.h.
#pragma once

#include "elementary.h"

namespace weighted_bce {

/// Each of the two terms has a number.
template <class V>
struct Coefficients {
  V positive, negative;
};

/// Returns a and b without the weight, which few calls have. keep = 1 - e and shift = e / 2 are
/// computed once by the caller. 1 - y' is (1 - y) keep + shift, which does not cancel where e is
/// small. Soft targets in [0, 1]; the coefficients are exact for 0 and 1 at e = 0.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Coefficients<V> coefficients(V y, V p, V keep, V shift) {
  const V smoothed = Math::fma(y, keep, shift);
  const auto none = smoothed == Math::set(0);  // whatever p is, infinity included
  return {Math::select(none, smoothed, p * smoothed), Math::fma(Math::set(1) - y, keep, shift)};
}

/// Returns c times high + low, a factor that is more exact than V, rounded once. 0 stays 0 under an
/// infinite factor.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE V scaled(V c, V high, V low) {
  return Math::select(c == Math::set(0), c, Math::fma(high, c, low * c));
}
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Coefficients<V> scaled(Coefficients<V> c, V high, V low) {
  return {scaled<Math>(c.positive, high, low), scaled<Math>(c.negative, high, low)};
}

/// Returns c v; a term whose coefficient is 0 is 0, also where it is infinite.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE V weighted(V c, V v) {
  return Math::select(c == Math::set(0), Math::set(0), c * v);
}

/// Tells whether the losses of hard positives may be summed before pos_weight multiplies them: 0 or
/// infinity times a sum might be no number.
template <class T>
WEIGHTED_BCE_INLINE bool multiplies_sums(T pos_weight) {
  return pos_weight > 0 && pos_weight - pos_weight == 0;
}

/// Tells whether a target does not count. A NaN as ignore_index stands for all NaNs.
template <class T>
WEIGHTED_BCE_INLINE bool is_ignored(T y, T ignore_index) {
  return ignore_index != ignore_index ? y != y : y == ignore_index;
}

/// A term at a logit has this value and slope. The value is log1p(logarithm) + rest: the logarithms
/// of many terms can be one, that of the product of all 1 + logarithm.
template <class V>
struct Term {
  V logarithm, rest;
  V slope;  // the derivative, times the factor that was asked for
};

/// Binary cross-entropy: P(x) = softplus(-x), N(x) = softplus(x). P(x) is N(-x).
template <class Math>
class Bce {
  using V = typename Math::Value;
  using E = typename Math::Element;
  V x_, z_;

  WEIGHTED_BCE_INLINE Bce(V x, V z) : x_(x), z_(z) {}

 public:
  static constexpr bool kHasLogarithm = true;  // whether Term::logarithm may be other than 0
  static constexpr int kParameters = 0;
  /// Says what is wrong with the parameters, or returns null.
  static const char* fault(const double*) { return nullptr; }
  /// The terms need the parameters in this form, which is the same for a whole call.
  struct Parameters {
    WEIGHTED_BCE_INLINE explicit Parameters(const CallConstants<E>&) {}
  };

  WEIGHTED_BCE_INLINE Bce(V x, const Parameters&) : x_(x), z_(Math::exp_minus_abs(x)) {}

  /// N, its slope times `factor`. Value and slope are at most 4 ulp off. A NaN in x gives NaN.
  WEIGHTED_BCE_INLINE Term<V> negative(V factor) const {
    const V large = Math::divide(factor, Math::set(1) + z_);
    return {z_, Math::max(x_, Math::set(0)), Math::select(x_ > Math::set(0), large, z_ * large)};
  }

  /// P where a target is 1, and N where it is 0. The slope is times `factors`, of which that of P
  /// comes with the opposite sign.
  template <class Mask>
  static WEIGHTED_BCE_INLINE Term<V> hard(V x, Mask positive, Coefficients<V> factors,
                                          const Parameters& parameters) {
    const V z = Bce(x, parameters).z_;  // it does not wait for the sign of x
    const Bce mirrored(Math::select(positive, -x, x), z);
    return mirrored.negative(Math::select(positive, factors.positive, factors.negative));
  }

  /// The same for a scalar: its masks are predicates, which are cheaper than another sign of x.
  static WEIGHTED_BCE_INLINE Term<V> hard(V x, bool positive, Coefficients<V> factors,
                                          const Parameters& parameters) {
    const V z = Bce(x, parameters).z_;
    const bool above = (x > 0) != positive;  // the mirrored x is above 0
    const V factor = positive ? factors.positive : factors.negative;
    const V large = Math::divide(factor, 1 + z);
    return {z, above ? Math::abs(x) : 0, above ? large : z * large};
  }
  /// sum + a rest or sum + b rest, rounded once.
  static WEIGHTED_BCE_INLINE V add_rest(V sum, V x, bool positive, Coefficients<V> c,
                                        const Term<V>&) {
    const bool above = (x > 0) != positive;
    return above ? Math::fma(positive ? -c.positive : c.negative, x, sum) : sum;
  }

  /// a P + b N. At most 4 ulp off for coefficients >= 0. A NaN in x gives NaN.
  WEIGHTED_BCE_INLINE V value(Coefficients<V> c) const {
    const V of_large = Math::select(x_ > Math::set(0), c.negative, c.positive);
    // A NaN in x may be lost here: log1p(z) brings it.
    const V relu_part = weighted<Math>(of_large, Math::abs(x_));
    return Math::fma(c.positive + c.negative, log1p_unit<Math>(z_), relu_part);
  }

  /// a P' + b N'. At most 4 ulp off where a or b is 0; for soft targets, where the two terms
  /// cancel, 4 ulp of the larger term. Where one is 0, it has the bits of `negative`. A NaN in x
  /// gives NaN.
  WEIGHTED_BCE_INLINE V slope(Coefficients<V> c) const {
    const auto above = x_ > Math::set(0);
    const V of_large = Math::select(above, c.negative, -c.positive);
    const V of_small = Math::select(above, -c.positive, c.negative);
    const V v = Math::set(1) + z_;
    return Math::fma(z_, Math::divide(of_small, v), Math::divide(of_large, v));
  }
};

/// The focal loss (Lin et al., Focal Loss for Dense Object Detection, 2017): with u = sigmoid(x)
/// and v = sigmoid(-x), P(x) = alpha v^gamma softplus(-x) and N(x) = (1 - alpha) u^gamma
/// softplus(x). For an alpha of -1 both factors are 1. Without them, P(x) is N(-x).
///
/// Parameters: gamma, alpha.
template <class Math>
class Focal {
  using V = typename Math::Value;
  using E = typename Math::Element;

 public:
  static constexpr bool kHasLogarithm = false;
  static constexpr int kParameters = 2;
  static const char* fault(const double* parameters) {
    if (!(parameters[0] >= 0 && parameters[0] <= 1e300)) return "gamma must be in [0, 1e300]";
    if (!(parameters[1] == -1 || (parameters[1] >= 0 && parameters[1] <= 1)))
      return "alpha must be in [0, 1], or -1 for none";
    return nullptr;
  }
  struct Parameters {
    V gamma, gamma_low;  // their sum is the exponent
    Coefficients<V> alphas;

    WEIGHTED_BCE_INLINE explicit Parameters(const CallConstants<E>& constants)
        : gamma(Math::set(constants.parameters[0])), gamma_low(Math::set(constants.remainders[0])) {
      const E alpha = constants.parameters[1], one_minus = E(1) - alpha - constants.remainders[1];
      alphas = {Math::set(alpha < 0 ? E(1) : alpha), Math::set(alpha < 0 ? E(1) : one_minus)};
    }
  };

  WEIGHTED_BCE_INLINE Focal(V x, const Parameters& parameters)
      : parameters_(parameters),
        x_(x),
        magnitude_(Math::abs(x)),
        z_(Math::exp_minus_abs(x)),
        log1p_z_(log1p_unit_pair<Math>(z_)),
        sigmoid_(Math::divide(Math::set(1), Math::set(1) + z_)) {}

  /// Value and slope are at most 8 ulp off for gamma <= 10 and |x| <= 87 (float) or 700 (double),
  /// and results below the smallest normal number by 8 ulp of that. For a larger gamma the error
  /// grows to about gamma / 2, since the power takes up that of z. A NaN in x gives NaN; infinities
  /// give the limits.
  WEIGHTED_BCE_INLINE Term<V> negative(V factor) const {
    return term(parameters_.alphas.negative, factor);
  }
  template <class Mask>
  static WEIGHTED_BCE_INLINE Term<V> hard(V x, Mask positive, Coefficients<V> factors,
                                          const Parameters& parameters) {
    const Coefficients<V>& alphas = parameters.alphas;
    const Focal mirrored(Math::select(positive, -x, x), parameters);
    return mirrored.term(Math::select(positive, alphas.positive, alphas.negative),
                         Math::select(positive, factors.positive, factors.negative));
  }
  static WEIGHTED_BCE_INLINE V add_rest(V sum, V, bool positive, Coefficients<V> c,
                                        const Term<V>& term) {
    return Math::fma(positive ? c.positive : c.negative, term.rest, sum);
  }

  /// As `negative`; for soft targets relative to the larger of the two terms.
  WEIGHTED_BCE_INLINE V value(Coefficients<V> c) const {
    const V negative = times(parameters_.alphas.negative, at(x_ > Math::set(0)).value);
    const V positive = times(parameters_.alphas.positive, at(Math::set(0) > x_).value);
    return times(c.positive, positive) + times(c.negative, negative);
  }
  WEIGHTED_BCE_INLINE V slope(Coefficients<V> c) const {
    const V negative = parameters_.alphas.negative * at(x_ > Math::set(0)).slope;
    const V positive = parameters_.alphas.positive * at(Math::set(0) > x_).slope;
    return c.negative * negative - c.positive * positive;
  }

 private:
  const Parameters& parameters_;
  V x_, magnitude_, z_;
  Pair<V> log1p_z_;
  V sigmoid_;  // of |x|

  struct ValueAndSlope {
    V value, slope;
  };

  /// u^gamma softplus at |x| where `above`, elsewhere at -|x|; and its slope.
  ///
  /// u^gamma is exp(-gamma softplus(-x)). The exponent is a sum of two numbers: the rounding of one
  /// would be a relative error of the power, 60 ulp at gamma = 2.7.
  template <class Mask>
  WEIGHTED_BCE_INLINE ValueAndSlope at(Mask above) const {
    const V zero = Math::set(0), gamma = parameters_.gamma;
    // Beyond the bound z is 0, and so is what is multiplied by it; infinity would give NaN.
    const V most = Math::set(-Floating<E>::kLowest);
    const V bounded = Math::select(magnitude_ > most, most, magnitude_);
    const V relu = Math::select(above, zero, bounded);  // of -x
    const V log1p_z = log1p_z_.high;

    const V first = gamma * relu, second = gamma * log1p_z, exponent = first + second;
    const V first_kept = exponent - second;
    const V lost = (first - first_kept) + (second - (exponent - first_kept));
    const V low = lost + Math::product_remainder(gamma, relu, first) +
                  Math::product_remainder(gamma, log1p_z, second) +
                  Math::fma(parameters_.gamma_low, relu + log1p_z, gamma * log1p_z_.low);
    const V rounded = Math::exp_minus_abs(exponent), power = rounded - rounded * low;

    const V other = z_ * sigmoid_;
    const V u = Math::select(above, sigmoid_, other), v = Math::select(above, other, sigmoid_);
    const V bounded_softplus = Math::select(above, bounded, zero) + log1p_z;
    return {power * (Math::select(above, magnitude_, zero) + log1p_z),
            power * Math::fma(gamma * v, bounded_softplus, u)};
  }

  /// c v; 0 where c is 0 and v infinite. A NaN in x stays.
  WEIGHTED_BCE_INLINE V times(V c, V v) const {
    return Math::select(c == Math::set(0), c * z_, c * v);
  }
  WEIGHTED_BCE_INLINE Term<V> term(V alpha, V factor) const {
    const ValueAndSlope own = at(x_ > Math::set(0));
    return {Math::set(0), times(alpha, own.value), factor * (alpha * own.slope)};
  }
};

template <template <class Math> class L>
struct LossOf {
  template <class Math>
  using Terms = L<Math>;
};

/// The one list of losses: returns visit(LossOf<...>()) for a number.
template <class Visit>
auto with_loss(Loss loss, const Visit& visit) {
  switch (loss) {
    case Loss::kFocal: return visit(LossOf<Focal>());
    case Loss::kBce: break;
  }
  return visit(LossOf<Bce>());
}

}  // namespace weighted_bce
