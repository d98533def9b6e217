// The formula for one element, and how close a result must come to it.
#pragma once

#include <cmath>

#include "problem.h"

namespace native {

using weighted_bce::Dtype;
using weighted_bce::Loss;
using weighted_bce::Problem;

/// The numbers of a call, which has operands too.
struct Numbers {
  Loss loss = Loss::kBce;
  double parameters[weighted_bce::kMaxParameters] = {};  // gamma and alpha
  double pos_weight = 1, weight = 1, label_smoothing = 0;
  bool ignores = false;
  double ignore_index = 0;
};

/// The value that an element or a sum should have, and what its rounding errors are relative to.
struct Expected {
  double value = 0, size = 0;
};
inline Expected scaled(const Expected& e, double by) {
  return {by * e.value, std::fabs(by) * e.size};
}
struct LossAndSlope {
  Expected loss, slope;
};

template <class T>
T softplus(T v) {
  return v > 0 ? v + std::log1p(std::exp(-v)) : std::log1p(std::exp(v));
}
template <class T>
T sigmoid(T v) {
  return 1 / (1 + std::exp(-v));
}
template <class T>
T product(T factor, T v) {
  return factor == 0 && !std::isnan(v) ? 0 : factor * v;
}

inline bool counts(const Numbers& numbers, double y) {
  if (!numbers.ignores) return true;
  return std::isnan(numbers.ignore_index) ? !std::isnan(y) : y != numbers.ignore_index;
}

/// The term of a negative and its slope. A positive's term is this one at -x, and its slope has the
/// opposite sign; but for alpha.
struct Term {
  long double value, slope;
};
inline Term term(const Numbers& numbers, long double x) {
  const long double u = sigmoid(x), v = sigmoid(-x), s = softplus(x);
  if (numbers.loss == Loss::kBce) return {s, u};
  const long double gamma = numbers.parameters[0];
  const long double power = std::exp(-product(gamma, softplus(-x)));  // u^gamma
  return {product(power, s), product(power, u + gamma * product(v, s))};
}
inline double alpha(const Numbers& numbers, bool positive) {
  const double given = numbers.parameters[1];
  if (numbers.loss == Loss::kBce || given < 0) return 1;
  return positive ? given : 1 - given;
}

inline LossAndSlope formula(const Numbers& numbers, double x, double y, double w, double p) {
  if (!counts(numbers, y)) return {};
  const long double smoothed = y * (1 - numbers.label_smoothing) + numbers.label_smoothing / 2;
  const long double a = product<long double>(w * smoothed, p) * alpha(numbers, true);
  const long double b = w * (1 - smoothed) * alpha(numbers, false);
  const Term positive = term(numbers, -x), negative = term(numbers, x);
  const auto loss = static_cast<double>(product(a, positive.value) + product(b, negative.value));
  const auto up = static_cast<double>(product(b, negative.slope));
  const auto down = static_cast<double>(product(a, positive.slope));
  return {{loss, loss}, {up - down, up + down}};
}

/// The error of a result, rounded to `dtype` at the end, in units of what is allowed.
inline double error_of(double got, const Expected& wanted, Dtype dtype, bool wide) {
  if (got == wanted.value || (std::isnan(got) && std::isnan(wanted.value))) return 0;
  const bool half = dtype == Dtype::kFloat16, bfloat = dtype == Dtype::kBFloat16;
  const double rounding = half ? 0x1p-10 : bfloat ? 0x1p-7 : 0;
  const double least = half ? 0x1p-24 : wide ? 0x1p-1060 : 0x1p-130;
  const double allowed =
      (wide ? 1e-13 : 2e-5) * wanted.size + rounding * std::fabs(wanted.value) + least;
  const double error = std::fabs(got - wanted.value) / allowed;
  return std::isnan(error) ? HUGE_VAL : error;
}

}  // namespace native
