// From operands to lines of a block's elements in the compute type, and back. Included by level.h
// inside a level's namespace.

constexpr int64_t kBlock = 16 * kBytes;  // elements; 64 vectors of floats

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

/// Elements of a group of Line<T, S>.
template <class T, class S>
constexpr int64_t kGroup = Line<T, S>::kVectors * Simd<T>::kLanes;

/// Whether n elements of an operand are whole groups that lie in memory as S, one after the other.
template <class T, class S>
bool is_line(const Operand& o, int64_t n) {
  return o.linear && o.dtype == kDtypeOf<S> && n % kGroup<T, S> == 0;
}

/// Elements [begin, begin + n) as a line of T that may be read up to a whole vector: in place where
/// memory has it so, otherwise in the buffer, the rest of its last vector filled with zeros.
template <class T>
const T* read(const Problem& problem, const Operand& o, int64_t begin, int64_t n,
              Buffer<T>& buffer) {
  if (o.data == nullptr) return nullptr;
  constexpr int64_t kLanes = Simd<T>::kLanes;
  if (is_line<T, T>(o, n)) return static_cast<const T*>(o.data) + begin;
  const Load<T> load = loader<T>(o.dtype);
  for_each_run(problem, o, begin, n,
               [&](const char* from, int64_t stride, int64_t count, int64_t position) {
                 load(from, stride, count, buffer.values + position);
               });
  for (int64_t i = n; i % kLanes != 0; ++i) buffer.values[i] = 0;
  return buffer.values;
}

/// Where the results of a block go: straight to memory where that is a line of S, otherwise into
/// the buffer.
template <class T, class S>
struct Output {
  S* line = nullptr;    // null: there are none
  bool stream = false;  // past the caches

  Output() = default;
  explicit Output(Buffer<S>& buffer) : line(buffer.values) {}
  Output(const Problem& problem, int64_t begin)
      : line(static_cast<S*>(const_cast<void*>(problem.out.data)) + begin),
        stream(problem.stream &&
               reinterpret_cast<uintptr_t>(line) % (kGroup<T, S> * sizeof(S)) == 0) {}

  template <int n>
  WEIGHTED_BCE_INLINE void put(int64_t i, const typename Simd<T>::Value (&group)[n]) const {
    stream ? Line<T, S>::stream(line + i, group) : Line<T, S>::store(line + i, group);
  }
};

/// Rounds a block in the buffer to the output's dtype and writes it.
template <class T>
void write(const Problem& problem, int64_t begin, int64_t n, const Buffer<T>& buffer) {
  const Operand& o = problem.out;
  const Store<T> store = storer<T>(o.dtype);
  for_each_run(problem, o, begin, n,
               [&](const char* at, int64_t stride, int64_t count, int64_t position) {
                 store(buffer.values + position, stride, count, const_cast<char*>(at));
               });
}
