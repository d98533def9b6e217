// The arithmetic of a CUDA thread: its errors against what thread_math.h promises, and divisions.
#include "cuda_run.h"
#include "draw_loss.h"

namespace {

using namespace native;

/// How far a result is off, in units of the last place of what errors are relative to.
template <class T>
double ulps(T got, const Exact& wanted) {
  constexpr int digits = sizeof(T) == 4 ? 24 : 53, lowest = sizeof(T) == 4 ? -149 : -1074;
  const int last =
      wanted.size > 0 ? std::max(std::ilogb(wanted.size) + 1 - digits, lowest) : lowest;
  return static_cast<double>(std::fabs(std::ldexp(got - wanted.value, -last)));
}

struct Worst {
  const char* what;
  double most, error = 0, at = 0;

  void take(double x, double e) {
    if (!(e <= error)) error = e, at = x;
  }
  bool passes() const {
    std::printf("%s: at most %.2f ulp off, at %.9g\n", what, error, at);
    return error <= most;
  }
};

template <class T>
bool functions(int draws) {
  using S = cuda::Scalar<T>;
  const int top = sizeof(T) == 4 ? 126 : 1000;
  Worst exp{"exp_minus_abs", sizeof(T) == 4 ? 5.0 : 1.0}, log{"log1p", 4};
  for (int i = 0; i < draws; ++i) {
    const T share = static_cast<T>(draw(int64_t{1} << 40)) * static_cast<T>(0x1p-40);
    const T x = share * static_cast<T>(i % 2 ? 2 : sizeof(T) == 4 ? 106 : 750);
    exp.take(x, ulps(S::exp_minus_abs(x), exact(std::exp(-static_cast<long double>(x)))));
    const T r = std::ldexp(1 + share, static_cast<int>(draw(2 * top)) - top - 1);
    log.take(r, ulps(weighted_bce::log1p<S>(r), exact(std::log1p(static_cast<long double>(r)))));
  }
  const T nan = static_cast<T>(std::nan(""));
  const bool specials = S::exp_minus_abs(0) == 1 && S::exp_minus_abs(-HUGE_VAL) == 0 &&
                        std::isnan(S::exp_minus_abs(nan)) && weighted_bce::log1p<S>(T(0)) == 0 &&
                        std::isnan(weighted_bce::log1p<S>(nan));
  const bool exact = approximate_error == Error::kNone;
  if (exact && !specials) std::printf("wrong at 0, infinity or NaN\n");
  const bool passed = exp.passes();
  return log.passes() && passed && (specials || !exact);
}

/// A loss, and by how many ulp its values and slopes may be off, in float and in double: what
/// csrc/cuda/thread_math.h promises.
struct Bounds {
  const char* what;
  Loss loss;
  double narrow, wide;
};
const Bounds kBounds[] = {
    {"BCE", Loss::kBce, 12, 8},
    {"focal", Loss::kFocal, 40, 8},
    {"squared hinge", Loss::kSquaredHinge, 4, 4},
    {"poly-1", Loss::kPoly1, 12, 8},
    {"Hill", Loss::kHill, 40, 8},
    {"asymmetric", Loss::kAsymmetric, 96, 10},
};

/// A logit, also near 0 and near the edge of a clip, where there is one.
template <class T>
T draw_logit(const Numbers& numbers) {
  const double share = static_cast<double>(draw(2000001) - 1000000) / 1000000;
  const double clip = numbers.loss == Loss::kAsymmetric ? numbers.parameters[2] : 0;
  if (clip > 0 && draw(4) == 0) {
    const double edge = std::log(clip / (1 - clip)), least = sizeof(T) == 4 ? 0x1p-20 : 0x1p-48;
    return static_cast<T>(edge + std::copysign(std::exp2(-20 * std::fabs(share)) + least, share));
  }
  return static_cast<T>(share * (draw(2) ? 3 : sizeof(T) == 4 ? 87 : 700));
}

/// Value and slope of both terms, and of a soft target.
template <class T>
bool terms(const Bounds& bounds, int draws) {
  Worst value{bounds.what, sizeof(T) == 4 ? bounds.narrow : bounds.wide}, slope = value;
  return weighted_bce::with_loss(bounds.loss, [&](auto kind) {
    using Terms = typename decltype(kind)::template Terms<cuda::Scalar<T>>;
    Numbers numbers;
    for (int i = 0; i < draws; ++i) {
      if (i % 100 == 0) draw_loss(numbers, bounds.loss);
      const typename Terms::Parameters parameters(constants<T>(numbers));
      const T x = draw_logit<T>(numbers);
      const auto wanted = terms_of(numbers.loss, numbers.parameters, x);
      const Terms got(x, parameters);
      value.take(x, ulps(got.value({0, 1}), wanted.negative.value));
      value.take(x, ulps(got.value({1, 0}), wanted.positive.value));
      slope.take(x, ulps(got.negative(1).slope, wanted.negative.slope));
      slope.take(x, ulps(got.positive(1).slope, wanted.positive.slope));
      // The coefficients are exact in T.
      value.take(x, ulps(got.value({0.25, 3}),
                         weighted_sum(0.25, wanted.positive.value, 3, wanted.negative.value)));
      slope.take(x, ulps(got.slope({0.25, 3}),
                         weighted_sum(0.25, wanted.positive.slope, 3, wanted.negative.slope)));
      for (const bool positive : {false, true}) {
        const auto hard = Terms::hard(x, positive, {T(-1), T(1)}, parameters);
        slope.take(x, ulps(hard.slope, positive ? wanted.positive.slope : wanted.negative.slope));
      }
    }
    const bool passed = value.passes();
    return slope.passes() && passed;
  });
}

template <class T>
bool arithmetic(int share) {
  bool passed = functions<T>(400000 / share);
  for (const Bounds& bounds : kBounds) passed = terms<T>(bounds, 200000 / share) && passed;
  return passed;
}

int64_t any_below(int bits) { return draw(int64_t{1} << (1 + draw(bits))); }

bool divisions(int draws) {
  for (int i = 0; i < draws; ++i) {
    const int64_t near = (int64_t{1} << draw(63)) + draw(3) - 1;
    const int64_t d = std::clamp<int64_t>(draw(2) ? near : any_below(62), 1, int64_t{1} << 62);
    const int64_t most = INT64_MAX / d * d;
    for (const int64_t n : {any_below(62), most, most - 1, draw(INT64_MAX / d) * d, INT64_MAX}) {
      if (cuda::quotient(n, weighted_bce::divider(d)) != n / d) {
        std::printf("%lld / %lld\n", (long long)n, (long long)d);
        return false;
      }
    }
  }
  return true;
}

bool offsets(int draws) {
  for (int i = 0; i < draws; ++i) {
    Shape shape(1 + draw(6));
    for (int64_t& size : shape) size = 1 + any_below(9);
    Problem problem = problem_of(shape);
    problem.x.data = &problem;
    for (int d = 0; d < problem.dims; ++d) problem.x.strides[d] = draw(3) * draw(1000);
    problem = planned(problem, Mode::kLoss, {});
    const int64_t element = draw(problem.numel);
    int64_t offset = 0, rest = element;
    for (int d = problem.dims - 1; d >= 0; rest /= problem.sizes[d--]) {
      offset += rest % problem.sizes[d] * problem.x.strides[d];
    }
    if (cuda::offset_of(problem, problem.x, element) != offset) return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int share = all_draws(argc, argv) ? 1 : 4;
  bool passed = divisions(300000 / share) && offsets(20000 / share);
  if (!passed) std::printf("wrong divisions\n");
  for (const Error error : {Error::kNone, Error::kHigh, Error::kLow, Error::kAny}) {
    approximate_error = error;
    passed = arithmetic<float>(share) && passed;
  }
  approximate_error = Error::kNone;
  return arithmetic<double>(share) && passed ? 0 : 1;
}
