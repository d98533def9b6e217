// The arithmetic of a CUDA thread: its errors against what thread_math.h promises, and divisions.
#include "cuda_run.h"

namespace {

using namespace native;

/// How far a result is off, in units of the last place of the right one.
template <class T>
double ulps(T got, long double wanted) {
  constexpr int digits = sizeof(T) == 4 ? 24 : 53, lowest = sizeof(T) == 4 ? -149 : -1074;
  const int last = wanted > 0 ? std::max(std::ilogb(wanted) + 1 - digits, lowest) : lowest;
  return static_cast<double>(std::fabs(std::ldexp(got - wanted, -last)));
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
    exp.take(x, ulps(S::exp_minus_abs(x), std::exp(-static_cast<long double>(x))));
    const T r = std::ldexp(1 + share, static_cast<int>(draw(2 * top)) - top - 1);
    log.take(r, ulps(weighted_bce::log1p<S>(r), std::log1p(static_cast<long double>(r))));
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

/// Value and slope of both terms, where they are normal numbers.
template <class T>
bool focal(int draws, double gamma) {
  using Terms = weighted_bce::Focal<cuda::Scalar<T>>;
  char what[32];
  std::snprintf(what, sizeof(what), "focal of %g", gamma);
  Worst worst{what, sizeof(T) == 4 ? 16.0 : 6.0};
  Numbers numbers;
  numbers.loss = Loss::kFocal;
  numbers.parameters[0] = gamma;
  numbers.parameters[1] = -1;
  const typename Terms::Parameters parameters(constants<T>(numbers));
  const double most = (sizeof(T) == 4 ? 80 : 600) / (1 + gamma);
  for (int i = 0; i < draws; ++i) {
    const double share = static_cast<double>(draw(2000001) - 1000000) / 1000000;
    const auto x = static_cast<T>(share * (i % 2 ? 3 : most));
    const auto got = Terms(x, parameters).negative(1);
    const Term wanted = term(numbers, x);
    worst.take(x, ulps(got.rest, wanted.value));
    worst.take(x, ulps(got.slope, wanted.slope));
    const auto mirrored = Terms::hard(-x, true, {T(1), T(1)}, parameters);
    if (mirrored.rest != got.rest || mirrored.slope != got.slope) worst.take(x, HUGE_VAL);
  }
  return worst.passes();
}

template <class T>
bool arithmetic(int share) {
  bool passed = functions<T>(400000 / share);
  for (const double gamma : {0.0, 0.5, 1.0, 2.0, 2.7, 4.0}) {
    passed = focal<T>(40000 / share, gamma) && passed;
  }
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
