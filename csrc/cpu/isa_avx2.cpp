// The kernels for x86-64 with AVX2.
#if defined(__x86_64__)
#include "cpu/before_isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2,f16c")
#endif

#define WEIGHTED_BCE_AVX2
#define WEIGHTED_BCE_ISA avx2
#define WEIGHTED_BCE_VECTOR_BYTES 32
#include "cpu/kernel.h"
#include "cpu/step.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace weighted_bce {
extern const Isa kAvx2;
const Isa kAvx2{"avx2", avx2::run, avx2::sgd, avx2::adam};
}  // namespace weighted_bce
#endif
