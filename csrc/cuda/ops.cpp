// The ops on CUDA: outputs, streams, and what the kernels cannot read as it is. Nothing here waits
// for the device, and all of it can be captured in a CUDA graph.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <utility>

#include "backend.h"
#include "cuda/launch.h"
#include "cuda/pack.h"
#include "plan.h"

namespace weighted_bce::cuda {
namespace {

/// torch's current stream. Its CUDA library is asked by name, so that this module loads into a
/// torch without one.
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

/// Tensors as the kernels take them: the others are converted, and a number that lies on the CPU
/// becomes an argument.
struct Prepared {
  OptionalTensor weight, pos_weight, upstream;
  double weight_value = 1, pos_weight_value;

  Prepared(const Arguments& a, const Tensor* grad_output)
      : weight(a.weight), pos_weight(a.pos_weight), pos_weight_value(a.pos_weight_value) {
    prepare(weight, weight_value, a.input);
    prepare(pos_weight, pos_weight_value, a.input);
    if (grad_output != nullptr && grad_output->dim() > 0)
      upstream = readable(*grad_output, a.input);
  }

 private:
  static Tensor readable(const Tensor& factor, const Tensor& input) {
    const ScalarType dtype = factor.scalar_type();
    if (dtype == input.scalar_type() || dtype == compute_type(input)) return factor;
    return torch::stable::to(factor, compute_type(input));
  }
  static void prepare(OptionalTensor& factor, double& value, const Tensor& input) {
    if (!factor) return;
    if (factor->is_cpu()) {
      value = only_value(torch::stable::to(*factor, ScalarType::Double));
      factor.reset();
    } else {
      factor = readable(*factor, input);
    }
  }
};

/// A call: its problem, and what must live until the kernels are on their stream.
class Call {
  const Arguments& a_;
  const int device_;
  const torch::stable::accelerator::DeviceGuard guard_;
  const Prepared prepared_;
  OptionalTensor count_, parts_, factor_;
  Problem problem_;

  static Problem planned(const Arguments& a, const Prepared& prepared, const Tensor* out) {
    const Arguments readable{a.input,
                             a.target,
                             a.crow_indices,
                             prepared.weight,
                             prepared.pos_weight,
                             prepared.pos_weight_value,
                             a.label_smoothing,
                             a.ignore_index,
                             a.first_label,
                             a.reduction};
    Problem problem =
        packed(plan(readable, prepared.upstream ? &*prepared.upstream : nullptr, out));
    problem.wide.weight = prepared.weight_value;
    problem.narrow.weight = static_cast<float>(prepared.weight_value);
    return problem;
  }

 public:
  /// `grad_output` may have the shape of input; `out` receives the gradient or the unreduced loss.
  Call(const Arguments& a, const Tensor* grad_output, const Tensor* out)
      : a_(a),
        device_(a.input.get_device_index()),
        guard_(device_),
        prepared_(a, grad_output),
        problem_(planned(a, prepared_, out)) {
    if (grad_output != nullptr && grad_output->dim() == 0) {
      factor_ = torch::stable::to(*grad_output, compute_type(a.input));
      problem_.factor = factor_->const_data_ptr();
    }
  }

  Problem& problem() { return problem_; }

  void run(Mode mode) {
    void* const stream = current_stream(device_);
    make_room_for_parts();
    if (const std::optional<double> divisor = divisor_of(a_)) {
      problem_.divisor = *divisor;
    } else {
      count(stream);
    }
    launch(mode, problem_, device_, stream);
  }

 private:
  void make_room_for_parts() {
    if (problem_.numel <= kOneBlock) return;
    const int64_t size = 2 * kMostBlocks, stride = 1;
    parts_ = new_tensor(a_.input, ScalarType::Double, 1, &size, &stride);
    problem_.sums = static_cast<double*>(parts_->mutable_data_ptr());
    problem_.factors = problem_.sums + kMostBlocks;
  }

  void count(void* stream) {
    count_ = new_tensor(a_.input, ScalarType::Double, 0, nullptr, nullptr);
    Problem counted = problem_;
    counted.loss = count_->mutable_data_ptr();
    counted.used = nullptr;
    counted.divisor = 1;
    launch_count(counted, compute_type(a_.input) == ScalarType::Double, device_, stream);
    problem_.count = static_cast<const double*>(count_->const_data_ptr());
  }
};

struct Cuda {
  static Tensor new_result(const Tensor& input) { return new_matrix(input); }

  static Tensor loss(const Arguments& a) {
    Tensor result = new_scalar(a.input);
    Call call(a, nullptr, nullptr);
    call.problem().loss = result.mutable_data_ptr();
    call.run(Mode::kLoss);
    return result;
  }

  /// The loss, and the value found in `expected`.
  static std::pair<Tensor, Tensor> loss_and_grad(const Arguments& a, const Tensor& expected,
                                                 const Tensor& grad) {
    Tensor result = new_scalar(a.input), used = new_scalar(a.input);
    Call call(a, &expected, &grad);
    call.problem().loss = result.mutable_data_ptr();
    call.problem().used = used.mutable_data_ptr();
    call.run(Mode::kLossAndGrad);
    return {result, used};
  }

  static void update_grad_(const Arguments& a, const Tensor& grad_output, Tensor& used,
                           Tensor& expected, const Tensor& grad) {
    Call call(a, &grad_output, &grad);
    call.problem().guessed = used.mutable_data_ptr();
    call.problem().learned = expected.mutable_data_ptr();
    call.run(Mode::kGrad);
  }

  static void write_grad(const Arguments& a, const Tensor& grad_output, const Tensor& out) {
    Call(a, &grad_output, &out).run(Mode::kGrad);
  }

  static void write_unreduced(const Arguments& a, const Tensor& out) {
    Call(a, nullptr, &out).run(Mode::kUnreduced);
  }
};

}  // namespace
}  // namespace weighted_bce::cuda

STABLE_TORCH_LIBRARY_IMPL(weighted_bce, CUDA, m) {
  weighted_bce::Ops<weighted_bce::cuda::Cuda>::add_to(m);
}
