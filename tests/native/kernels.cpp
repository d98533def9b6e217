// Every kernel of every instruction set against the formula, element by element in double
// precision. What is looked for is a wrong element, mask or stride and, by the sanitizers, a wrong
// access; so the tolerance is wide.
#include "case.h"
#include "cpu/isa.h"

namespace {

using namespace native;
using weighted_bce::Isa;
using weighted_bce::IsaInfo;

// Around the vectors (2 to 16 elements) and the blocks (384 or 768) of all instruction sets.
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
double in_chunks(const Isa& isa, const Problem& problem) {
  const int64_t ends[] = {0, draw(problem.numel + 1), problem.numel};
  const int64_t first = draw(2);
  double sum = 0;
  for (const int64_t k : {first, 1 - first}) {
    if (ends[k] < ends[k + 1]) sum += isa.run(problem, ends[k], ends[k + 1]);
  }
  return sum;
}

/// Computes a mode that writes, to memory of its own or over the logits.
bool writes(const Case& one, const char* what, const Isa& isa, Mode mode, Problem problem,
            const std::vector<Expected>& all, const Expected& sum, double scale = 1) {
  const Layout layout = draw(2) ? Layout::kDense : Layout::kStrided;
  Tensor out(one.shape, one.dtype(), layout, draw(2));
  problem.out = out.operand;
  problem.non_temporal = draw(2) == 0;
  if (draw(4) == 0) {
    for (int64_t i = 0; i < problem.numel; ++i) out.set(i, one.x.get(i));
    problem.x = out.operand;
  }
  if (!one.sum_is(what, in_chunks(isa, planned(problem, mode, one.numbers)), sum)) return false;
  return one.elements_are(what, out, all, scale) && out.kept_to_its_elements(what, problem.numel);
}

bool passes(const Case& one, const Isa& isa) {
  const double grad_output = draw(2) ? 1 : -2.5;
  const auto narrow = static_cast<float>(grad_output);
  Problem problem = one.problem;
  problem.divisor = draw(2) ? 1 : 1.5;
  const double share = 1 / problem.divisor;
  Problem uniformly = problem, each = problem;
  uniformly.grad_output =
      one.wide() ? uniform(&grad_output, Dtype::kFloat64) : uniform(&narrow, Dtype::kFloat32);
  if (grad_output == 1 && draw(2)) uniformly.grad_output = {};
  if (one.grad_output) each.grad_output = one.grad_output->operand;

  const auto sum_of = [&](Mode mode) {
    return in_chunks(isa, planned(problem, mode, one.numbers));
  };
  const double count = one.numbers.ignores ? sum_of(Mode::kCount) : one.count;
  const bool passed = one.sum_is("loss", sum_of(Mode::kLoss), one.sum) &&
                      one.sum_is("count", count, {one.count, 0}) &&
                      writes(one, "loss_and_grad", isa, Mode::kLossAndGrad, uniformly, one.slopes,
                             one.sum, share * grad_output) &&
                      writes(one, "grad", isa, Mode::kGrad, each, one.grads, {}, share) &&
                      writes(one, "unreduced", isa, Mode::kUnreduced, problem, one.losses, {});
  if (!passed) one.describe(isa.name);
  return passed;
}

}  // namespace

int main(int argc, char** argv) {
  const int draws = all_draws(argc, argv) ? 8 : 1;
  IsaInfo isas[weighted_bce::kMaxIsas];
  const int count = weighted_bce::isas(isas);
  const Choices from = choices();
  const auto all_pass = [&](const Case& one) {
    return std::all_of(isas, isas + count, [&](const IsaInfo& info) {
      return !info.supported || passes(one, *info.isa);
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
    std::printf("%s: %s\n", isas[k].isa->name, isas[k].supported ? "passed" : "not supported");
  }
}
