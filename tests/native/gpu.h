// The names of csrc/cuda/intrinsics.h on the host, so that the kernels run without a GPU: on the
// fibers of block.h, with every address checked as a GPU would.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>

#include "block.h"
#include "operand.h"

#define WEIGHTED_BCE_DEVICE inline
#define WEIGHTED_BCE_KERNEL(blocks) void
#define WEIGHTED_BCE_PARAMETER
#define WEIGHTED_BCE_SHARED static thread_local

namespace native {

/// The error that approximate functions make, of those that they are allowed to.
enum class Error { kNone, kHigh, kLow, kAny };
inline Error approximate_error = Error::kNone;

inline void require_aligned(const void* at, int bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) fail("an access that is not aligned");
}

inline float flushed(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v; }

/// Returns a number that is off by at most `ulps`, the same for the same number.
inline float perturbed(float v, int ulps) {
  if (!std::isfinite(v) || std::fabs(v) < 0x1p-126f) return flushed(v);
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const int any = static_cast<int>((bits * 2654435761u >> 16) % (2 * ulps + 1)) - ulps;
  const int choices[] = {0, ulps, -ulps, any};
  bits += choices[static_cast<int>(approximate_error)];
  std::memcpy(&v, &bits, 4);
  return flushed(v);
}

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

/// The copies that a thread has started. A GPU may make them at once, or at the latest when the
/// thread waits: every other thread does so at once, the others at the latest.
class Copies {
  struct Copy {
    const void* from;
    char* to;
    int bytes;
    int64_t batch;
  };
  std::deque<Copy> pending_;
  int64_t batch_ = 0;

 public:
  static Copies& mine() {
    static Copies all[Block::kThreads];
    return all[Block::instance().thread()];
  }

  void start(const void* from, char* to, int bytes) {
    if (Block::instance().thread() % 2 == 0) {
      std::memcpy(to, from, bytes);
    } else {
      pending_.push_back({from, to, bytes, batch_});
    }
  }
  void end_batch() { ++batch_; }
  void wait(int left) {
    for (; !pending_.empty() && pending_[0].batch < batch_ - left; pending_.pop_front()) {
      std::memcpy(pending_[0].to, pending_[0].from, pending_[0].bytes);
    }
  }
};

/// Rounds to the nearest, ties to even.
inline uint16_t nearest16(float v, int mantissa) {
  if (!std::isfinite(v)) return encode16(v, mantissa);
  const int smallest = 2 - (1 << (14 - mantissa));  // exponent of a normal number
  const double step = std::ldexp(1.0, std::max(smallest, std::ilogb(v)) - mantissa);
  return encode16(std::nearbyint(v / step) * step, mantissa);
}

}  // namespace native

namespace weighted_bce::cuda {

constexpr int kTileBytes = 4096;  // fewer, so that small cases have several tiles

inline int thread() { return native::Block::instance().thread(); }
inline int block() { return native::Block::instance().number; }
inline int blocks() { return native::Block::instance().blocks; }
inline void barrier() { native::Block::instance().barrier(); }
inline double from_higher_lane(double v, int offset) {
  return native::Block::instance().from_higher_lane(v, offset);
}

template <int kBytes, bool streamed = true>
inline void load(const void* from, uint32_t* to) {
  native::require_aligned(from, kBytes < 16 ? kBytes : 16);
  if constexpr (kBytes < 4) to[0] = 0;
  std::memcpy(to, from, kBytes);
}
using SharedAddress = char*;
inline SharedAddress shared_address(const void* at) {
  return static_cast<char*>(const_cast<void*>(at));
}
template <int kBytes>
inline void copy_ahead(const void* from, SharedAddress to) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  native::require_aligned(from, kBytes);
  native::require_aligned(to, kBytes);
  native::Copies::mine().start(from, to, kBytes);
}
inline void end_batch() { native::Copies::mine().end_batch(); }
template <int kLeft>
inline void wait_for_batches() {
  native::Copies::mine().wait(kLeft);
}
template <int kBytes>
inline void load_copy(SharedAddress from, uint32_t* to) {
  load<kBytes>(from, to);
}
template <int kBytes>
inline void store_copy(SharedAddress to, const uint32_t* from) {
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8);
  native::require_aligned(to, kBytes);
  std::memcpy(to, from, kBytes);
}
template <int kBytes>
inline void store(void* to, const uint32_t* from) {
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
  native::require_aligned(to, kBytes);
  std::memcpy(to, from, kBytes);
}

inline uint64_t high_product(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int lowest_bit(uint32_t v) { return __builtin_ctz(v); }
inline float magnitude(float v) { return std::fabs(v); }
inline double magnitude(double v) { return std::fabs(v); }
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline double fused(double a, double b, double c) { return std::fma(a, b, c); }
inline float from_bits(uint32_t v) { return native::same_bits<float>(v); }
inline double from_bits(uint64_t v) { return native::same_bits<double>(v); }
inline uint32_t to_bits(float v) { return native::same_bits<uint32_t>(v); }
inline uint64_t to_bits(double v) { return native::same_bits<uint64_t>(v); }

inline float exp2_approximate(float v) {
  return native::perturbed(static_cast<float>(std::exp2(double{native::flushed(v)})), 2);
}
inline float reciprocal_approximate(float v) {
  return native::perturbed(static_cast<float>(1 / double{native::flushed(v)}), 1);
}

inline float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }
inline double max_or_nan(double a, double b) { return a > b || a != a ? a : b; }
inline float max_number(float a, float b) { return std::fmax(a, b); }
inline double max_number(double a, double b) { return std::fmax(a, b); }

inline float from_float16(uint32_t bits) {
  return static_cast<float>(native::decode16(static_cast<uint16_t>(bits), 10));
}
inline uint32_t to_float16s(float low, float high) {
  return native::nearest16(low, 10) | uint32_t{native::nearest16(high, 10)} << 16;
}
inline uint32_t to_bfloat16s(float low, float high) {
  return native::nearest16(low, 7) | uint32_t{native::nearest16(high, 7)} << 16;
}

}  // namespace weighted_bce::cuda
