// Says which losses a kernel is compiled for: one by itself, or all others together.
#pragma once

#include <type_traits>

#include "losses.h"

namespace weighted_bce::cuda {

/// These kernels compute BCE alone: its terms are so short that a choice would cost much, and most
/// calls are of it.
struct BceAlone {
  static constexpr bool kChooses = false;

  template <class Visit>
  static WEIGHTED_BCE_DEVICE auto with_loss(Loss, const Visit& visit) {
    return visit(LossOf<Bce>());
  }
};

/// These kernels compute any loss but BCE. They choose it once for each group of elements, which
/// costs about 6 instructions, so that another loss needs no kernel of its own.
struct AllOthers {
  static constexpr bool kChooses = true;

  /// Returns visit(LossOf<...>()).
  template <class Visit>
  static WEIGHTED_BCE_DEVICE auto with_loss(Loss loss, const Visit& visit) {
    using Result = decltype(visit(LossOf<Focal>()));
    return weighted_bce::with_loss(loss, [&](auto one) -> Result {
      if constexpr (std::is_same_v<decltype(one), LossOf<Bce>>) {
        __builtin_unreachable();
      } else {
        return visit(one);
      }
    });
  }
};

/// The loss of a call, as the type of its terms.
template <class Terms>
struct Chosen {
  typename Terms::Parameters parameters;
};

}  // namespace weighted_bce::cuda
