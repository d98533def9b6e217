// Every kernel of every level against the formula, element by element in double precision. What is
// looked for is a wrong element, mask or stride and, by the sanitizers, a wrong access; so the
// tolerance is wide.
#include "case.h"
#include "cpu/levels.h"
#include "options.h"

namespace {

using namespace native;
using weighted_bce::Kernel;
using weighted_bce::Level;

// Around the vectors (2 to 16 elements) and the blocks (384 or 768) of all levels.
const int64_t kSizes[] = {1,   2,   3,   4,   5,   7,   8,   9,   15,   16,   17,   127,
                          128, 129, 383, 384, 385, 767, 768, 769, 1535, 1536, 1537, 3077};

Choices choices() {
  const std::vector<Layout> layouts = {Layout::kDense, Layout::kDense, Layout::kStrided,
                                       Layout::kBroadcast};
  std::vector<Dtype> factors;
  for (int k = 1; k < weighted_bce::kDtypes; ++k) factors.push_back(static_cast<Dtype>(k));
  return {layouts, layouts, factors, {std::begin(kFloats), std::end(kFloats)}, 4000};
}

/// Two chunks in either order: what one writes past its end then stays to be seen.
double in_chunks(Kernel kernel, const Problem& problem) {
  const int64_t ends[] = {0, draw(problem.numel + 1), problem.numel};
  const int64_t first = draw(2);
  double sum = 0;
  for (const int64_t k : {first, 1 - first}) {
    if (ends[k] < ends[k + 1]) sum += kernel(problem, ends[k], ends[k + 1]);
  }
  return sum;
}

/// Runs a kernel that writes, to memory of its own or over the logits.
bool writes(const Case& of, const char* what, Kernel kernel, Problem problem,
            const std::vector<Expected>& all, const Expected& sum) {
  const Layout layout = draw(2) ? Layout::kDense : Layout::kStrided;
  Tensor out(of.shape, of.dtype(), layout, draw(2));
  problem.out = out.operand;
  problem.stream = draw(2) == 0;
  if (draw(4) == 0) {
    for (int64_t i = 0; i < problem.numel; ++i) out.set(i, of.x.get(i));
    problem.x = out.operand;
  }
  if (!of.sum_is(what, in_chunks(kernel, problem), sum)) return false;
  if (!of.elements_are(what, out, all)) return false;
  if (out.surroundings_untouched(problem.numel)) return true;
  std::printf("%s: wrote where no element lies\n", what);
  return false;
}

bool passes(const Case& of, const Level& level) {
  const auto& kernels = of.wide() ? level.for_double : level.for_float;
  const Problem& problem = of.problem;
  Problem with_upstream = problem;
  if (of.upstream) with_upstream.upstream = of.upstream->operand;
  const double count = problem.ignores ? in_chunks(kernels.count, problem) : of.count;
  const bool passed =
      of.sum_is("loss", in_chunks(kernels.loss, problem), of.sum) &&
      of.sum_is("count", count, {of.count, 0}) &&
      writes(of, "loss_and_grad", kernels.loss_and_grad, problem, of.slopes, of.sum) &&
      writes(of, "grad", kernels.grad, with_upstream, of.grads, {}) &&
      writes(of, "unreduced", kernels.unreduced, problem, of.losses, {});
  if (!passed) of.describe(level.name);
  return passed;
}

}  // namespace

int main(int argc, char** argv) {
  const int draws = all_draws(argc, argv) ? 8 : 1;
  weighted_bce::LevelInfo levels[weighted_bce::kMaxLevels];
  const int count = weighted_bce::levels(levels);
  const Choices from = choices();
  const auto all_pass = [&](const Case& one) {
    return std::all_of(levels, levels + count, [&](const weighted_bce::LevelInfo& info) {
      return !info.supported || passes(one, *info.level);
    });
  };
  for (const Dtype logits : kFloats) {
    for (const int64_t size : kSizes) {
      for (int i = 0; i < draws; ++i) {
        for (int target = 0; target < weighted_bce::kDtypes; ++target) {
          if (!all_pass(Case(size, logits, static_cast<Dtype>(target), from))) return 1;
        }
        for (const int index_size : {4, 8}) {
          if (!all_pass(Case(size, logits, Dtype::kBool, from, index_size))) return 1;
        }
      }
    }
  }
  for (int k = 0; k < count; ++k) {
    std::printf("%s: %s\n", levels[k].level->name,
                levels[k].supported ? "passed" : "not supported");
  }
}
