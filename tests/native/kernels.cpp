// Every kernel of every level against the formula, element by element in double precision. What is
// looked for is a wrong element, mask or stride and, by the sanitizers, a wrong access; so the
// tolerance is wide.
#include <cstdio>
#include <memory>

#include "formula.h"
#include "operand.h"

namespace {

using namespace native;
using weighted_bce::Kernel;
using weighted_bce::Level;
using weighted_bce::Operand;

// Around the vectors (2 to 16 elements) and the blocks (384 or 768) of all levels.
const int64_t kSizes[] = {1,   2,   3,   4,   5,   7,   8,   9,   15,   16,   17,   127,
                          128, 129, 383, 384, 385, 767, 768, 769, 1535, 1536, 1537, 3077};
constexpr int kDraws = 8;
constexpr int64_t kMostElements = 4000;
const Dtype kFloats[] = {Dtype::kFloat16, Dtype::kBFloat16, Dtype::kFloat32, Dtype::kFloat64};

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

Shape draw_shape(int64_t size) {
  Shape shape{size};
  for (int64_t more = draw(4); more > 0 && size * 3 <= kMostElements; --more) {
    const int64_t other = 2 + draw(2);
    shape.insert(shape.begin() + draw(static_cast<int64_t>(shape.size()) + 1), other);
    size *= other;
  }
  return shape;
}

Layout draw_layout() { return static_cast<Layout>(std::max<int64_t>(draw(4) - 1, 0)); }

class Case {
 public:
  Case(int64_t size, Dtype logits, Dtype targets)
      : shape_(draw_shape(size)),
        x_(shape_, logits, draw_layout(), draw(3)),
        y_(shape_, targets, draw_layout(), draw(3)) {
    problem_.dims = static_cast<int>(shape_.size());
    problem_.numel = 1;
    for (int d = 0; d < problem_.dims; ++d) problem_.numel *= problem_.sizes[d] = shape_[d];
    if (draw(3) == 0) problem_.label_smoothing = 0.125;
    problem_.pos_weight = 0.5 * static_cast<double>(draw(9));
    problem_.scale = draw(2) ? 1 : -2.5;
    draw_logits();
    draw_targets();
    if (draw(3) == 0) w_ = draw_factor(static_cast<Dtype>(1 + draw(12)), 0, 1.5, &problem_.w);
    if (draw(3) == 0) p_ = draw_factor(static_cast<Dtype>(1 + draw(12)), 0, 4, &problem_.p);
    if (draw(2) == 0) upstream_ = draw_factor(kFloats[draw(4)], -2, 2, &upstream_operand_);
    problem_.x = x_.operand;
    problem_.y = y_.operand;
    for (int64_t i = 0; i < problem_.numel; ++i) expect(i);
  }

  bool passes(const Level& level) const {
    const auto& kernels = wide() ? level.for_double : level.for_float;
    Problem with_upstream = problem_;
    with_upstream.upstream = upstream_operand_;
    const double count = problem_.ignores ? in_chunks(kernels.count, problem_) : count_;
    const bool passed = sum_is("loss", in_chunks(kernels.loss, problem_), sum_) &&
                        sum_is("count", count, {count_, 0}) &&
                        writes("loss_and_grad", kernels.loss_and_grad, problem_, slopes_, sum_) &&
                        writes("grad", kernels.grad, with_upstream, grads_, {}) &&
                        writes("unreduced", kernels.unreduced, problem_, losses_, {});
    if (!passed) describe(level.name);
    return passed;
  }

 private:
  void draw_logits() {
    const double wild[] = {HUGE_VAL, -HUGE_VAL, std::nan(""), 5e3, -5e3, 1e30, -1e30, 103.5, -0.0};
    const bool has_wild = draw(4) == 0;
    const double most = draw(8) ? 10 : 0;  // at 0 the products of 1 + exp(-|x|) are the largest
    for (int64_t i = 0; i < problem_.numel; ++i) {
      const double moderate = most * static_cast<double>(draw(2001) - 1000) / 1000;
      const double any = has_wild && draw(8) == 0 ? wild[draw(9)] : moderate;
      x_.set(i, draw(10) ? any : moderate * 15);
    }
  }

  /// Few positives, so that whole vectors are without; soft ones in floating dtypes. Some are
  /// marked by a value to ignore, or by a NaN that counts.
  void draw_targets() {
    const bool soft = is_floating(y_.operand.dtype);
    const double marks[] = {0, -1, std::nan(""), std::nan("")};
    const int64_t rarity = draw(3) ? 50 : 2, kind = draw(6);
    const bool marked = kind < (soft ? 4 : 2);
    for (int64_t i = 0; i < problem_.numel; ++i) {
      const double y = draw(rarity) ? 0 : soft ? static_cast<double>(1 + draw(64)) / 64 : 1;
      y_.set(i, marked && draw(5) == 0 ? marks[kind] : y);
    }
    problem_.ignores = kind < 3;
    if (problem_.ignores) problem_.ignore_index = y_.as_held(marks[kind]);
  }

  std::unique_ptr<Tensor> draw_factor(Dtype dtype, double low, double high, Operand* operand) {
    auto factor = std::make_unique<Tensor>(shape_, dtype, draw_layout(), draw(3));
    for (int64_t i = 0; i < problem_.numel; ++i) {
      factor->set(i, low + (high - low) * static_cast<double>(draw(1000)) / 1000);
    }
    *operand = factor->operand;
    return factor;
  }

  void expect(int64_t i) {
    const double w = w_ ? w_->get(i) : 1, p = p_ ? p_->get(i) : problem_.pos_weight;
    auto [loss, slope] = formula(problem_, x_.get(i), y_.get(i), w, p);
    slope = {problem_.scale * slope.value, std::fabs(problem_.scale) * slope.size};
    const double upstream = upstream_ ? upstream_->get(i) : 1;
    losses_.push_back(loss);
    slopes_.push_back(slope);
    grads_.push_back({upstream * slope.value, std::fabs(upstream) * slope.size});
    sum_ = {sum_.value + loss.value, sum_.size + loss.size};
    count_ += counts(problem_, y_.get(i));
  }

  bool wide() const { return x_.operand.dtype == Dtype::kFloat64; }

  bool sum_is(const char* what, double got, const Expected& wanted) const {
    if (error_of(got, wanted, Dtype::kFloat64, wide()) <= 1) return true;
    std::printf("%s: returned %.9g, expected %.9g\n", what, got, wanted.value);
    return false;
  }

  bool elements_are(const char* what, const Tensor& out, const std::vector<Expected>& all) const {
    double worst = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < problem_.numel; ++i) {
      const double error = error_of(out.get(i), all[i], x_.operand.dtype, wide());
      if (error > worst) worst = error, at = i;
    }
    if (worst <= 1) return true;
    std::printf("%s: element %lld of %lld is %.9g, expected %.9g\n", what, (long long)at,
                (long long)problem_.numel, out.get(at), all[at].value);
    return false;
  }

  /// Runs a kernel that writes, to memory of its own or over the logits.
  bool writes(const char* what, Kernel kernel, Problem problem, const std::vector<Expected>& all,
              const Expected& sum) const {
    const Layout layout = draw(2) ? Layout::kDense : Layout::kStrided;
    Tensor out(shape_, x_.operand.dtype, layout, draw(2));
    problem.out = out.operand;
    problem.stream = draw(2) == 0;
    if (draw(4) == 0) {
      for (int64_t i = 0; i < problem.numel; ++i) out.set(i, x_.get(i));
      problem.x = out.operand;
    }
    if (!sum_is(what, in_chunks(kernel, problem), sum)) return false;
    if (!elements_are(what, out, all)) return false;
    if (out.surroundings_untouched(problem.numel)) return true;
    std::printf("%s: wrote where no element lies\n", what);
    return false;
  }

  void describe(const char* level) const {
    std::printf("level %s, shape", level);
    for (const int64_t n : shape_) std::printf(" %lld", (long long)n);
    std::printf(", pos_weight %g, label_smoothing %g, scale %g, ignores %d: %g\n",
                problem_.pos_weight, problem_.label_smoothing, problem_.scale, problem_.ignores,
                problem_.ignore_index);
    x_.describe("logits");
    y_.describe("targets");
    if (w_) w_->describe("weight");
    if (p_) p_->describe("pos_weight");
    if (upstream_) upstream_->describe("upstream");
  }

  Shape shape_;
  Tensor x_, y_;
  std::unique_ptr<Tensor> w_, p_, upstream_;
  Operand upstream_operand_;
  Problem problem_;
  std::vector<Expected> losses_, slopes_, grads_;
  Expected sum_;
  double count_ = 0;
};

}  // namespace

int main() {
  weighted_bce::LevelInfo levels[weighted_bce::kMaxLevels];
  const int count = weighted_bce::levels(levels);
  for (const Dtype logits : kFloats) {
    for (int target = 0; target < weighted_bce::kDtypes; ++target) {
      for (const int64_t size : kSizes) {
        for (int i = 0; i < kDraws; ++i) {
          const Case one(size, logits, static_cast<Dtype>(target));
          for (int k = 0; k < count; ++k) {
            if (levels[k].supported && !one.passes(*levels[k].level)) return 1;
          }
        }
      }
    }
  }
  for (int k = 0; k < count; ++k) {
    std::printf("%s: %s\n", levels[k].level->name,
                levels[k].supported ? "passed" : "not supported");
  }
}
