// The ops on the CPU: outputs, chunks and threads. The arithmetic is in kernel.h.
#include <utility>
#include <vector>

#include "backend.h"
#include "cpu/listed.h"
#include "cpu/levels.h"
#include "cpu/memory.h"
#include "plan.h"

namespace weighted_bce {
namespace {

/// Each chunk is summed on its own and the sums are added in order: the bits do not depend on who
/// computes which chunk.
constexpr int64_t kChunk = int64_t{1} << 15;
/// An output this large would only push other data out of the caches.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

const Kernels& kernels_for(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? level().for_double : level().for_float;
}

double run_chunks(const Problem& problem, Kernel kernel) {
  if (problem.numel <= kChunk) return problem.numel == 0 ? 0 : kernel(problem, 0, problem.numel);
  const int64_t chunks = (problem.numel + kChunk - 1) / kChunk;
  std::vector<double> sums(chunks);
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      sums[c] = kernel(problem, c * kChunk, std::min((c + 1) * kChunk, problem.numel));
    }
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

double divisor_of(const Arguments& a, const Problem& problem) {
  const std::optional<double> known = weighted_bce::divisor_of(a);
  return known ? *known : run_chunks(problem, kernels_for(a.input).count);
}

/// sum / divisor; where nothing counts although there are elements, 0 instead of 0 / 0.
double divided(double sum, double divisor, const Problem& problem) {
  return divisor == 0 && problem.numel > 0 ? 0 : sum / divisor;
}

/// A tensor for the gradient or the unreduced loss; a large one has memory that is used again.
Tensor new_result(const Tensor& input) {
  const int64_t bytes = input.numel() * static_cast<int64_t>(input.element_size());
  if (bytes < kLargeBytes) return new_matrix(input);
  int64_t strides[kMaxDims];
  output_strides(input, strides);
  return torch::stable::from_blob(
      take(bytes), input.sizes(), {strides, static_cast<size_t>(input.dim())},
      torch::stable::Device(torch::headeronly::DeviceType::CPU), input.scalar_type(), give);
}

void set_scalar(Tensor& scalar, double value) {
  if (scalar.scalar_type() == ScalarType::Double) {
    *static_cast<double*>(scalar.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(scalar.mutable_data_ptr()) = static_cast<float>(value);
  }
}

Tensor new_scalar(const Tensor& input, double value) {
  Tensor result = weighted_bce::new_scalar(input);
  set_scalar(result, value);
  return result;
}

void set_stream(Problem& problem) {
  problem.stream = problem.numel * problem.out.element_size > kStreamBytes;
}

Problem checked_plan(const Arguments& a, const Tensor* upstream, const Tensor* out) {
  const Problem problem = plan(a, upstream, out);
  if (a.crow_indices) check_listed(a, problem.positives);
  return problem;
}

struct Cpu {
  static Tensor new_result(const Tensor& input) { return weighted_bce::new_result(input); }

  static Tensor loss(const Arguments& a) {
    const Problem problem = checked_plan(a, nullptr, nullptr);
    const double sum = run_chunks(problem, kernels_for(a.input).loss);
    return new_scalar(a.input, divided(sum, divisor_of(a, problem), problem));
  }

  /// The loss, and the value found in `expected`.
  static std::pair<Tensor, Tensor> loss_and_grad(const Arguments& a, const Tensor& expected,
                                                 const Tensor& grad) {
    Problem problem = checked_plan(a, &expected, &grad);
    set_stream(problem);
    const double used = problem.scale, by = divisor_of(a, problem);
    problem.scale = divided(used, by, problem);
    const double sum = run_chunks(problem, kernels_for(a.input).loss_and_grad);
    return {new_scalar(a.input, divided(sum, by, problem)), new_scalar(a.input, used)};
  }

  static void update_grad_(const Arguments& a, const Tensor& grad_output, Tensor& used,
                           Tensor& expected, const Tensor& grad) {
    const double factor = only_value(grad_output);
    if (factor != only_value(used)) write_grad(a, grad_output, grad);
    set_scalar(used, factor);
    // 0 has two signs, and needs no gradient in advance.
    if (factor != 0) set_scalar(expected, factor);
  }

  static void write_grad(const Arguments& a, const Tensor& grad_output, const Tensor& out) {
    Problem problem = checked_plan(a, &grad_output, &out);
    set_stream(problem);
    problem.scale = divided(problem.scale, divisor_of(a, problem), problem);
    run_chunks(problem, kernels_for(a.input).grad);
  }

  static void write_unreduced(const Arguments& a, const Tensor& out) {
    Problem problem = checked_plan(a, nullptr, &out);
    set_stream(problem);
    run_chunks(problem, kernels_for(a.input).unreduced);
  }
};

}  // namespace
}  // namespace weighted_bce

STABLE_TORCH_LIBRARY_IMPL(weighted_bce, CPU, m) { weighted_bce::Ops<weighted_bce::Cpu>::add_to(m); }
