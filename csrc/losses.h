// The losses: formulas, slopes and errors of each, the one copy for every backend. The numbers by
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

  WEIGHTED_BCE_INLINE Term<V> negative(V factor) const { return term(x_, factor); }
  WEIGHTED_BCE_INLINE Term<V> positive(V factor) const { return term(-x_, -factor); }

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
  /// N at x or -x, and its slope times `factor`.
  WEIGHTED_BCE_INLINE Term<V> term(V x, V factor) const {
    const V large = Math::divide(factor, Math::set(1) + z_);
    return {z_, Math::max(x, Math::set(0)), Math::select(x > Math::set(0), large, z_ * large)};
  }
};

/// u^gamma S(x) and its slope, in which the derivative of the power has the factor `gamma`.
template <class Math, class V = typename Math::Value>
WEIGHTED_BCE_INLINE Term<V> focal_term(const Logistic<Math>& at, const Exponent<Math>& exponent,
                                       V gamma) {
  V power, log1p_z;
  if (exponent.whole >= 0) {
    power = exponent.whole == 0   ? Math::set(1)
            : exponent.whole == 1 ? at.u()
                                  : whole_power<Math>(at.u_pair(), exponent.whole);
    log1p_z = at.log1p_z();
  } else {
    const Pair<V> log = at.log1p_z_pair();
    power = exp_minus_product<Math>(exponent, at.minus_log_u(log));
    log1p_z = log.high;
  }
  // Where the softplus is larger, v is 0; infinity times 0 would be NaN.
  const V most = Math::set(-Floating<typename Math::Element>::kLowest);
  const V softplus = at.softplus(log1p_z);
  const V bounded = Math::select(softplus > most, most, softplus);
  return {Math::set(0), power * softplus, power * Math::fma(gamma * at.v(), bounded, at.u())};
}

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
    V above_one;    // lam - 1
    V above_three;  // 2 lam - 3
    Pair<V> margin;
    Exponent<Math> gamma;

    WEIGHTED_BCE_INLINE explicit Parameters(const Constants& constants)
        : margin{Math::set(constants.parameters[1]), Math::set(constants.remainders[1])},
          gamma(constants.parameters[2], constants.remainders[2]) {
      const auto lam = constants.parameters[0], rest = constants.remainders[0];
      above_one = Math::set((lam - 1) + rest);
      above_three = Math::set((lam + lam - 3) + (rest + rest));
    }
  };

  WEIGHTED_BCE_INLINE Hill(V x, const Parameters& parameters) : parameters_(parameters), x_(x) {}

  WEIGHTED_BCE_INLINE Term<V> negative(V factor) const {
    const V z = Math::exp_minus_abs(x_);
    const Pair<V> inverse = reciprocal<Math>(sum_of_larger(Math::set(1), z));
    const V larger = inverse.high + inverse.low, smaller = z * larger;
    const auto above = x_ > Math::set(0);
    const V u = Math::select(above, larger, smaller), v = Math::select(above, smaller, larger);
    const V slope = (u * u) * (v * Math::fma(Math::set(3), v, parameters_.above_three));
    return {Math::set(0), (u * u) * (parameters_.above_one + v), factor * slope};
  }
  WEIGHTED_BCE_INLINE Term<V> positive(V factor) const {
    Pair<V> x = sum(x_, -parameters_.margin.high);
    const auto finite = x.high - x.high == Math::set(0);
    x.low = Math::select(finite, x.low - parameters_.margin.low, Math::set(0));
    const Term<V> plain =
        focal_term(Logistic<Math>(x).mirrored(), parameters_.gamma, parameters_.gamma.gamma);
    return {Math::set(0), plain.rest, -factor * plain.slope};
  }

 private:
  const Parameters& parameters_;
  V x_;
};

/// The asymmetric loss (Ridnik et al., Asymmetric Loss for Multi-Label Classification, 2021):
/// P(x) = v^gamma_pos S(-x), N(x) = -p^gamma_neg log(1 - p) with p = u - clip, or exactly 0 where
/// u <= clip. Where detach_focus is 1, the powers count as constants in the slopes. Value and slope
/// are at most 8 ulp off for gammas <= 4; an x within 1 ulp of the clip's edge may fall on either
/// side of it. A clip below the smallest normal number counts as that.
///
/// Parameters: gamma_neg, gamma_pos, clip, detach_focus.
template <class Math>
class Asymmetric : public LossTerms<Asymmetric, Math> {
  using typename LossTerms<Asymmetric, Math>::V;
  using typename LossTerms<Asymmetric, Math>::E;
  using typename LossTerms<Asymmetric, Math>::Constants;

 public:
  static constexpr int kParameters = 4;
  static const char* fault(const double* parameters) {
    const auto is_gamma = [](double gamma) { return gamma >= 0 && gamma <= 1e300; };
    if (!is_gamma(parameters[0])) return "gamma_neg must be in [0, 1e300]";
    if (!is_gamma(parameters[1])) return "gamma_pos must be in [0, 1e300]";
    if (!(parameters[2] >= 0 && parameters[2] < 1)) return "clip must be in [0, 1)";
    if (parameters[3] != 0 && parameters[3] != 1) return "detach_focus must be 0 or 1";
    return nullptr;
  }
  /// The logit of the clip.
  static long double derived(const double* parameters) {
    const long double clip = parameters[2];
    return clip > 0 ? std::log(clip) - std::log1p(-clip) : 0;
  }
  struct Parameters {
    Exponent<Math> gamma_neg, gamma_pos;
    V of_negative, of_positive;  // the gammas as factors in the slopes
    bool clips;
    Pair<V> clip, unclipped, edge;  // m, 1 - m, logit(m)

    WEIGHTED_BCE_INLINE explicit Parameters(const Constants& constants)
        : gamma_neg(constants.parameters[0], constants.remainders[0]),
          gamma_pos(constants.parameters[1], constants.remainders[1]),
          clips(constants.parameters[2] > 0 || constants.remainders[2] > 0),
          edge{Math::set(constants.derived), Math::set(constants.derived_remainder)} {
      const bool detaches = constants.parameters[3] != 0;
      of_negative = detaches ? Math::set(0) : gamma_neg.gamma;
      of_positive = detaches ? Math::set(0) : gamma_pos.gamma;
      constexpr E kLeast = Floating<E>::kLeast;
      const E m = constants.parameters[2] > kLeast ? constants.parameters[2] : kLeast;
      const Pair<E> rest = sum_of_larger(E(1), -m);
      clip = {Math::set(m), Math::set(constants.remainders[2])};
      unclipped = {Math::set(rest.high), Math::set(rest.low - constants.remainders[2])};
    }
  };

  WEIGHTED_BCE_INLINE Asymmetric(V x, const Parameters& parameters)
      : parameters_(parameters), x_(x), at_(x) {}

  WEIGHTED_BCE_INLINE Term<V> negative(V factor) const {
    const Term<V> plain = parameters_.clips
                              ? clipped()
                              : focal_term(at_, parameters_.gamma_neg, parameters_.of_negative);
    return {Math::set(0), plain.rest, factor * plain.slope};
  }
  WEIGHTED_BCE_INLINE Term<V> positive(V factor) const {
    const Term<V> plain =
        focal_term(at_.mirrored(), parameters_.gamma_pos, parameters_.of_positive);
    return {Math::set(0), plain.rest, -factor * plain.slope};
  }

 private:
  const Parameters& parameters_;
  V x_;
  Logistic<Math> at_;

  /// N, and its slope u v p^(gamma - 1) (gamma L + p / (1 - p)) with L = -log(1 - p).
  WEIGHTED_BCE_INLINE Term<V> clipped() const {
    const V zero = Math::set(0), v = at_.v();
    const Pair<V> most_of_d = sum(x_, -parameters_.edge.high);
    const Pair<V> d = sum_of_larger(most_of_d.high, most_of_d.low - parameters_.edge.low);
    const Pair<V> p = clipped_u(d);
    // 1 - p = v + clip is a sum of positive numbers, and p / (1 - p) the odds of p.
    const V inverse = Math::reciprocal(v + parameters_.clip.high);
    const V odds = p.high * inverse;
    const V log = log1p<Math>(odds);
    const V power = power_below(p);
    const V slope = Math::fma(parameters_.of_negative * v, log, (v * inverse) * p.high);
    const auto counts = d.high > zero;
    const V nothing = at_.v() * zero;  // or NaN
    return {zero, Math::select(counts, (power * p.high) * log, nothing),
            Math::select(counts, (at_.u() * power) * slope, nothing)};
  }

  /// p = u - clip = (1 - clip) u - clip v. Near the edge, where that cancels, it is
  /// (1 - clip) u (1 - exp(-d)) with d = x - logit(clip). At least a tiny number.
  WEIGHTED_BCE_INLINE Pair<V> clipped_u(Pair<V> d) const {
    const Pair<V> most = product<Math>(parameters_.unclipped, at_.u_pair());
    const Pair<V> least = product<Math>(parameters_.clip, at_.v_pair());
    const Pair<V> far = sum_of_larger(most.high, -least.high);
    Pair<V> e = sum_of_larger(d.high, -(d.high * d.high) * exp_series<Math>(-d.high));
    e = sum_of_larger(e.high, e.low + (d.low - d.low * d.high));
    const Pair<V> near = product<Math>(most, e);
    const auto is_near = Math::set(E(0.34)) > d.high;
    const V high = Math::select(is_near, near.high, far.high);
    const V low = Math::select(is_near, near.low, far.low + (most.low - least.low));
    return sum_of_larger(Math::max(high, Math::set(Floating<E>::kLeast)), low);
  }

  /// p^(gamma_neg - 1).
  WEIGHTED_BCE_INLINE V power_below(Pair<V> p) const {
    const Exponent<Math>& gamma = parameters_.gamma_neg;
    if (gamma.whole > 0) return whole_power<Math>(p, gamma.whole - 1);
    const V inverse = Math::divide(Math::set(1), p.high);
    if (gamma.whole == 0) return inverse;
    return exp_minus_product<Math>(gamma, minus_log<Math>(p)) * inverse;
  }
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
  // Products with a larger one might overflow, and mean nothing.
  constexpr double kMost = std::numeric_limits<T>::max() / 256;
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
