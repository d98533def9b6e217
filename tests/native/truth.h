// The terms of all losses in long double: the truth of the native tests.
#pragma once

#include <cmath>

#include "problem.h"

namespace native {

using weighted_bce::Loss;

template <class T>
T softplus(T v) {
  return v > 0 ? v + std::log1p(std::exp(-v)) : std::log1p(std::exp(v));
}
template <class T>
T sigmoid(T v) {
  return 1 / (1 + std::exp(-v));
}
/// A factor of 0 makes infinity 0.
template <class T>
T product(T factor, T v) {
  return factor == 0 && !std::isnan(v) ? 0 : factor * v;
}

/// A number, and what errors are relative to: the sum of the absolute parts where it is less.
struct Exact {
  long double value, size;
};
inline Exact exact(long double value) { return {value, std::fabs(value)}; }

/// a P + b N, of values or of slopes.
inline Exact weighted_sum(long double a, const Exact& p, long double b, const Exact& n) {
  return {product(a, p.value) + product(b, n.value), product(a, p.size) + product(b, n.size)};
}

struct Term {
  Exact value, slope;
};
struct Terms {
  Term positive, negative;  // P and N
};

/// The term of a negative at -x, as that of a positive at x.
inline Term mirrored(const Term& term) {
  return {term.value, {-term.slope.value, term.slope.size}};
}
inline Term times(long double factor, const Term& term) {
  return {exact(product(factor, term.value.value)), exact(product(factor, term.slope.value))};
}

/// u^gamma S(x). Its slope is that of S alone where the power counts as a constant.
inline Term focal(long double x, long double gamma, bool detached = false) {
  const long double u = sigmoid(x), v = sigmoid(-x), s = softplus(x);
  const long double power = std::exp(-product(gamma, softplus(-x)));
  const long double of_power = detached ? 0 : gamma * product(v, s);
  return {exact(product(power, s)), exact(product(power, u + of_power))};
}

/// -q^gamma log(1 - q) with q = u - clip where that is above 0, elsewhere 0.
inline Term clipped(long double x, long double gamma, long double clip, bool detached) {
  if (clip == 0 || std::isnan(x)) return focal(x, gamma, detached);
  const long double u = sigmoid(x), v = sigmoid(-x), edge = std::log(clip / (1 - clip));
  if (x <= edge) return {};
  const long double q = -std::expm1(edge - x) * u * (1 - clip);
  const long double log = q < 0.5L ? -std::log1p(-q) : -std::log(v + clip);
  const long double power = std::pow(q, gamma), of_power = detached ? 0 : gamma * log / q;
  return {exact(power * log), exact(power * u * v * (1 / (v + clip) + of_power))};
}

inline Term hill(long double x, long double lam) {
  const long double u = sigmoid(x), v = sigmoid(-x);
  const bool cancels = lam < 1.5L;
  const Exact value{(lam - u) * u * u, (std::fabs(lam) + u) * u * u};
  const Exact slope{u * u * v * (2 * lam - 3 + 3 * v),
                    u * u * v * (std::fabs(2 * lam - 3) + 3 * v)};
  return cancels ? Term{value, slope} : Term{exact(value.value), exact(slope.value)};
}

inline Term poly1(long double x, long double epsilon) {
  const long double u = sigmoid(x), v = sigmoid(-x), s = softplus(x), size = std::fabs(epsilon);
  return {{s + epsilon * u, s + size * u}, {u * (1 + epsilon * v), u * (1 + size * v)}};
}

inline Term squared_hinge(long double x) {
  const long double margin = x < -1 ? 0 : 1 + x;
  return {exact(margin * margin), exact(2 * margin)};
}

inline Terms terms_of(Loss loss, const double* parameters, long double x) {
  const double first = parameters[0], second = parameters[1], third = parameters[2];
  switch (loss) {
    case Loss::kFocal: {
      const double of_positive = second < 0 ? 1 : second, of_negative = second < 0 ? 1 : 1 - second;
      return {times(of_positive, mirrored(focal(-x, first))), times(of_negative, focal(x, first))};
    }
    case Loss::kSquaredHinge: return {mirrored(squared_hinge(-x)), squared_hinge(x)};
    case Loss::kPoly1: return {mirrored(poly1(-x, first)), poly1(x, first)};
    case Loss::kHill: return {mirrored(focal(second - x, third)), hill(x, first)};
    case Loss::kAsymmetric: {
      const bool detached = parameters[3] != 0;
      return {mirrored(focal(-x, second, detached)), clipped(x, first, third, detached)};
    }
    case Loss::kBce: break;
  }
  return {mirrored(focal(-x, 0)), focal(x, 0)};
}

}  // namespace native
