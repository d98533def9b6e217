// The kernels for x86-64 with AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)
#include "cpu/before_isa.h"

#if defined(__clang__)
#pragma clang attribute push(                                                         \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,f16c")
#endif

#define WEIGHTED_BCE_AVX512
#define WEIGHTED_BCE_ISA avx512
#define WEIGHTED_BCE_VECTOR_BYTES 64
#include "cpu/kernel.h"
#include "cpu/step.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace weighted_bce {
extern const Isa kAvx512;
const Isa kAvx512{"avx512", avx512::run, avx512::sgd, avx512::adam};
}  // namespace weighted_bce
#endif
