// Operands and what a kernel should make of them, drawn for the tests of the CPU and of the GPU.
#pragma once

#include <memory>

#include "draw_loss.h"
#include "operand.h"
#include "planned.h"
#include "sparse_labels.h"

namespace native {

const Dtype kFloats[] = {Dtype::kFloat16, Dtype::kBFloat16, Dtype::kFloat32, Dtype::kFloat64};

/// Each list says what a case may be drawn from.
struct Choices {
  std::vector<Layout> layouts, factor_layouts;
  std::vector<Dtype> factors, grad_outputs;
  int64_t most_elements;
};

inline int64_t draw_shift() { return draw(2) * draw(4); }

inline Shape draw_shape(int64_t size, int64_t most_elements) {
  Shape shape{size};
  for (int64_t more = draw(4); more > 0 && size * 3 <= most_elements; --more) {
    const int64_t other = 2 + draw(2);
    shape.insert(shape.begin() + draw(static_cast<int64_t>(shape.size()) + 1), other);
    size *= other;
  }
  return shape;
}

/// [rows, labels]: long rows, short ones, or one; or rows that end where tiles do.
inline Shape draw_matrix(int64_t size, int64_t most_elements) {
  if (size % 1024 == 0) return {most_elements / size, size};
  const int64_t other = 1 + draw(draw(2) ? 4 : 40);
  if (other * size > most_elements) return {1, size};
  return draw(2) ? Shape{other, size} : Shape{size, other};
}

class Case {
 public:
  const Shape shape;
  const bool plain;  // dense and aligned
  Tensor x, y;
  std::unique_ptr<SparseLabels> labels;  // the targets once more, where they are sparse
  std::unique_ptr<Tensor> w, p, grad_output;
  Problem problem;  // with all operands but grad_output
  Numbers numbers;
  std::vector<Expected> losses, slopes, grads;  // slopes are gradients for a grad_output of 1
  Expected sum;
  double count = 0;

  /// The labels are sparse where there is an index_size, 4 or 8 bytes.
  Case(int64_t size, Dtype logits, Dtype targets, const Choices& choices, int index_size = 0)
      : shape(index_size ? draw_matrix(size, choices.most_elements)
                         : draw_shape(size, choices.most_elements)),
        plain(draw(2)),
        x(shape, logits, plain ? Layout::kDense : draw_of(choices.layouts),
          plain ? 0 : draw_shift()),
        y(shape, targets, plain ? Layout::kDense : draw_of(choices.layouts),
          plain ? 0 : draw_shift()),
        problem(problem_of(shape)) {
    draw_numbers();
    draw_logits();
    if (index_size) draw_labels(index_size);
    if (!index_size) draw_targets();
    if (draw(4) == 0) w = draw_factor(choices.factors, choices, 0, 1.5);
    if (draw(3) == 0) p = draw_factor(choices.factors, choices, 0, 4);
    if (draw(2) == 0) grad_output = draw_factor(choices.grad_outputs, choices, -2, 2);
    problem.x = x.operand;
    if (!labels) problem.y = y.operand;
    if (w) problem.w = w->operand;
    if (p) problem.p = p->operand;
    long double value = 0, terms = 0;  // in double, the errors of long sums would be seen
    for (int64_t i = 0; i < problem.numel; ++i) {
      expect(i);
      value += losses[i].value, terms += losses[i].size;
    }
    sum = {static_cast<double>(value), static_cast<double>(terms)};
  }

  Dtype dtype() const { return x.operand.dtype; }
  bool wide() const { return dtype() == Dtype::kFloat64; }

  bool sum_is(const char* what, double got, const Expected& wanted) const {
    if (error_of(got, wanted, Dtype::kFloat64, wide()) <= 1) return true;
    std::printf("%s: returned %.9g, expected %.9g\n", what, got, wanted.value);
    return false;
  }

  bool elements_are(const char* what, const Tensor& out, const std::vector<Expected>& all,
                    double scale = 1) const {
    double worst = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < problem.numel; ++i) {
      const double error = error_of(out.get(i), scaled(all[i], scale), dtype(), wide());
      if (error > worst) worst = error, at = i;
    }
    if (worst <= 1) return true;
    std::printf("%s: element %lld of %lld is %.9g, expected %.9g\n", what, (long long)at,
                (long long)problem.numel, out.get(at), scaled(all[at], scale).value);
    return false;
  }

  void describe(const char* kernels) const {
    std::printf("%s, shape", kernels);
    for (const int64_t n : shape) std::printf(" %lld", (long long)n);
    std::printf(", loss %d of", static_cast<int>(numbers.loss));
    for (const double parameter : numbers.parameters) std::printf(" %g", parameter);
    std::printf(", pos_weight %g, weight %g, label_smoothing %g, ", numbers.pos_weight,
                numbers.weight, numbers.label_smoothing);
    std::printf("ignores %d: %g\n", numbers.ignores, numbers.ignore_index);
    x.describe("logits");
    if (labels) labels->describe();
    if (!labels) y.describe("targets");
    if (w) w->describe("weight");
    if (p) p->describe("pos_weight");
    if (grad_output) grad_output->describe("grad_output");
  }

 private:
  void draw_numbers() {
    if (draw(2)) draw_loss(numbers, static_cast<Loss>(1 + draw(weighted_bce::kLosses - 1)));
    if (draw(4) == 0) numbers.label_smoothing = 0.125;
    if (draw(8) == 0) numbers.weight = 0.75;
    numbers.pos_weight = 0.5 * static_cast<double>(draw(9));
  }

  void draw_logits() {
    const double wild[] = {HUGE_VAL, -HUGE_VAL, std::nan(""), 5e3, -5e3, 1e30, -1e30, 103.5, -0.0};
    const bool has_wild = draw(4) == 0;
    const double most = draw(8) ? 10 : 0;  // at 0 the products of 1 + exp(-|x|) are the largest
    for (int64_t i = 0; i < problem.numel; ++i) {
      const double moderate = most * static_cast<double>(draw(2001) - 1000) / 1000;
      const double any = has_wild && draw(8) == 0 ? wild[draw(9)] : moderate;
      x.set(i, draw(10) ? any : moderate * 15);
    }
  }

  /// Draws few positives, so that whole vectors are without, and soft ones in floating dtypes. Some
  /// targets are special: a value to ignore, or a NaN that counts.
  void draw_targets() {
    const bool soft = is_floating(y.operand.dtype);
    const double special[] = {0, -1, std::nan(""), std::nan("")};
    const int64_t rarity = draw(3) ? 50 : 2, kind = draw(6);
    const bool has_special = kind < (soft ? 4 : 2);
    const int64_t softness = draw(2) ? 64 : 1;
    for (int64_t i = 0; i < problem.numel; ++i) {
      const double positive = soft ? static_cast<double>(1 + draw(softness)) / softness : 1;
      const double value = draw(rarity) ? 0 : positive;
      y.set(i, has_special && draw(5) == 0 ? special[kind] : value);
    }
    numbers.ignores = kind < 3;
    if (numbers.ignores) numbers.ignore_index = y.as_held(special[kind]);
  }

  /// Draws rows with few positives, with none, and with nothing else.
  void draw_labels(int index_size) {
    const int64_t rows = shape[0], columns = shape[1], rarity = draw(3) ? 50 : 2;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t kind = draw(4);
      for (int64_t i = row * columns; i < (row + 1) * columns; ++i) {
        y.set(i, kind == 0 ? 0 : kind == 1 ? draw(8) > 0 || rarity > 2 : draw(rarity) == 0);
      }
    }
    numbers.ignores = draw(4) == 0;
    if (numbers.ignores) numbers.ignore_index = static_cast<double>(draw(2));
    labels = SparseLabels::of(y, rows, columns, index_size);
    problem.csr = labels->csr;
  }

  std::unique_ptr<Tensor> draw_factor(const std::vector<Dtype>& dtypes, const Choices& choices,
                                      double low, double high) const {
    const Dtype dtype = draw_of(dtypes);
    auto factor =
        std::make_unique<Tensor>(shape, dtype, draw_of(choices.factor_layouts), draw_shift());
    for (int64_t i = 0; i < problem.numel; ++i) {
      factor->set(i, low + (high - low) * static_cast<double>(draw(1000)) / 1000);
    }
    return factor;
  }

  void expect(int64_t i) {
    const double weight = w ? w->get(i) : numbers.weight;
    const double pos_weight = p ? p->get(i) : numbers.pos_weight;
    const auto [loss, slope] = formula(numbers, x.get(i), y.get(i), weight, pos_weight);
    losses.push_back(loss);
    slopes.push_back(slope);
    grads.push_back(scaled(slope, grad_output ? grad_output->get(i) : 1));
    count += counts(numbers, y.get(i));
  }
};

}  // namespace native
