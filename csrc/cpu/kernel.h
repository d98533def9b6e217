// The CPU kernels, once for each level. Work goes block by block: operands that are not already a
// line of the compute type are converted into a buffer that stays in the L1 cache, the formula runs
// on whole vectors, and the result is converted back. So one kernel serves every dtype and layout.
//
// Included by level_*.cpp inside its namespace, after vec.h and convert.h.

/// Elements. So many factors of 2, the most that 1 + z can be, are finite: 96 in each lane of
/// floats, all of them together in a double.
constexpr int64_t kBlock = kBytes == 16 ? 384 : 768;

/// Where element `row * sizes[last]` of the iteration lies, in elements of the operand.
inline int64_t row_offset(const Problem& problem, const Operand& o, int64_t row) {
  int64_t offset = 0;
  for (int d = problem.dims - 2; d > 0; --d) {
    offset += row % problem.sizes[d] * o.strides[d];
    row /= problem.sizes[d];
  }
  return problem.dims > 1 ? offset + row * o.strides[0] : 0;
}

/// Calls run(pointer, stride, count, position) for the evenly spaced runs of elements
/// [begin, begin + n) of an operand; position counts from 0.
template <class Run>
inline void for_each_run(const Problem& problem, const Operand& o, int64_t begin, int64_t n,
                         const Run& run) {
  const auto* base = static_cast<const char*>(o.data);
  if (o.linear) return run(base + begin * o.element_size, int64_t{1}, n, int64_t{0});
  const int64_t inner = problem.sizes[problem.dims - 1];
  const int64_t stride = o.strides[problem.dims - 1];
  int64_t row = begin / inner, column = begin % inner;
  for (int64_t done = 0; done < n; column = 0, ++row) {
    const int64_t count = std::min(n - done, inner - column);
    const int64_t offset = row_offset(problem, o, row) + column * stride;
    run(base + offset * o.element_size, stride, count, done);
    done += count;
  }
}

template <class T>
struct Buffer {
  alignas(64) T values[kBlock];
};

/// Elements [begin, begin + n) as a line of T that may be read up to a whole vector: in place where
/// memory has it so, otherwise in the buffer, the rest of its last vector filled with zeros.
template <class T>
const T* read(const Problem& problem, const Operand& o, int64_t begin, int64_t n,
              Buffer<T>& buffer) {
  if (o.data == nullptr) return nullptr;
  constexpr Dtype kSame = sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;
  constexpr int64_t kLanes = Simd<T>::kLanes;
  if (o.linear && o.dtype == kSame && n % kLanes == 0) return static_cast<const T*>(o.data) + begin;
  const Load<T> load = loader<T>(o.dtype);
  for_each_run(problem, o, begin, n,
               [&](const char* from, int64_t stride, int64_t count, int64_t position) {
                 load(from, stride, count, buffer.values + position);
               });
  for (int64_t i = n; i % kLanes != 0; ++i) buffer.values[i] = 0;
  return buffer.values;
}

/// Copies whole cache lines to `to`, which is aligned to them, without reading it first.
inline void stream_lines(char* to, const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kBytes) {
#if defined(WEIGHTED_BCE_AVX512)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i),
                        bits<__m512i>(*reinterpret_cast<const VecI*>(from + i)));
#elif defined(WEIGHTED_BCE_AVX2)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        bits<__m256i>(*reinterpret_cast<const VecI*>(from + i)));
#elif defined(__SSE2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     bits<__m128i>(*reinterpret_cast<const VecI*>(from + i)));
#else
    __builtin_memcpy(to + i, from + i, kBytes);
#endif
  }
}

/// Rounds the block to the output's dtype and writes it.
template <class T>
void write(const Problem& problem, int64_t begin, int64_t n, const Buffer<T>& buffer) {
  const Operand& o = problem.out;
  const Store<T> store = storer<T>(o.dtype);
  const int64_t bytes = n * o.element_size;
  char* to = static_cast<char*>(const_cast<void*>(o.data)) + begin * o.element_size;
  if (o.linear && problem.stream && bytes % 64 == 0 && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    if (o.element_size == sizeof(T)) {
      return stream_lines(to, reinterpret_cast<const char*>(buffer.values), bytes);
    }
    Buffer<uint16_t> narrowed;
    store(buffer.values, 1, n, narrowed.values);
    return stream_lines(to, reinterpret_cast<const char*>(narrowed.values), bytes);
  }
  for_each_run(problem, o, begin, n,
               [&](const char* at, int64_t stride, int64_t count, int64_t position) {
                 store(buffer.values + position, stride, count, const_cast<char*>(at));
               });
}

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
  bool plain_negatives;  // an element with y = 0 has the coefficients 0 and 1

  explicit Uniform(const Problem& problem)
      : pos_weight(S::set(static_cast<T>(problem.pos_weight))),
        keep(S::set(static_cast<T>(1 - problem.label_smoothing))),
        shift(S::set(static_cast<T>(problem.label_smoothing / 2))),
        scale(S::set(static_cast<T>(problem.scale))),
        scale_low(S::set(remainder_of(problem.scale))),
        ignores(problem.ignores),
        ignores_nan(problem.ignore_index != problem.ignore_index),
        ignore_index(S::set(static_cast<T>(problem.ignore_index))),
        plain_negatives(problem.w.data == nullptr && problem.label_smoothing == 0 &&
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

/// A block of operands as lines of T; targets of one byte stay bytes, in y8.
template <class T>
struct Lines {
  const T* x;
  const T* y;
  const uint8_t* y8;
  const T *w, *p, *upstream;
};

/// Whether any of the targets of the vector at i is not 0.
template <class T>
WEIGHTED_BCE_INLINE bool any_positive(const Lines<T>& in, int64_t i) {
  constexpr int kLanes = Simd<T>::kLanes;
  if (in.y8 == nullptr) return any_nonzero(Simd<T>::load(in.y + i));
  uint64_t words[(kLanes + 7) / 8] = {};
  __builtin_memcpy(words, in.y8 + i, kLanes);
  return kLanes > 8 ? (words[0] | words[kLanes / 8 - 1]) != 0 : words[0] != 0;
}

template <class T>
WEIGHTED_BCE_INLINE typename Simd<T>::Value load_targets(const Lines<T>& in, int64_t i, int64_t n) {
  if (in.y8 == nullptr) return Simd<T>::load(in.y + i);
  alignas(64) T values[Simd<T>::kLanes] = {};
  if (n == Simd<T>::kLanes) {
    for (int k = 0; k < Simd<T>::kLanes; ++k) values[k] = static_cast<T>(in.y8[i + k]);
  } else {
    for (int64_t k = 0; k < n; ++k) values[k] = static_cast<T>(in.y8[i + k]);
  }
  return Simd<T>::load(values);
}

/// Any element: the coefficients are made anew. Adds to `sum`, writes to `out`, as the mode wants.
template <class T, Mode mode>
WEIGHTED_BCE_INLINE void general(const Lines<T>& in, const Uniform<T>& u, int64_t i, int64_t n,
                                 typename Simd<T>::Mask valid, typename Simd<T>::Value& sum,
                                 T* out) {
  using S = Simd<T>;
  using Formula = LossMath<S>;
  const auto x = S::load(in.x + i), y = load_targets(in, i, n);
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
    if (mode == Mode::kUnreduced) S::store(out + i, loss);
  }
  if (mode == Mode::kLossAndGrad || mode == Mode::kGrad) {
    if (in.upstream) {
      const auto upstream = S::load(in.upstream + i);
      c = Formula::scaled(c, u.scale * upstream, u.scale_low * upstream);
    } else {
      c = Formula::scaled(c, u.scale, u.scale_low);
    }
    const auto gradient = Formula::gradient(x, z, c);
    S::store(out + i, S::select(valid, gradient, S::set(0)));
  }
}

/// One block. The negatives' log1p terms are not summed one by one: `product` holds, lane by lane,
/// prod(1 + z) - 1, and one log1p of it gives the sum of their log1p(z). It keeps its relative
/// accuracy for tiny z, and kBlock factors cannot overflow.
template <class T, Mode mode>
double block(const Lines<T>& in, const Uniform<T>& u, int64_t n, T* out) {
  using S = Simd<T>;
  using V = typename S::Value;
  using Formula = LossMath<S>;
  V product = S::set(0), sum = S::set(0);
  int64_t i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes) {
    if (mode == Mode::kUnreduced || mode == Mode::kGrad || !u.plain_negatives ||
        any_positive(in, i)) {
      general<T, mode>(in, u, i, S::kLanes, ~typename S::Mask{}, sum, out);
      continue;
    }
    const V x = S::load(in.x + i);
    const V z = S::exp_minus_abs(x);
    product += S::fma(z, product, z);
    sum += Formula::linear_part_of_negative(x);
    if (mode == Mode::kLossAndGrad) {
      S::store(out + i, u.scale * Formula::gradient_of_negative(x, z));
    }
  }
  if (i < n) {
    typename S::Mask valid{};
    for (int lane = 0; lane < n - i; ++lane) valid[lane] = -1;
    general<T, mode>(in, u, i, n - i, valid, sum, out);
  }
  if (mode == Mode::kGrad || mode == Mode::kUnreduced) return 0;
  double products[S::kLanes], sums[S::kLanes];
  for (int lane = 0; lane < S::kLanes; ++lane) {
    products[lane] = static_cast<double>(product[lane]);
    sums[lane] = static_cast<double>(sum[lane]);
  }
  for (int half = S::kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      products[lane] += products[lane + half] + products[lane] * products[lane + half];
      sums[lane] += sums[lane + half];
    }
  }
  return sums[0] + std::log1p(products[0]);
}

template <class T, Mode mode>
double run(const Problem& problem, int64_t begin, int64_t end) {
  const Uniform<T> u(problem);
  Buffer<T> x, y, w, p, upstream, out;
  // Bytes are tested as they are, and converted only where there is a positive among them.
  const bool byte_targets = problem.y.dtype == Dtype::kBool || problem.y.dtype == Dtype::kUInt8;
  const bool tested = (mode == Mode::kLoss || mode == Mode::kLossAndGrad) && u.plain_negatives;
  const auto* bytes = byte_targets && tested && problem.y.linear
                          ? static_cast<const uint8_t*>(problem.y.data)
                          : nullptr;
  double sum = 0;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min(kBlock, end - at);
    const Lines<T> in{
        read(problem, problem.x, at, n, x), bytes ? nullptr : read(problem, problem.y, at, n, y),
        bytes ? bytes + at : nullptr,       read(problem, problem.w, at, n, w),
        read(problem, problem.p, at, n, p), read(problem, problem.upstream, at, n, upstream)};
    sum += block<T, mode>(in, u, n, out.values);
    if (mode != Mode::kLoss) write(problem, at, n, out);
  }
#if defined(__SSE2__)
  if (problem.stream) _mm_sfence();
#endif
  return sum;
}

template <class T>
double count(const Problem& problem, int64_t begin, int64_t end) {
  const Uniform<T> u(problem);
  Buffer<T> buffer;
  int64_t valid = 0;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min(kBlock, end - at);
    const T* y = read(problem, problem.y, at, n, buffer);
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
