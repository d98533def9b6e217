// Operands for the native tests have any dtype and any layout, in memory that ends where the last
// element ends. What lies around it is poisoned, and checked where no sanitizer looks (streaming
// stores).
#pragma once

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "problem.h"

namespace native {

using weighted_bce::Dtype;
using Shape = std::vector<int64_t>;

constexpr uint64_t kSeed = 20240229;  // where a program is given none

/// All draws are made from these numbers.
inline std::mt19937_64& engine() {
  static std::mt19937_64 numbers(kSeed);
  return numbers;
}

/// A number in [0, n), the same on every run with the same seed.
inline int64_t draw(int64_t n) {
  return static_cast<int64_t>(engine()() % static_cast<uint64_t>(n));
}

/// Seeds the draws by the arguments of a program, [SEED [all]], and prints the seed so that a
/// failure can be repeated. Returns whether all draws are to be made, and not just a few of them.
inline bool all_draws(int argc, char** argv) {
  const bool all = argc > 2 && std::strcmp(argv[2], "all") == 0;
  const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : kSeed;
  engine().seed(seed);
  std::printf("seed %llu%s\n", static_cast<unsigned long long>(seed), all ? ", all draws" : "");
  return all;
}

/// Reads a number of 16 bits: a sign, 15 - m bits of exponent and m of mantissa.
inline double decode16(uint16_t bits, int m) {
  const int bias = (1 << (14 - m)) - 1, exponent = (bits & 0x7fff) >> m, fraction = bits % (1 << m);
  double magnitude =
      std::ldexp(fraction + (exponent > 0) * (1 << m), std::max(exponent, 1) - bias - m);
  if (exponent > 2 * bias) magnitude = fraction > 0 ? std::nan("") : HUGE_VAL;
  return bits >> 15 ? -magnitude : magnitude;
}

/// Rounds towards zero; from the first number that is too large on, to infinity.
inline uint16_t encode16(double value, int m) {
  const int bias = (1 << (14 - m)) - 1;
  if (std::isnan(value)) return 0x7fff;
  const double magnitude = std::fabs(value);
  const int exponent = std::max(1 - bias, std::min(std::ilogb(magnitude), bias + 1));
  // The leading bit of a normal number, which is not stored, adds the 1 missing in its exponent.
  int bits = (2 * bias + 1) << m;
  if (exponent <= bias) {
    bits = ((exponent + bias - 1) << m) + static_cast<int>(std::ldexp(magnitude, m - exponent));
  }
  return static_cast<uint16_t>(bits | std::signbit(value) << 15);
}

template <class T>
T peek(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}
template <class T>
void poke(char* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}

inline double decode(Dtype dtype, const char* at) {
  switch (dtype) {
    case Dtype::kBool: return peek<uint8_t>(at) != 0;
    case Dtype::kUInt8: return peek<uint8_t>(at);
    case Dtype::kInt8: return peek<int8_t>(at);
    case Dtype::kUInt16: return peek<uint16_t>(at);
    case Dtype::kInt16: return peek<int16_t>(at);
    case Dtype::kUInt32: return peek<uint32_t>(at);
    case Dtype::kInt32: return peek<int32_t>(at);
    case Dtype::kUInt64: return static_cast<double>(peek<uint64_t>(at));
    case Dtype::kInt64: return static_cast<double>(peek<int64_t>(at));
    case Dtype::kFloat16: return decode16(peek<uint16_t>(at), 10);
    case Dtype::kBFloat16: return decode16(peek<uint16_t>(at), 7);
    case Dtype::kFloat32: return peek<float>(at);
    default: return peek<double>(at);
  }
}

const char* const kNames[] = {"bool",     "uint8",   "int8",   "uint16", "int16",
                              "uint32",   "int32",   "uint64", "int64",  "float16",
                              "bfloat16", "float32", "float64"};
constexpr int kBytesOf[] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8};
inline bool is_floating(Dtype dtype) { return dtype >= Dtype::kFloat16; }

/// Integers take the whole part, -1 as their largest number where they have no sign.
inline void encode(Dtype dtype, double value, char* at) {
  if (dtype == Dtype::kFloat64) return poke(at, value);
  if (dtype == Dtype::kFloat32) return poke(at, static_cast<float>(value));
  if (dtype == Dtype::kFloat16) return poke(at, encode16(value, 10));
  if (dtype == Dtype::kBFloat16) return poke(at, encode16(value, 7));
  // Any byte but 0 is true.
  const int64_t yes = draw(20) ? 1 : 255;
  const int64_t whole = dtype == Dtype::kBool ? (value != 0) * yes : static_cast<int64_t>(value);
  std::memcpy(at, &whole, kBytesOf[static_cast<int>(dtype)]);  // little-endian
}

/// The last three repeat all, all but the innermost, and all but the outermost dimension.
enum class Layout { kDense, kStrided, kBroadcast, kUniform, kPerLabel, kPerRow };

class Tensor {
 public:
  weighted_bce::Operand operand;

  /// The address is `shift` elements after a multiple of 64.
  Tensor(const Shape& shape, Dtype dtype, Layout layout, int64_t shift) : shape_(shape) {
    operand.dtype = dtype;
    operand.element_size = kBytesOf[static_cast<int>(dtype)];
    const int64_t elements = set_strides(layout);
    begin_ = kGuard + shift * operand.element_size;
    end_ = begin_ + elements * operand.element_size;
    memory_ = static_cast<char*>(std::aligned_alloc(64, (end_ + kGuard + 63) / 64 * 64));
    std::memset(memory_, kUntouched, end_ + kGuard);
    operand.data = memory_ + begin_;
    ASAN_POISON_MEMORY_REGION(memory_, begin_);
    ASAN_POISON_MEMORY_REGION(memory_ + end_, kGuard);
  }
  /// The memory is address space that exists where it is touched, of as many elements and without
  /// guards, so that there may be more of them than any machine has memory for.
  Tensor(const Shape& shape, Dtype dtype, const Shape& strides, int64_t elements)
      : shape_(shape),
        begin_(0),
        end_(elements * kBytesOf[static_cast<int>(dtype)]),
        mapped_(true) {
    operand.dtype = dtype;
    operand.element_size = static_cast<uint8_t>(kBytesOf[static_cast<int>(dtype)]);
    std::copy(strides.begin(), strides.end(), operand.strides);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* const memory = mmap(nullptr, end_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
      std::printf("no address space for %lld bytes\n", static_cast<long long>(end_));
      std::abort();
    }
    operand.data = memory_ = static_cast<char*>(memory);
  }
  ~Tensor() {
    if (mapped_) {
      munmap(memory_, end_);
      return;
    }
    ASAN_UNPOISON_MEMORY_REGION(memory_, end_ + kGuard);
    std::free(memory_);
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  /// The i-th element of the row-major iteration.
  char* at(int64_t i) const {
    int64_t offset = 0;
    for (size_t d = shape_.size(); d-- > 0; i /= shape_[d]) {
      offset += i % shape_[d] * operand.strides[d];
    }
    return memory_ + begin_ + offset * operand.element_size;
  }
  double get(int64_t i) const { return decode(operand.dtype, at(i)); }
  /// The same for every NaN: which one an operation gives, the compiler may choose.
  uint64_t bits(int64_t i) const {
    if (std::isnan(get(i))) return ~uint64_t{0};
    uint64_t result = 0;
    std::memcpy(&result, at(i), operand.element_size);  // little-endian
    return result;
  }
  void set(int64_t i, double value) { encode(operand.dtype, value, at(i)); }
  void fill(double value) {
    int64_t count = 1;
    for (const int64_t size : shape_) count *= size;
    for (int64_t i = 0; i < count; ++i) set(i, value);
  }

  /// A value as the dtype holds it.
  double as_held(double value) const {
    if (std::isnan(value)) return value;
    char bytes[8];
    encode(operand.dtype, value, bytes);
    return decode(operand.dtype, bytes);
  }

  /// Whether all bytes that belong to none of the first n elements are as they were made, which
  /// ends the use of the tensor.
  bool kept_to_its_elements(const char* what, int64_t n) {
    ASAN_UNPOISON_MEMORY_REGION(memory_, end_ + kGuard);
    for (int64_t i = 0; i < n; ++i) std::memset(at(i), kUntouched, operand.element_size);
    const bool kept =
        std::all_of(memory_, memory_ + end_ + kGuard, [](char c) { return c == kUntouched; });
    if (!kept) std::printf("%s: wrote where no element lies\n", what);
    return kept;
  }

  void describe(const char* name) const {
    std::printf("  %s: %s, strides", name, kNames[static_cast<int>(operand.dtype)]);
    for (size_t d = 0; d < shape_.size(); ++d) std::printf(" %lld", (long long)operand.strides[d]);
    std::printf("\n");
  }

 private:
  static constexpr int64_t kGuard = 128;
  static constexpr char kUntouched = 0x5a;

  /// Returns how many elements the memory spans.
  int64_t set_strides(Layout layout) {
    const int dims = static_cast<int>(shape_.size());
    std::vector<int> order(dims);  // of the dimensions in memory
    for (int d = 0; d < dims; ++d) order[d] = d;
    const bool strided = layout == Layout::kStrided || layout == Layout::kBroadcast;
    const auto repeats = [&](int d) {
      return layout == Layout::kUniform || (layout == Layout::kBroadcast && draw(2)) ||
             (layout == Layout::kPerLabel && d < dims - 1) || (layout == Layout::kPerRow && d > 0);
    };
    if (strided) std::swap(order[draw(dims)], order[draw(dims)]);
    int64_t step = strided ? 1 + draw(2) : 1, last = 0;
    for (int k = dims - 1; k >= 0; --k) {
      const int d = order[k];
      operand.strides[d] = repeats(d) ? 0 : step;
      last += (shape_[d] - 1) * operand.strides[d];
      step = (last + 1) + (strided ? draw(3) : 0);
    }
    return last + 1;
  }

  Shape shape_;
  char* memory_;
  int64_t begin_, end_;
  bool mapped_ = false;  // else it is from the heap
};

}  // namespace native
