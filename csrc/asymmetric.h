// The asymmetric loss, see losses.h.
#pragma once

#include <cmath>

#include "logistic.h"
#include "terms.h"

namespace weighted_bce {

/// The asymmetric loss (Ridnik et al., Asymmetric Loss for Multi-Label Classification, 2021):
/// P(x) = v^gamma_pos S(-x), N(x) = -p^gamma_neg log(1 - p) with p = u - clip, or exactly 0 where
/// u <= clip. Where detach_focus is 1, the powers count as constants in the slopes. Value and slope
/// are at most 8 ulp off for gammas <= 4 and clips <= 0.2 (9 for others); an x within 1 ulp of the
/// clip's edge may fall on either side of it. In double the edge is known to 64 bits: at a
/// distance below 1e-3 from it, errors grow as 1 / distance. A clip below the smallest normal
/// number counts as that.
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
    return clip > 0 ? std::log(clip) - std::log1p(-clip) : -HUGE_VALL;
  }
  struct Parameters {
    Exponent<Math> gamma_neg, gamma_pos;
    V of_negative, of_positive;  // the gammas as factors in the slopes
    bool clips;
    Pair<V> clip, unclipped, edge;  // m, 1 - m, logit(m)

    WEIGHTED_BCE_INLINE explicit Parameters(const Constants& constants)
        : gamma_neg(constants.parameters[0], constants.remainders[0]),
          gamma_pos(constants.parameters[1], constants.remainders[1]),
          clips(constants.derived - constants.derived == 0),
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
    const V most = Math::set(-Floating<E>::kLowest);  // infinity has no difference
    const Pair<V> most_of_d = sum(Math::select(x_ > most, most, x_), -parameters_.edge.high);
    const Pair<V> d = sum_of_larger(most_of_d.high, most_of_d.low - parameters_.edge.low);
    const auto counts = d.high > zero;
    const V nothing = v * zero;  // or NaN
    // A trained classifier has most of its negatives below the edge.
    if (!Math::any(counts)) return {zero, nothing, nothing};
    const Pair<V> p = clipped_u(d, counts);
    // 1 - p = v + clip is a sum of positive numbers, and p / (1 - p) the odds of p.
    const V inverse = Math::reciprocal(v + parameters_.clip.high);
    const V odds = p.high * inverse;
    const V log = log1p<Math>(odds);
    const V power = power_below(p);
    const V focus = power * p.high;
    const V slope = Math::fma(power * parameters_.of_negative, v * log, focus * (v * inverse));
    return {zero, Math::select(counts, focus * log, nothing),
            Math::select(counts, at_.u() * slope, nothing)};
  }

  /// p = u - clip. Near the edge, where that cancels, it is (1 - clip) u (1 - exp(-d)) with
  /// d = x - logit(clip). At least a tiny number, and 1 where it does not count: powers of what is
  /// computed there would be denormal, and slow.
  template <class Mask>
  WEIGHTED_BCE_INLINE Pair<V> clipped_u(Pair<V> d, Mask counts) const {
    const Pair<V> u = at_.u_pair();
    const Pair<V> far = sum_of_larger(u.high, -parameters_.clip.high);
    const V square = d.high * d.high;
    const Pair<V> e = sum_of_larger(d.high, -square * exp_series<Math>(-d.high));
    const Pair<V> exact = sum_of_larger(e.high, e.low + (d.low - d.low * d.high));
    const Pair<V> near = product<Math>(product<Math>(parameters_.unclipped, u), exact);
    const auto is_near = Math::set(E(0.34)) > d.high;
    const V high = Math::select(is_near, near.high, far.high);
    const V low = Math::select(is_near, near.low, far.low + (u.low - parameters_.clip.low));
    const V least = Math::max(high, Math::set(Floating<E>::kLeast));
    return sum_of_larger(Math::select(counts, least, Math::set(1)),
                         Math::select(counts, low, Math::set(0)));
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

}  // namespace weighted_bce
