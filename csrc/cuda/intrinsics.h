// What the kernels ask of the GPU: memory, threads, and the operations that C++ does not have.
// The tests give the same names to the host (tests/native/gpu.h).
#pragma once

#include <cstdint>

#define WEIGHTED_BCE_DEVICE __device__ __forceinline__
// A kernel has kThreads in a block, and a multiprocessor is to hold this many blocks.
#define WEIGHTED_BCE_KERNEL(blocks) \
  __global__ void __launch_bounds__(weighted_bce::cuda::kThreads, blocks)
#define WEIGHTED_BCE_PARAMETER __grid_constant__
#define WEIGHTED_BCE_SHARED __shared__

namespace weighted_bce::cuda {

constexpr int kTileBytes = 12288;  // of a block's shared memory, for sparse targets

WEIGHTED_BCE_DEVICE int thread() { return threadIdx.x; }
WEIGHTED_BCE_DEVICE int block() { return blockIdx.x; }
WEIGHTED_BCE_DEVICE int blocks() { return gridDim.x; }
WEIGHTED_BCE_DEVICE void barrier() { __syncthreads(); }
/// The value of the lane that is `offset` lanes higher. All 32 lanes of a warp call it.
WEIGHTED_BCE_DEVICE double from_higher_lane(double v, int offset) {
  return __shfl_down_sync(0xffffffffu, v, offset);
}

/// Loads kBytes from an address that is a multiple of them, 16 at a time. `streamed` says that they
/// are not read again soon.
template <int kBytes, bool streamed = true>
WEIGHTED_BCE_DEVICE void load(const void* from, uint32_t* to) {
  if constexpr (kBytes >= 16) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint4* const at = static_cast<const uint4*>(from) + i;
      const uint4 v = streamed ? __ldcs(at) : *at;
      to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
    }
  } else if constexpr (kBytes == 8) {
    const uint2* const at = static_cast<const uint2*>(from);
    const uint2 v = streamed ? __ldcs(at) : *at;
    to[0] = v.x, to[1] = v.y;
  } else if constexpr (kBytes == 4) {
    const uint32_t* const at = static_cast<const uint32_t*>(from);
    to[0] = streamed ? __ldcs(at) : *at;
  } else if constexpr (kBytes == 2) {
    const uint16_t* const at = static_cast<const uint16_t*>(from);
    to[0] = streamed ? __ldcs(at) : *at;
  } else {
    const uint8_t* const at = static_cast<const uint8_t*>(from);
    to[0] = streamed ? __ldcs(at) : *at;
  }
}

/// An address in shared memory, which stays in its register: the compiler would compute it anew for
/// each access.
using SharedAddress = uint32_t;
WEIGHTED_BCE_DEVICE SharedAddress shared_address(const void* at) {
  auto address = static_cast<uint32_t>(__cvta_generic_to_shared(at));
  asm volatile("" : "+r"(address));
  return address;
}

/// Starts to copy kBytes, 4, 8 or 16, to shared memory, as a part of the thread's next batch.
template <int kBytes>
WEIGHTED_BCE_DEVICE void copy_ahead(const void* from, SharedAddress to) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes)
                 : "memory");
  }
}
WEIGHTED_BCE_DEVICE void end_batch() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits for all batches of the thread but the last kLeft: for its own copies.
template <int kLeft>
WEIGHTED_BCE_DEVICE void wait_for_batches() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
/// Reads what copy_ahead has brought.
template <int kBytes>
WEIGHTED_BCE_DEVICE void load_copy(SharedAddress from, uint32_t* to) {
  if constexpr (kBytes == 16) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  } else if constexpr (kBytes == 8) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(from)
                 : "memory");
  } else if constexpr (kBytes == 4) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(to[0]) : "r"(from) : "memory");
  } else {
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(to[0]) : "r"(from) : "memory");
  }
}
/// Writes there, for the same thread.
template <int kBytes>
WEIGHTED_BCE_DEVICE void store_copy(SharedAddress to, const uint32_t* from) {
  if constexpr (kBytes == 8) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(from[0]), "r"(from[1])
                 : "memory");
  } else if constexpr (kBytes == 4) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(from[0]) : "memory");
  } else {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "r"(from[0]) : "memory");
  }
}

template <int kBytes>
WEIGHTED_BCE_DEVICE void store(void* to, const uint32_t* from) {
  if constexpr (kBytes == 16) {
    __stcs(static_cast<uint4*>(to), make_uint4(from[0], from[1], from[2], from[3]));
  } else if constexpr (kBytes == 8) {
    __stcs(static_cast<uint2*>(to), make_uint2(from[0], from[1]));
  } else if constexpr (kBytes == 4) {
    __stcs(static_cast<uint32_t*>(to), from[0]);
  } else {
    __stcs(static_cast<uint16_t*>(to), static_cast<uint16_t>(from[0]));
  }
}

WEIGHTED_BCE_DEVICE uint64_t high_product(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
/// The number of the lowest bit that is set.
WEIGHTED_BCE_DEVICE int lowest_bit(uint32_t v) { return __ffs(static_cast<int>(v)) - 1; }
WEIGHTED_BCE_DEVICE float magnitude(float v) { return fabsf(v); }
WEIGHTED_BCE_DEVICE double magnitude(double v) { return fabs(v); }
WEIGHTED_BCE_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
WEIGHTED_BCE_DEVICE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
WEIGHTED_BCE_DEVICE float from_bits(uint32_t v) { return __uint_as_float(v); }
WEIGHTED_BCE_DEVICE double from_bits(uint64_t v) { return __longlong_as_double(v); }
WEIGHTED_BCE_DEVICE uint32_t to_bits(float v) { return __float_as_uint(v); }
WEIGHTED_BCE_DEVICE uint64_t to_bits(double v) { return __double_as_longlong(v); }

/// 2^v for a normal result, at most 2 ulp off. A NaN gives NaN.
WEIGHTED_BCE_DEVICE float exp2_approximate(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}
/// 1 / v for a normal v and result, at most 1 ulp off. A NaN gives NaN.
WEIGHTED_BCE_DEVICE float reciprocal_approximate(float v) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

/// The larger; NaN where one is.
WEIGHTED_BCE_DEVICE float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
WEIGHTED_BCE_DEVICE double max_or_nan(double a, double b) { return a > b || a != a ? a : b; }
/// The larger; the other one where one is NaN.
WEIGHTED_BCE_DEVICE float max_number(float a, float b) { return fmaxf(a, b); }
WEIGHTED_BCE_DEVICE double max_number(double a, double b) { return fmax(a, b); }

WEIGHTED_BCE_DEVICE float from_float16(uint32_t bits) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(static_cast<uint16_t>(bits)));
  return result;
}
/// Two numbers, each rounded to the nearest, ties to even; `low` in the lower half.
WEIGHTED_BCE_DEVICE uint32_t to_float16s(float low, float high) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
WEIGHTED_BCE_DEVICE uint32_t to_bfloat16s(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

}  // namespace weighted_bce::cuda
