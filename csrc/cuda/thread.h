// Computes the elements of one thread, one at a time.
#pragma once

#include "cuda/loss_sets.h"
#include "cuda/targets.h"

namespace weighted_bce::cuda {

/// The threads of a block share these. One of them computes them, and shared memory brings them to
/// the registers of all: the compiler would load an argument of the kernel anew for each use.
template <class T>
struct BlockConstants {
  Pair<T> scale;  // what a gradient is multiplied by
  T pos_weight;
  T positive_factor;  // of the slope of a hard positive: -pos_weight times the scale
  bool hard_fast_path;
  bool own_p;  // whether hard positives are computed one by one, each with its pos_weight
};

/// Where there are sums, shared memory holds copies, and each thread takes one by its number. The
/// compiler would keep what it knows to be the same for all threads in a register that arithmetic
/// cannot read, and there are too few others to copy it to.
template <Mode kMode>
constexpr int kCopies = kSums<kMode> ? 2 : 1;

/// Returns v / divisor, or 0 instead of 0 / 0 where nothing counts although there are elements.
WEIGHTED_BCE_DEVICE double divided(const Problem& problem, const Workspace& workspace, double v) {
  const double divisor = workspace.count ? *workspace.count : problem.divisor;
  return divisor == 0 && problem.numel > 0 ? 0 : v / divisor;
}

/// An element has a logit and these.
template <class T>
struct Factors {
  T y, w, p, grad_output;
};

/// A Thread computes elements one by one, and the sum of their losses.
template <class Losses, class X, Targets kTargets, Mode kMode>
class Thread {
 protected:
  using T = typename Arithmetic<X>::T;
  using S = Scalar<T>;

  const Problem& problem_;
  const CallConstants<T>& constants_;
  const BlockConstants<T> shared_;
  T sum_ = 0;  // of a few losses
  double total_ = 0;

 public:
  WEIGHTED_BCE_DEVICE Thread(const Problem& problem, const BlockConstants<T>& shared)
      : problem_(problem), constants_(constants_of<T>(problem)), shared_(shared) {}

  /// Callers do this after some elements, so that few are summed in T.
  WEIGHTED_BCE_DEVICE void collect() {
    total_ += static_cast<double>(sum_);
    sum_ = 0;
  }
  WEIGHTED_BCE_DEVICE double total() const { return total_; }

  /// Computes an element with any target. Returns what the mode writes.
  WEIGHTED_BCE_DEVICE T general(T x, const Factors<T>& of) {
    if (problem_.ignores && is_ignored(of.y, constants_.ignore_index)) return 0;
    Coefficients<T> c = coefficients<S>(of.y, of.p, constants_.keep, constants_.shift);
    c = {of.w * c.positive, of.w * c.negative};
    Coefficients<T> of_slopes{};
    if constexpr (kHasGrad<kMode>) {
      of_slopes = has_own_grad_output() ? scaled<S>(c, shared_.scale.high * of.grad_output, T(0))
                                        : scaled<S>(c, shared_.scale.high, shared_.scale.low);
    }
    const auto [value, slope] =
        with_loss([&](auto loss) { return value_and_slope(loss, x, c, of_slopes); });
    if constexpr (kSums<kMode>) sum_ += value;
    return kMode == Mode::kUnreduced ? value : slope;
  }

  /// Computes element i of the iteration, from memory to memory. `positive` is its target, where
  /// targets are sparse.
  WEIGHTED_BCE_DEVICE void element(int64_t i, bool positive) {
    int64_t of_x = 0, of_y = 0, of_out = 0;
    for_each_coordinate(problem_, i, [&](int d, int64_t at) {
      of_x += at * problem_.x.strides[d];
      if constexpr (kTargets != Targets::kSparse) of_y += at * problem_.y.strides[d];
      if constexpr (kMode != Mode::kLoss) of_out += at * problem_.out.strides[d];
    });
    Bits<sizeof(X)> x;
    load<sizeof(X), false>(static_cast<const X*>(problem_.x.data) + of_x, x.words);
    const T result[1] = {general(widened<X>(x, 0), factors_at(i, of_y, positive))};
    if constexpr (kMode != Mode::kLoss) {
      X* const out = static_cast<X*>(const_cast<void*>(problem_.out.data));
      store<sizeof(X)>(out + of_out, narrowed<X>(result).words);
    }
  }

 protected:
  /// Reads the factors of element i of the iteration, whose target lies at of_y.
  WEIGHTED_BCE_DEVICE Factors<T> factors_at(int64_t i, int64_t of_y, bool positive) const {
    Factors<T> of{T(positive), constants_.weight, shared_.pos_weight, T(1)};
    if constexpr (kTargets != Targets::kSparse) {
      of.y = decoded<T>(load_element(problem_.y, of_y), problem_.y.dtype);
    }
    if (problem_.w.data != nullptr) of.w = factor_at<X, T>(problem_, problem_.w, i);
    if (problem_.p.form > Form::kUniform) of.p = factor_at<X, T>(problem_, problem_.p, i);
    if (has_own_grad_output()) {
      of.grad_output = factor_at<X, T>(problem_, problem_.grad_output, i);
    }
    return of;
  }

  /// Returns visit(Chosen<...>()) for the loss of the call.
  template <class Visit>
  WEIGHTED_BCE_DEVICE auto with_loss(const Visit& visit) const {
    return Losses::with_loss(problem_.loss, [&](auto loss) {
      using Terms = typename decltype(loss)::template Terms<S>;
      return visit(Chosen<Terms>{typename Terms::Parameters(constants_)});
    });
  }

  /// Tells whether each element has a grad_output of its own. The scale contains that of all.
  WEIGHTED_BCE_DEVICE bool has_own_grad_output() const {
    return kMode == Mode::kGrad && problem_.grad_output.form >= Form::kContiguous;
  }

 private:
  struct ValueAndSlope {
    T value, slope;  // the one that the mode does not need is 0
  };
  template <class Terms>
  WEIGHTED_BCE_DEVICE ValueAndSlope value_and_slope(const Chosen<Terms>& loss, T x,
                                                    Coefficients<T> c,
                                                    Coefficients<T> of_slopes) const {
    ValueAndSlope sum{};
    if constexpr (!Losses::kChooses) {
      const Terms terms(x, loss.parameters);
      if constexpr (kMode != Mode::kGrad) sum.value = terms.value(c);
      if constexpr (kHasGrad<kMode>) sum.slope = terms.slope(of_slopes);
    } else {
      // Most targets need one term, which is long; but a NaN must come through.
      of_slopes.positive = -of_slopes.positive;
#pragma unroll 1
      for (int side = 0; side < 2; ++side) {
        const bool positive = side != 0;
        const T coefficient = positive ? c.positive : c.negative;
        if (coefficient == 0 && x == x) continue;
        const Term<T> term = Terms::hard(x, positive, of_slopes, loss.parameters);
        if constexpr (kMode != Mode::kGrad) {
          sum.value += weighted<S>(coefficient, Terms::whole(term));
        }
        if constexpr (kHasGrad<kMode>) sum.slope += term.slope;
      }
    }
    return sum;
  }
};

}  // namespace weighted_bce::cuda
