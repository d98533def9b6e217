// This includes what the kernels need from elsewhere. It comes before an instruction set is
// switched on: what is not a template of the kernels' own types is then compiled for the baseline,
// and no processor meets an instruction that it does not have.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/isa.h"
#include "problem.h"
