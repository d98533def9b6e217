// The ops on CUDA care for outputs, streams, and what the kernels cannot read as it is. Nothing
// waits for the device, and all of it can be captured in a CUDA graph.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <utility>

#include "backend.h"
#include "cuda/launch.h"
#include "tensors.h"

namespace weighted_bce::cuda {
namespace {

/// Returns torch's current stream. Its CUDA library is asked by name, so that this module loads
/// into a torch without one.
void* current_stream(int device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto function = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* const symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Function>(symbol);
  }();
  STD_TORCH_CHECK(function != nullptr, "this torch has no CUDA streams");
  void* stream = nullptr;
  check_success(function(device, &stream), "tell its current CUDA stream");
  return stream;
}

/// The kernels read numbers of the dtype of the logits or of arithmetic; others are converted. A
/// number on the CPU becomes an argument of the kernels (see plan).
Tensor readable(const Tensor& factor, const Arguments& a) {
  const ScalarType dtype = factor.scalar_type();
  if (factor.is_cpu() || dtype == a.input.scalar_type() || dtype == a.compute_type()) {
    return factor;
  }
  return torch::stable::to(factor, a.compute_type());
}

/// Returns the arguments with factors that the kernels can read.
Arguments readable(Arguments a) {
  if (a.weight) a.weight = readable(*a.weight, a);
  if (a.pos_weight) a.pos_weight = readable(*a.pos_weight, a);
  if (a.normalizer && !a.normalizer->is_cpu()) {
    a.normalizer = torch::stable::to(*a.normalizer, ScalarType::Double);
  }
  return a;
}

/// A Call holds the tensors that must live until its kernels are on their stream.
class Call {
  const torch::stable::accelerator::DeviceGuard guard_;
  const Arguments a_;
  const OptionalTensor grad_output_;
  OptionalTensor count_, sums_;
  Problem problem_;

 public:
  Workspace workspace;

  /// `grad_output` may be null; `out`, which may be too, receives the gradient or the losses.
  Call(Mode mode, const Arguments& a, const Tensor* grad_output, const Tensor* out)
      : guard_(a.input.get_device_index()),
        a_(readable(a)),
        grad_output_(grad_output ? OptionalTensor(readable(*grad_output, a)) : std::nullopt),
        problem_(plan(mode, a_, grad_output_ ? &*grad_output_ : nullptr, out)) {
    set_dividers(problem_);
  }

  void run() {
    const int device = a_.input.get_device_index();
    void* const stream = current_stream(device);
    const std::optional<double> divisor = a_.divisor();
    if (problem_.numel > kOneBlock && (sums(problem_.mode) || (!divisor && !a_.normalizer))) {
      const int64_t size = kMaxBlocks, stride = 1;
      sums_ = new_tensor(a_.input, ScalarType::Double, 1, &size, &stride);
      workspace.sums = static_cast<double*>(sums_->mutable_data_ptr());
    }
    if (divisor) {
      problem_.divisor = *divisor;
    } else if (a_.normalizer) {
      workspace.count = static_cast<const double*>(a_.normalizer->const_data_ptr());
    } else {
      count(device, stream);
    }
    launch(problem_, workspace, device, stream);
  }

 private:
  void count(int device, void* stream) {
    count_ = new_tensor(a_.input, ScalarType::Double, 0, nullptr, nullptr);
    Problem counted = problem_;
    counted.mode = Mode::kCount;
    Workspace for_count = workspace;
    for_count.loss = count_->mutable_data_ptr();
    launch(counted, for_count, device, stream);
    workspace.count = static_cast<const double*>(count_->const_data_ptr());
  }
};

struct Cuda {
  static Tensor new_matrix(const Tensor& input) { return weighted_bce::new_matrix(input); }

  static Tensor loss(const Arguments& a) {
    Tensor result = new_scalar(a);
    Call call(Mode::kLoss, a, nullptr, nullptr);
    call.workspace.loss = result.mutable_data_ptr();
    call.run();
    return result;
  }

  /// Returns the loss and a copy of `expected`, for which the gradient is.
  static std::pair<Tensor, Tensor> loss_and_grad(const Arguments& a, const Tensor& expected,
                                                 const Tensor& grad) {
    Tensor result = new_scalar(a), used = new_scalar(a);
    Call call(Mode::kLossAndGrad, a, &expected, &grad);
    call.workspace.loss = result.mutable_data_ptr();
    call.workspace.used = used.mutable_data_ptr();
    call.run();
    return {result, used};
  }

  static void update_grad_(const Arguments& a, const Tensor& grad_output, Tensor& used,
                           Tensor& expected, const Tensor& grad) {
    Call call(Mode::kGrad, a, &grad_output, &grad);
    call.workspace.used = used.mutable_data_ptr();
    call.workspace.expected = expected.mutable_data_ptr();
    call.run();
  }

  static void write_grad(const Arguments& a, const Tensor& grad_output, const Tensor& grad) {
    Call(Mode::kGrad, a, &grad_output, &grad).run();
  }

  static void write_unreduced(const Arguments& a, const Tensor& losses) {
    Call(Mode::kUnreduced, a, nullptr, &losses).run();
  }
};

}  // namespace
}  // namespace weighted_bce::cuda

STABLE_TORCH_LIBRARY_IMPL(weighted_bce, CUDA, m) {
  weighted_bce::Ops<weighted_bce::cuda::Cuda>::add_to(m);
}
