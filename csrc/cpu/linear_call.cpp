#include "cpu/linear_call.h"

#include "cpu/chunks.h"
#include "cpu/csr_check.h"
#include "cpu/isa.h"

namespace weighted_bce {
namespace {

void check_memory(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
  check_floating(t, name);
}

}  // namespace

void check_matrix(const Tensor& m, int64_t rows, int64_t columns, const char* name) {
  check_memory(m, name);
  STD_TORCH_CHECK(m.dim() == 2 && m.size(0) == rows && m.size(1) == columns, name,
                  " must have shape (", rows, ", ", columns, ")");
}

void check_list(const Tensor& list, int64_t size, const char* name) {
  check_memory(list, name);
  STD_TORCH_CHECK(list.dim() == 1 && list.size(0) == size, name, " must have shape (", size, ",)");
}

void check_most_labels(const std::optional<int64_t>& most_labels) {
  STD_TORCH_CHECK(!most_labels || *most_labels > 0, "most_labels must be at least 1, got ",
                  *most_labels);
}

LinearCall::LinearCall(const Arguments& a, const Tensor& x, const OptionalTensor& bias,
                       const OptionalTensor& grad_output)
    : x(x), bias(bias), grad_output(grad_output), arguments(a) {
  STD_TORCH_CHECK(a.input.dim() == 2 && a.input.numel() > 0,
                  "input must have the shape of the logits, (rows, labels), and elements");
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0, "x must have shape (rows, features)");
  check_matrix(x, a.input.size(0), x.size(1), "x");
  STD_TORCH_CHECK(is_contiguous(x), "x must be contiguous");
  STD_TORCH_CHECK(a.input.scalar_type() == a.compute_type() && x.scalar_type() == a.compute_type(),
                  "x and input must be float32, or both float64");
  if (bias) check_list(*bias, a.input.size(1), "linear_bias");
  if (grad_output && grad_output->dim() > 0) {
    check_matrix(*grad_output, x.size(0), 1, "grad_output");
  } else if (grad_output) {
    check_scalar(*grad_output, a, "grad_output");
  }
  const Problem problem = plan(Mode::kLoss, a, nullptr, nullptr);
  if (a.is_sparse()) check_csr(a, problem.csr);
  divisor = divisor_of(a, problem);
}

void LinearCall::check_weight(const Tensor& weight) const {
  check_matrix(weight, arguments.input.size(1), x.size(1), "linear_weight");
}

double LinearCall::compute(Mode mode, const Tensor& logits, const Tensor& weight, Range rows,
                           Range labels) const {
  if (bias) copy(logits, part_of_list(*bias, labels, rows.size()));
  product(logits, rows_of(x, rows), transposed(weight), bias.has_value());
  Arguments a = arguments;
  a.input = logits;
  if (a.is_sparse()) {
    a.crow_indices = part_of_list(*a.crow_indices, {rows.begin, rows.end + 1});
    a.first_label = a.first_label.value_or(0) + labels.begin;
  } else {
    a.target = part_of_factor(a.target, rows, labels);
  }
  if (a.weight) a.weight = part_of_factor(*a.weight, rows, labels);
  if (a.pos_weight) a.pos_weight = part_of_factor(*a.pos_weight, rows, labels);
  OptionalTensor factor;
  if (grad_output) factor = part_of_factor(*grad_output, rows, labels);
  Problem problem =
      plan(mode, a, factor ? &*factor : nullptr, mode == Mode::kLoss ? nullptr : &logits);
  problem.divisor = divisor;
  return isa().run(problem, 0, problem.numel);
}

}  // namespace weighted_bce
