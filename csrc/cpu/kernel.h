// The CPU kernels, once for each level. Work goes block by block: operands that are not already a
// line of the compute type are converted into a buffer that stays in the L1 cache, the formula runs
// on whole vectors, and the result is converted back. So one kernel serves every dtype and layout.
// Half-precision logits and gradients in a line, which many have, are converted in registers.
//
// Included by level.h inside a level's namespace.

/// The part of a problem that is the same for every element, in the compute type.
template <class T>
struct Uniform {
  using S = Simd<T>;
  using V = typename S::Value;
  using Formula = LossMath<S>;

  V pos_weight, keep, shift;
  V scale, scale_low;  // the scale is their sum
  bool ignores, ignores_nan;
  V ignore_index;
  bool plain_negatives;  // an element with y = 0 has the coefficients 0 and 1, and no own factor

  explicit Uniform(const Problem& problem)
      : pos_weight(S::set(static_cast<T>(problem.pos_weight))),
        keep(S::set(static_cast<T>(1 - problem.label_smoothing))),
        shift(S::set(static_cast<T>(problem.label_smoothing / 2))),
        scale(S::set(static_cast<T>(problem.scale))),
        scale_low(S::set(remainder_of(problem.scale))),
        ignores(problem.ignores),
        ignores_nan(problem.ignore_index != problem.ignore_index),
        ignore_index(S::set(static_cast<T>(problem.ignore_index))),
        plain_negatives(problem.w.data == nullptr && problem.upstream.data == nullptr &&
                        problem.label_smoothing == 0 &&
                        !(problem.ignores && problem.ignore_index == 0)) {}

  /// What the scale loses in T.
  static T remainder_of(double scale) {
    const T rounded = static_cast<T>(scale);
    return std::isfinite(rounded) ? static_cast<T>(scale - static_cast<double>(rounded)) : T(0);
  }

  WEIGHTED_BCE_INLINE typename S::Mask ignored(V y) const {
    return ignores_nan ? y != y : y == ignore_index;
  }
};

enum class Mode { kLoss, kLossAndGrad, kGrad, kUnreduced };

/// A block of operands, but for the logits, as lines of T; targets of one byte stay bytes, in y8.
template <class T>
struct Lines {
  const T* y;
  const uint8_t* y8;
  uint8_t y8_most;  // 1 for bool and sparse labels: any other byte is true as well
  const T *w, *p, *upstream;
};

/// Whether any of the targets of the vector at i is not 0.
template <class T>
WEIGHTED_BCE_INLINE bool any_positive(const Lines<T>& in, int64_t i) {
  constexpr int kLanes = Simd<T>::kLanes;
  if (in.y8 == nullptr) return any_nonzero(Simd<T>::load(in.y + i));
  uint64_t first = 0, last = 0;  // one by one: GCC 12 takes an array of them by way of memory
  __builtin_memcpy(&first, in.y8 + i, std::min(kLanes, 8));
  if (kLanes > 8) __builtin_memcpy(&last, in.y8 + i + kLanes - 8, 8);
  return (first | last) != 0;
}

template <class T>
WEIGHTED_BCE_INLINE typename Simd<T>::Value load_targets(const Lines<T>& in, int64_t i, int64_t n) {
  if (in.y8 == nullptr) return Simd<T>::load(in.y + i);
  // Widened step by step: in one step, GCC 12 takes the bytes one by one.
  typename Types<T>::Bytes bytes{};
  __builtin_memcpy(&bytes, in.y8 + i, n);
  bytes = bytes > in.y8_most ? in.y8_most - typename Types<T>::Bytes{} : bytes;
  const auto words = __builtin_convertvector(bytes, typename Types<T>::Words);
  const auto ints = __builtin_convertvector(words, typename Types<T>::Ints);
  return __builtin_convertvector(ints, typename Types<T>::V);
}

/// Any element: the coefficients are made anew. Adds to `sum`, writes to `out`, as the mode wants.
template <class T, Mode mode, class In, class Out>
WEIGHTED_BCE_INLINE void general(const In* logits, const Lines<T>& in, const Uniform<T>& u,
                                 int64_t i, int64_t n, typename Simd<T>::Mask valid,
                                 typename Simd<T>::Value& sum, const Output<T, Out>& out) {
  using S = Simd<T>;
  using Formula = LossMath<S>;
  const auto x = Line<T, In>::load(logits + i), y = load_targets(in, i, n);
  if (u.ignores) valid &= ~u.ignored(y);
  auto c = Formula::coefficients(y, in.p ? S::load(in.p + i) : u.pos_weight, u.keep, u.shift);
  if (in.w) {
    const auto w = S::load(in.w + i);
    c = {w * c.positive, w * c.negative};
  }
  const auto z = S::exp_minus_abs(x);
  if (mode != Mode::kGrad) {
    const auto loss = S::select(valid, Formula::loss(x, z, c), S::set(0));
    sum += loss;
    if (mode == Mode::kUnreduced) out.put(i, loss);
  }
  if (mode == Mode::kLossAndGrad || mode == Mode::kGrad) {
    if (in.upstream) {
      c = Formula::scaled(c, u.scale * S::load(in.upstream + i), S::set(0));
    } else {
      c = Formula::scaled(c, u.scale, u.scale_low);
    }
    const auto gradient = Formula::gradient(x, z, c);
    out.put(i, S::select(valid, gradient, S::set(0)));
  }
}

/// A sum of losses. The negatives' log1p terms are not summed one by one: `products` holds, lane by
/// lane, prod(1 + z) - 1, whose log1p is the sum of their log1p(z). It keeps its relative accuracy
/// for tiny z.
template <class T>
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
  /// Adds the lanes of `sum` and the logarithms of a block's products.
  WEIGHTED_BCE_INLINE void add(V product, V sum) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double p = static_cast<double>(product[lane]);
      products_[lane] += p + p * products_[lane];
      sums_[lane] += static_cast<double>(sum[lane]);
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

/// In and Out: as what the logits and the results lie in memory.
template <class T, Mode mode, class In, class Out>
void block(const In* logits, const Lines<T>& in, const Uniform<T>& u, int64_t n, Sum<T>& total,
           const Output<T, Out>& out) {
  using S = Simd<T>;
  using V = typename S::Value;
  using Formula = LossMath<S>;
  V product = S::set(0), sum = S::set(0);
  int64_t i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes) {
    if (mode == Mode::kUnreduced || !u.plain_negatives || any_positive(in, i)) {
      general<T, mode>(logits, in, u, i, S::kLanes, ~typename S::Mask{}, sum, out);
      continue;
    }
    const V x = Line<T, In>::load(logits + i);
    const V z = S::exp_minus_abs(x);
    if (mode != Mode::kGrad) {
      product += S::fma(z, product, z);
      sum += Formula::linear_part_of_negative(x);
    }
    if (mode != Mode::kLoss) {
      out.put(i, u.scale * Formula::gradient_of_negative(x, z));
    }
  }
  if (i < n) {
    typename S::Mask valid{};
    for (int lane = 0; lane < n - i; ++lane) valid[lane] = -1;
    general<T, mode>(logits, in, u, i, n - i, valid, sum, out);
  }
  if (mode == Mode::kLoss || mode == Mode::kLossAndGrad) total.add(product, sum);
}

/// S: the dtype of the logits and of the results, where they may go through registers alone.
template <class T, Mode mode, class S>
double run_as(const Problem& problem, int64_t begin, int64_t end) {
  const Uniform<T> u(problem);
  Buffer<T> x, y, w, p, upstream, out;
  // Bytes are tested as they are, and converted only where there is a positive among them.
  const bool byte_targets = problem.y.dtype == Dtype::kBool || problem.y.dtype == Dtype::kUInt8;
  const bool tested = mode != Mode::kUnreduced && u.plain_negatives;
  const uint8_t most = problem.y.dtype == Dtype::kUInt8 ? 255 : 1;
  const auto* bytes = byte_targets && tested && problem.y.linear
                          ? static_cast<const uint8_t*>(problem.y.data)
                          : nullptr;
  const bool sparse = problem.positives.crow != nullptr;
  Marks marks(problem.positives, begin);
  Sum<T> sum;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min(kBlock, end - at);
    const uint8_t* const y8 = sparse ? marks.next(n) : bytes ? bytes + at : nullptr;
    const Lines<T> in{y8 ? nullptr : read(problem, problem.y, at, n, y),
                      y8,
                      most,
                      read(problem, problem.w, at, n, w),
                      read(problem, problem.p, at, n, p),
                      read(problem, problem.upstream, at, n, upstream)};
    if constexpr (!std::is_same_v<S, T>) {
      if (is_line<T, S>(problem.x, n) && (mode == Mode::kLoss || is_line<T, S>(problem.out, n))) {
        const S* const logits = static_cast<const S*>(problem.x.data) + at;
        const auto output = mode == Mode::kLoss ? Output<T, S>() : Output<T, S>(problem, at);
        block<T, mode>(logits, in, u, n, sum, output);
        continue;
      }
    }
    const bool straight = is_line<T, T>(problem.out, n);
    const auto output = straight ? Output<T, T>(problem, at) : Output<T, T>(out);
    block<T, mode>(read(problem, problem.x, at, n, x), in, u, n, sum, output);
    if (mode != Mode::kLoss && !straight) write(problem, at, n, out);
  }
#if defined(__SSE2__)
  if (problem.stream) _mm_sfence();
#endif
  return sum.total();
}

template <class T, Mode mode>
double run(const Problem& problem, int64_t begin, int64_t end) {
  if constexpr (Line<T, BFloat16>::kExists) {
    if (problem.x.dtype == Dtype::kBFloat16) return run_as<T, mode, BFloat16>(problem, begin, end);
  }
  if constexpr (Line<T, Half>::kExists) {
    if (problem.x.dtype == Dtype::kFloat16) return run_as<T, mode, Half>(problem, begin, end);
  }
  return run_as<T, mode, T>(problem, begin, end);
}

template <class T>
double count(const Problem& problem, int64_t begin, int64_t end) {
  const Uniform<T> u(problem);
  Buffer<T> buffer;
  const bool sparse = problem.positives.crow != nullptr;
  Marks marks(problem.positives, begin);
  int64_t valid = 0;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min(kBlock, end - at);
    const T* y = sparse ? buffer.values : read(problem, problem.y, at, n, buffer);
    if (sparse) load_run<uint8_t>(marks.next(n), 1, n, buffer.values);
    const T ignore = u.ignore_index[0];
    for (int64_t i = 0; i < n; ++i) valid += !(u.ignores_nan ? y[i] != y[i] : y[i] == ignore);
  }
  return static_cast<double>(valid);
}

template <class T>
constexpr Kernels kernels() {
  return {run<T, Mode::kLoss>, run<T, Mode::kLossAndGrad>, run<T, Mode::kGrad>,
          run<T, Mode::kUnreduced>, count<T>};
}
