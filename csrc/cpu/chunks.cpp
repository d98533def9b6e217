#include "cpu/chunks.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cpu/isa.h"

namespace weighted_bce {
namespace {

/// Each chunk is summed on its own and the sums are added in order: the bits do not depend on who
/// computes which chunk.
constexpr int64_t kChunk = int64_t{1} << 15;

}  // namespace

double run_chunks(const Problem& problem) {
  const Run run = isa().run;
  if (problem.numel <= kChunk) return problem.numel == 0 ? 0 : run(problem, 0, problem.numel);
  const int64_t chunks = (problem.numel + kChunk - 1) / kChunk;
  std::vector<double> sums(chunks);
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      sums[c] = run(problem, c * kChunk, std::min((c + 1) * kChunk, problem.numel));
    }
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

double divisor_of(const Arguments& a, Problem problem) {
  if (const std::optional<double> divisor = a.divisor()) return *divisor;
  problem.mode = Mode::kCount;
  return run_chunks(problem);
}

double reduced(double sum, double divisor, int64_t numel) {
  return divisor == 0 && numel > 0 ? 0 : sum / divisor;
}

}  // namespace weighted_bce
