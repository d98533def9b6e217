// The ops on the CPU: outputs, chunks and threads. The arithmetic is in kernel.h.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/memory.h"
#include "cpu/plan.h"
#include "cpu/problem.h"

namespace weighted_bce {
namespace {

using OptionalTensor = std::optional<Tensor>;

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
  if (a.divisor) return *a.divisor;
  if (!problem.ignores) return static_cast<double>(problem.numel);
  return run_chunks(problem, kernels_for(a.input).count);
}

/// sum / divisor; where nothing counts although there are elements, 0 instead of 0 / 0.
double divided(double sum, double divisor, const Problem& problem) {
  return divisor == 0 && problem.numel > 0 ? 0 : sum / divisor;
}

Tensor new_tensor(const Tensor& like, ScalarType dtype, int64_t dims, const int64_t* strides) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, like.sizes().data(), strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

/// A tensor for the gradient or the unreduced loss.
Tensor new_matrix(const Tensor& input) {
  int64_t strides[kMaxDims];
  output_strides(input, strides);
  const int64_t bytes = input.numel() * static_cast<int64_t>(input.element_size());
  if (bytes < kLargeBytes) return new_tensor(input, input.scalar_type(), input.dim(), strides);
  return torch::stable::from_blob(
      take(bytes), input.sizes(), {strides, static_cast<size_t>(input.dim())},
      torch::stable::Device(torch::headeronly::DeviceType::CPU), input.scalar_type(), give);
}

Tensor new_scalar(const Tensor& input, double value) {
  const bool wide = input.scalar_type() == ScalarType::Double;
  Tensor result = new_tensor(input, wide ? ScalarType::Double : ScalarType::Float, 0, nullptr);
  if (wide) {
    *static_cast<double*>(result.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(result.mutable_data_ptr()) = static_cast<float>(value);
  }
  return result;
}

void set_stream(Problem& problem) {
  problem.stream = problem.numel * problem.out.element_size > kStreamBytes;
}

void write_grad(const Arguments& a, const Tensor& grad_output, const Tensor& out) {
  Problem problem = plan(a, &grad_output, &out);
  set_stream(problem);
  problem.scale = divided(problem.scale, divisor_of(a, problem), problem);
  run_chunks(problem, kernels_for(a.input).grad);
}

Tensor loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
            const OptionalTensor& pos_weight, double pos_weight_value, double label_smoothing,
            std::optional<double> ignore_index, std::optional<double> divisor) {
  const Arguments a{input,           target,       weight, pos_weight, pos_weight_value,
                    label_smoothing, ignore_index, divisor};
  check(a);
  const Problem problem = plan(a, nullptr, nullptr);
  const double sum = run_chunks(problem, kernels_for(input).loss);
  return new_scalar(input, divided(sum, divisor_of(a, problem), problem));
}

std::tuple<Tensor, Tensor> loss_and_grad(const Tensor& input, const Tensor& target,
                                         const OptionalTensor& weight,
                                         const OptionalTensor& pos_weight, double pos_weight_value,
                                         double label_smoothing, std::optional<double> ignore_index,
                                         std::optional<double> divisor, const Tensor& expected) {
  const Arguments a{input,           target,       weight, pos_weight, pos_weight_value,
                    label_smoothing, ignore_index, divisor};
  check(a);
  STD_TORCH_CHECK(expected.dim() == 0, "expected must be 0-d");
  check_same_device(expected, input, "expected");
  const Tensor grad = new_matrix(input);
  Problem problem = plan(a, &expected, &grad);
  set_stream(problem);
  const double by = divisor_of(a, problem);
  problem.scale = divided(problem.scale, by, problem);
  const double sum = run_chunks(problem, kernels_for(input).loss_and_grad);
  return {new_scalar(input, divided(sum, by, problem)), grad};
}

Tensor grad(const Tensor& grad_output, const Tensor& input, const Tensor& target,
            const OptionalTensor& weight, const OptionalTensor& pos_weight, double pos_weight_value,
            double label_smoothing, std::optional<double> ignore_index,
            std::optional<double> divisor) {
  const Arguments a{input,           target,       weight, pos_weight, pos_weight_value,
                    label_smoothing, ignore_index, divisor};
  check(a);
  check_grad_output(grad_output, input);
  Tensor out = new_matrix(input);
  write_grad(a, grad_output, out);
  return out;
}

void grad_(const Tensor& grad_output, Tensor input, const Tensor& target,
           const OptionalTensor& weight, const OptionalTensor& pos_weight, double pos_weight_value,
           double label_smoothing, std::optional<double> ignore_index,
           std::optional<double> divisor) {
  const Arguments a{input,           target,       weight, pos_weight, pos_weight_value,
                    label_smoothing, ignore_index, divisor};
  check(a);
  check_grad_output(grad_output, input);
  STD_TORCH_CHECK(non_overlapping(input), "input must not overlap itself to be written in place");
  write_grad(a, grad_output, input);
}

Tensor unreduced(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                 const OptionalTensor& pos_weight, double pos_weight_value, double label_smoothing,
                 std::optional<double> ignore_index) {
  const Arguments a{input,           target,       weight, pos_weight, pos_weight_value,
                    label_smoothing, ignore_index, 1.0};
  check(a);
  Tensor out = new_matrix(input);
  Problem problem = plan(a, nullptr, &out);
  set_stream(problem);
  run_chunks(problem, kernels_for(input).unreduced);
  return out;
}

}  // namespace
}  // namespace weighted_bce

STABLE_TORCH_LIBRARY_IMPL(weighted_bce, CPU, m) {
  m.impl("loss", TORCH_BOX(&weighted_bce::loss));
  m.impl("loss_and_grad", TORCH_BOX(&weighted_bce::loss_and_grad));
  m.impl("grad", TORCH_BOX(&weighted_bce::grad));
  m.impl("grad_", TORCH_BOX(&weighted_bce::grad_));
  m.impl("unreduced", TORCH_BOX(&weighted_bce::unreduced));
}
