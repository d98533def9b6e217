// The arguments of the test programs: [SEED [all]].
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "operand.h"

namespace native {

/// Seeds the draws, and prints the seed so that a failure can be repeated. Returns whether all
/// draws are to be made, and not just a few of them.
inline bool all_draws(int argc, char** argv) {
  const bool all = argc > 2 && std::strcmp(argv[2], "all") == 0;
  const uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : kSeed;
  engine().seed(seed);
  std::printf("seed %llu%s\n", static_cast<unsigned long long>(seed), all ? ", all draws" : "");
  return all;
}

}  // namespace native
