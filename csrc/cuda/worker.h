// What one thread does with its elements, one at a time.
#pragma once

#include "cuda/lanes.h"

namespace weighted_bce::cuda {

/// The factor of the gradient: scale + low, which is more exact than T.
template <class T>
struct Scale {
  T scale, low;
};

/// What is the same for all elements.
template <class T>
struct Uniform : Numbers<T> {
  Scale<T> factor;
  T factor_of_positives;  // -pos_weight times that factor
  bool p_varies, w_varies, has_upstream;
  bool has_hard;  // hard targets go the short way; pos_weight is above 0 and finite, or varies
  uint64_t one;   // the bits of a hard positive
};

template <class T>
WEIGHTED_BCE_DEVICE const Numbers<T>& numbers_of(const Problem& problem) {
  if constexpr (sizeof(T) == 8) {
    return problem.wide;
  } else {
    return problem.narrow;
  }
}

template <class T>
WEIGHTED_BCE_DEVICE T read_scalar(const void* from) {
  return *static_cast<const volatile T*>(from);
}

/// Whether a target is one that does not count; NaN marks NaN.
template <class T>
WEIGHTED_BCE_DEVICE bool is_mark(T y, T ignore_index) {
  return ignore_index != ignore_index ? y != y : y == ignore_index;
}

/// v / divisor; where nothing counts although there are elements, 0 instead of 0 / 0.
WEIGHTED_BCE_DEVICE double divided(const Problem& problem, double v) {
  const double divisor = problem.count ? *problem.count : problem.divisor;
  return divisor == 0 && problem.numel > 0 ? 0 : v / divisor;
}

/// factor / divisor. One thread of a block computes it.
template <class T>
WEIGHTED_BCE_DEVICE Scale<T> scale_of(const Problem& problem, T factor) {
  const double exact = divided(problem, static_cast<double>(factor));
  const T scale = static_cast<T>(exact);
  const bool finite = scale - scale == 0;
  return {scale, finite ? static_cast<T>(exact - static_cast<double>(scale)) : T(0)};
}

template <class X, class T>
WEIGHTED_BCE_DEVICE Uniform<T> uniform_of(const Problem& problem, Scale<T> factor) {
  Uniform<T> u;
  static_cast<Numbers<T>&>(u) = numbers_of<T>(problem);
  const auto varies = [](const Operand& o) { return o.form >= Form::kLinear; };
  u.p_varies = varies(problem.p), u.w_varies = varies(problem.w);
  u.has_upstream = problem.upstream.form != Form::kAbsent;
  if (problem.p.form == Form::kUniform) u.pos_weight = factor_at<X, T>(problem, problem.p, 0);
  if (problem.w.form == Form::kUniform) u.weight = factor_at<X, T>(problem, problem.w, 0);
  u.factor = factor;
  u.factor_of_positives = -LossMath<Scalar<T>>::scaled(u.pos_weight, factor.scale, factor.low);
  const bool marks_hard = problem.ignores && (u.ignore_index == 0 || u.ignore_index == 1);
  const bool product = u.pos_weight > 0 && u.pos_weight - u.pos_weight == 0;
  u.has_hard = !u.w_varies && u.weight == 1 && !u.has_upstream && u.shift == 0 && !marks_hard &&
               (u.p_varies || product);
  u.one = bits_of_one(problem.y.dtype);
  return u;
}

/// The work of a thread: elements one by one, and the sum of their losses.
template <class X, Mode kMode>
class Worker {
 protected:
  using T = typename Arithmetic<X>::T;
  using S = Scalar<T>;
  using Formula = LossMath<S>;
  static constexpr bool kSums = kAddsUp<kMode>, kSlopes = kHasSlopes<kMode>;

  const Problem& problem_;
  const Uniform<T> u_;
  T sum_ = 0;  // of a few losses
  double total_ = 0;

 public:
  WEIGHTED_BCE_DEVICE Worker(const Problem& problem, Scale<T> factor)
      : problem_(problem), u_(uniform_of<X>(problem, factor)) {}

  /// To be called after some elements, so that few are summed in T.
  WEIGHTED_BCE_DEVICE void collect() {
    total_ += static_cast<double>(sum_);
    sum_ = 0;
  }
  WEIGHTED_BCE_DEVICE double total() const { return total_; }

  /// Any element of any target, with these factors. Returns what the mode writes.
  WEIGHTED_BCE_DEVICE T general(T x, T y, T w, T p, T upstream) {
    if (problem_.ignores && is_mark(y, u_.ignore_index)) return 0;
    auto c = Formula::coefficients(y, p, u_.keep, u_.shift);
    c = {w * c.positive, w * c.negative};
    const T z = S::exp_minus_abs(x);
    T out = 0;
    if constexpr (kMode != Mode::kGrad) {
      const T loss = Formula::loss(x, z, c);
      if constexpr (kSums) sum_ += loss;
      if constexpr (kMode == Mode::kUnreduced) out = loss;
    }
    if constexpr (kSlopes) {
      c = u_.has_upstream ? Formula::scaled(c, u_.factor.scale * upstream, T(0))
                          : Formula::scaled(c, u_.factor.scale, u_.factor.low);
      out = Formula::gradient(x, z, c);
    }
    return out;
  }

  /// Element i of the iteration, from memory to memory. kSparse: its target is 1 if `positive`.
  template <bool kSparse = false>
  WEIGHTED_BCE_DEVICE void element(int64_t i, bool positive = false) {
    int64_t of_x = 0, of_y = 0, of_out = 0;
    for_each_coordinate(problem_, i, [&](int d, int64_t at) {
      of_x += at * problem_.x.strides[d];
      if constexpr (!kSparse) of_y += at * problem_.y.strides[d];
      of_out += at * problem_.out.strides[d];
    });
    Bits<sizeof(X)> x;
    load<sizeof(X), false>(static_cast<const X*>(problem_.x.data) + of_x, x.words);
    T y = positive ? 1 : 0;
    if constexpr (!kSparse) y = decoded<T>(load_element(problem_.y, of_y), problem_.y.dtype);
    const T w = u_.w_varies ? factor_at<X, T>(problem_, problem_.w, i) : u_.weight;
    const T p = u_.p_varies ? factor_at<X, T>(problem_, problem_.p, i) : u_.pos_weight;
    T upstream = 1;
    if (kMode == Mode::kGrad && u_.has_upstream) {
      upstream = factor_at<X, T>(problem_, problem_.upstream, i);
    }
    const T result[1] = {general(widened<X>(x, 0), y, w, p, upstream)};
    if constexpr (kMode != Mode::kLoss) {
      X* const out = static_cast<X*>(const_cast<void*>(problem_.out.data));
      store<sizeof(X)>(out + of_out, narrowed<X>(result).words);
    }
  }
};

}  // namespace weighted_bce::cuda
