// Sums the losses of a range.
#pragma once

#include "cpu/operands.h"

namespace weighted_bce::WEIGHTED_BCE_ISA {
namespace {

/// The values of terms are summed here. Their logarithms are not summed one by one: `products_`
/// holds, lane by lane, prod(1 + z) - 1, whose log1p is the sum of their log1p(z). It keeps its
/// relative accuracy for tiny z.
template <class T, bool kHasLogarithm>
class Sum {
  using V = typename Simd<T>::Value;
  static constexpr int kLanes = Simd<T>::kLanes;
  // 1 + z is at most 2: a block's products are finite in T, and those of so many blocks in double.
  static constexpr int64_t kFactors = kBlock / kLanes;
  static constexpr int kMostBlocks = 1000 / kFactors;
  static_assert(kFactors < std::numeric_limits<T>::max_exponent, "a block must not overflow");

  double products_[kLanes] = {}, sums_[kLanes] = {}, total_ = 0;
  int blocks_ = 0;

 public:
  /// A block adds this.
  struct Part {
    V product = V{}, rest = V{};

    WEIGHTED_BCE_INLINE void add(const Term<V>& term) {
      if (kHasLogarithm) product += Simd<T>::fma(term.logarithm, product, term.logarithm);
      rest += term.rest;
    }
    WEIGHTED_BCE_INLINE void add_where(typename Simd<T>::Mask chosen, const Term<V>& term) {
      Part more = *this;
      more.add(term);
      product = Simd<T>::select(chosen, more.product, product);
      rest = Simd<T>::select(chosen, more.rest, rest);
    }
  };

  WEIGHTED_BCE_INLINE void add(Part part) {
    const V product = part.product, rest = part.rest;  // copies: `part` stays in registers
    for (int lane = 0; lane < kLanes; ++lane) {
      const double p = static_cast<double>(product[lane]);
      products_[lane] += p + p * products_[lane];
      sums_[lane] += static_cast<double>(rest[lane]);
    }
    if (++blocks_ == kMostBlocks) total();
  }

  double total() {
    for (int lane = 0; lane < kLanes; ++lane) {
      total_ += sums_[lane] + std::log1p(products_[lane]);
      products_[lane] = sums_[lane] = 0;
    }
    blocks_ = 0;
    return total_;
  }
};

}  // namespace
}  // namespace weighted_bce::WEIGHTED_BCE_ISA
