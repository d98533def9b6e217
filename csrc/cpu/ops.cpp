// The ops on the CPU: what they read and write. The arithmetic is in kernel.h.
#include "backend.h"
#include "cpu/chunks.h"
#include "cpu/csr_check.h"
#include "cpu/memory.h"
#include "cpu/scalar.h"
#include "plan.h"

namespace weighted_bce {
namespace {

/// An output this large would only push other data out of the caches.
constexpr int64_t kNonTemporalBytes = int64_t{16} << 20;

/// Computes what the mode says, and returns the loss after its reduction.
double compute(Mode mode, const Arguments& a, const Tensor* grad_output, const Tensor* out) {
  Problem problem = plan(mode, a, grad_output, out);
  if (a.is_sparse()) check_csr(a, problem.csr);
  problem.non_temporal = problem.numel * problem.out.element_size > kNonTemporalBytes;
  problem.divisor = divisor_of(a, problem);
  return reduced(run_chunks(problem), problem.divisor, problem.numel);
}

struct Cpu {
  /// Returns a tensor for the gradient or the unreduced loss; a large one has memory that is used
  /// again.
  static Tensor new_matrix(const Tensor& input) {
    const int64_t bytes = input.numel() * static_cast<int64_t>(input.element_size());
    if (bytes < kLargeBytes) return weighted_bce::new_matrix(input);
    int64_t strides[kMaxDims];
    output_strides(input, strides);
    return torch::stable::from_blob(
        take(bytes), input.sizes(), {strides, static_cast<size_t>(input.dim())},
        torch::stable::Device(torch::headeronly::DeviceType::CPU), input.scalar_type(), give);
  }

  static Tensor loss(const Arguments& a) {
    return new_scalar(a, compute(Mode::kLoss, a, nullptr, nullptr));
  }

  /// Returns the loss and a copy of `expected`, for which the gradient is.
  static std::pair<Tensor, Tensor> loss_and_grad(const Arguments& a, const Tensor& expected,
                                                 const Tensor& grad) {
    Tensor used = new_scalar(a, only_value(expected));
    return {new_scalar(a, compute(Mode::kLossAndGrad, a, &used, &grad)), used};
  }

  static void update_grad_(const Arguments& a, const Tensor& grad_output, Tensor& used,
                           Tensor& expected, const Tensor& grad) {
    const double value = only_value(grad_output);
    if (value != only_value(used)) write_grad(a, grad_output, grad);
    set_scalar(used, value);
    // 0 has two signs, and needs no gradient in advance.
    if (value != 0) set_scalar(expected, value);
  }

  static void write_grad(const Arguments& a, const Tensor& grad_output, const Tensor& grad) {
    compute(Mode::kGrad, a, &grad_output, &grad);
  }

  static void write_unreduced(const Arguments& a, const Tensor& losses) {
    compute(Mode::kUnreduced, a, nullptr, &losses);
  }
};

}  // namespace
}  // namespace weighted_bce

STABLE_TORCH_LIBRARY_IMPL(weighted_bce, CPU, m) { weighted_bce::Ops<weighted_bce::Cpu>::add_to(m); }
