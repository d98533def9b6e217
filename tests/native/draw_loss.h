// Draws the parameters of a loss.
#pragma once

#include "formula.h"
#include "operand.h"

namespace native {

template <class T>
T draw_of(const std::vector<T>& choices) {
  return choices[draw(static_cast<int64_t>(choices.size()))];
}

inline const std::vector<double> kGammas = {0, 0.5, 1, 2, 2.7, 4}, kClips = {0, 0.05, 0.2};

inline void draw_loss(Numbers& numbers, Loss loss) {
  const auto set = [&](const std::vector<double>& parameters) {
    numbers.loss = loss;
    std::copy(parameters.begin(), parameters.end(), numbers.parameters);
  };
  const double gamma = draw_of(kGammas);
  switch (loss) {
    case Loss::kFocal: return set({gamma, draw_of<double>({-1, 0, 0.25, 1})});
    case Loss::kPoly1: return set({draw_of<double>({-1, 0, 0.3, 1, 2.5})});
    case Loss::kHill:
      return set({draw_of<double>({1, 1.5, 2.1}), draw_of<double>({0, 0.7, 1, -2}), gamma});
    case Loss::kAsymmetric:
      return set({gamma, draw_of(kGammas), draw_of(kClips), draw_of<double>({0, 1})});
    default: return set({});
  }
}

}  // namespace native
