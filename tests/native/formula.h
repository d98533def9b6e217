// The formula for one element, in double precision, and how close a result must come to it.
#pragma once

#include <cmath>

#include "problem.h"

namespace native {

using weighted_bce::Dtype;
using weighted_bce::Problem;

/// What an element or a sum should be, and what its rounding errors are relative to.
struct Expected {
  double value = 0, size = 0;
};
inline Expected scaled(const Expected& e, double by) {
  return {by * e.value, std::fabs(by) * e.size};
}
struct LossAndSlope {
  Expected loss, slope;
};

inline double softplus(double v) {
  return v > 0 ? v + std::log1p(std::exp(-v)) : std::log1p(std::exp(v));
}
inline double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
inline double product(double factor, double v) {
  return factor == 0 && !std::isnan(v) ? 0 : factor * v;
}

inline bool counts(const Problem& problem, double y) {
  if (!problem.ignores) return true;
  return std::isnan(problem.ignore_index) ? !std::isnan(y) : y != problem.ignore_index;
}

inline LossAndSlope formula(const Problem& problem, double x, double y, double w, double p) {
  if (!counts(problem, y)) return {};
  const double smoothed = y * (1 - problem.label_smoothing) + problem.label_smoothing / 2;
  const double a = w * p * smoothed, b = w * (1 - smoothed);
  const double loss = product(a, softplus(-x)) + product(b, softplus(x));
  const double up = product(b, sigmoid(x)), down = product(a, sigmoid(-x));
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
