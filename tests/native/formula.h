// The formula for one element, and how close a result must come to it.
#pragma once

#include <cmath>

#include "truth.h"

namespace native {

using weighted_bce::Dtype;
using weighted_bce::Problem;

/// The numbers of a call, which has operands too.
struct Numbers {
  Loss loss = Loss::kBce;
  double parameters[weighted_bce::kMaxParameters] = {};
  double pos_weight = 1, weight = 1, label_smoothing = 0;
  bool ignores = false;
  double ignore_index = 0;
};

/// The value that an element or a sum should have, and what its rounding errors are relative to.
struct Expected {
  double value = 0, size = 0;
};
inline Expected scaled(const Expected& e, double by) {
  return {product(by, e.value), product(std::fabs(by), e.size)};
}
struct LossAndSlope {
  Expected loss, slope;
};

inline bool counts(const Numbers& numbers, double y) {
  if (!numbers.ignores) return true;
  return std::isnan(numbers.ignore_index) ? !std::isnan(y) : y != numbers.ignore_index;
}

inline LossAndSlope formula(const Numbers& numbers, double x, double y, double w, double p) {
  if (!counts(numbers, y)) return {};
  const long double smoothed = y * (1 - numbers.label_smoothing) + numbers.label_smoothing / 2;
  const long double a = product<long double>(w * smoothed, p), b = w * (1 - smoothed);
  const Terms terms = terms_of(numbers.loss, numbers.parameters, x);
  const auto expected = [&](const Exact& positive, const Exact& negative) {
    const Exact sum = weighted_sum(a, positive, b, negative);
    return Expected{static_cast<double>(sum.value), static_cast<double>(sum.size)};
  };
  return {expected(terms.positive.value, terms.negative.value),
          expected(terms.positive.slope, terms.negative.slope)};
}

/// The error of a result, rounded to `dtype` at the end, in units of what is allowed.
inline double error_of(double got, const Expected& wanted, Dtype dtype, bool wide) {
  if (got == wanted.value || (std::isnan(got) && std::isnan(wanted.value))) return 0;
  const bool half = dtype == Dtype::kFloat16, bfloat = dtype == Dtype::kBFloat16;
  const double rounding = half ? 0x1p-10 : bfloat ? 0x1p-7 : 0;
  const double most = half ? 65504 : wide ? HUGE_VAL : 0x1p128;
  if (std::isinf(got) && std::fabs(wanted.value) > most)
    return got * wanted.value < 0 ? HUGE_VAL : 0;
  const double least = half ? 0x1p-24 : wide ? 0x1p-1060 : 0x1p-130;
  const double allowed =
      (wide ? 1e-13 : 2e-5) * wanted.size + rounding * std::fabs(wanted.value) + least;
  const double error = std::fabs(got - wanted.value) / allowed;
  return std::isnan(error) ? HUGE_VAL : error;
}

}  // namespace native
