// The CPU kernels, once for each SIMD instruction set.
#pragma once

#include <string>

#include "problem.h"

namespace weighted_bce {

/// Computes elements [begin, end) of a problem, as its mode says, and returns their part of the sum
/// or of the count, in double precision; 0 for other modes.
using Run = double (*)(const Problem&, int64_t begin, int64_t end);

/// An Isa is all that is compiled for one instruction set.
struct Isa {
  const char* name;
  Run run;
};

/// Returns the best instruction set that this processor has, or the lower one that
/// WEIGHTED_BCE_SIMD names. Throws std::runtime_error, on each call, when the variable holds
/// another word.
const Isa& isa();

/// Makes all calls use its kernels from now on, those of other threads as well. It serves tests.
/// Throws std::runtime_error where nothing has the name or this processor does not have it.
void set_isa(const std::string& name);

/// Lists all that are compiled in, lowest first, and whether this processor has each. Returns how
/// many.
struct IsaInfo {
  const Isa* isa;
  bool supported;
};
constexpr int kMaxIsas = 3;
int isas(IsaInfo (&out)[kMaxIsas]);

}  // namespace weighted_bce
