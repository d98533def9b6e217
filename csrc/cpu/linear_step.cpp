// The ops for the gradient of a linear layer's weight where the whole of it is not wanted: each
// thread computes that of one chunk of labels after another, from logits that it computes again,
// and takes the step of torch's optimizer with it.
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <vector>

#include "cpu/isa.h"
#include "cpu/linear_call.h"

namespace weighted_bce {
namespace {

/// A call is handed to Python as a tensor of bytes that owns it.
struct Held {
  static constexpr int64_t kMark = 0x77626365'63616c6c;
  int64_t mark;
  LinearCall call;
};

Tensor linear_call(const Arguments& a, const Tensor& grad_output, const Tensor& x,
                   const OptionalTensor& bias) {
  auto* const held = new Held{Held::kMark, LinearCall(a, x, bias, grad_output)};
  const int64_t size = sizeof(Held), stride = 1;
  return torch::stable::from_blob(
      held, {&size, 1}, {&stride, 1}, torch::stable::Device(torch::headeronly::DeviceType::CPU),
      ScalarType::Byte, [](void* memory) { delete static_cast<Held*>(memory); });
}

const LinearCall& call_of(const Tensor& tensor) {
  const auto* const held = static_cast<const Held*>(tensor.const_data_ptr());
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.numel() == sizeof(Held) && held->mark == Held::kMark,
                  "calls must be what linear_call has returned");
  return held->call;
}

/// Throws unless the tensor is like the weight, in memory as well.
void check_state(const OptionalTensor& state, const Tensor& weight, const char* name) {
  STD_TORCH_CHECK(is_contiguous(weight), "linear_weight must be contiguous");
  if (!state) return;
  STD_TORCH_CHECK(
      state->dim() == 2 && state->size(0) == weight.size(0) && state->size(1) == weight.size(1) &&
          state->scalar_type() == weight.scalar_type() && state->is_cpu() && is_contiguous(*state),
      name, " must be contiguous and have the shape and dtype of linear_weight");
}

/// Calls use(gradient, labels) for chunks of some labels, on all threads. The gradient is the sum
/// of those of the calls and `dense`, in the dtype of arithmetic.
template <class Use>
void each_gradient(const std::vector<Tensor>& handles, const OptionalTensor& dense,
                   const Tensor& weight, Range all_labels,
                   const std::optional<int64_t>& most_labels, const Use& use) {
  STD_TORCH_CHECK(dense || !handles.empty(), "calls must not be empty without dense");
  if (dense) check_matrix(*dense, weight.size(0), weight.size(1), "dense");
  check_most_labels(most_labels);
  std::vector<const LinearCall*> calls;
  int64_t most_rows = 1;
  for (const Tensor& handle : handles) {
    calls.push_back(&call_of(handle));
    calls.back()->check_weight(weight);
    most_rows = std::max(most_rows, calls.back()->x.size(0));
  }
  const int64_t features = weight.size(1);
  const Range all_features{0, features};
  const bool is_double = weight.scalar_type() == ScalarType::Double;
  const ScalarType dtype = is_double ? ScalarType::Double : ScalarType::Float;
  const bool converts = weight.scalar_type() != dtype;
  const Cut cut = Cut::of_labels(most_rows, all_labels.size(), features, most_labels);
  const Parts slabs_of(all_labels, cut.slab);
  Slabs<float> slabs(slabs_of.count(), 0, slabs_of.count(), nullptr);
  run_slabs(
      slabs, threads_for(slabs_of.count(), LinearWorkspaces::bytes(cut, features, dtype, true)),
      [&] { return LinearWorkspaces(cut, features, dtype, true); },
      [&](const LinearWorkspaces& own, const Slabs<float>::Slab& slab) {
        const Parts tiles(slabs_of[slab.index], cut.tile_labels);
        for (int64_t i = 0; i < tiles.count(); ++i) {
          const Range labels = tiles[i];
          Tensor weights = part(weight, labels, all_features);
          if (converts) weights = converted(weights, own.weight);
          const Tensor grad = own.products.matrix(labels.size(), features);
          if (dense) copy(grad, part(*dense, labels, all_features));
          bool add = dense.has_value();
          for (const LinearCall* const call : calls) {
            const Parts of_rows({0, call->x.size(0)}, cut.tile_rows);
            for (int64_t r = 0; r < of_rows.count(); ++r) {
              const Tensor logits = own.logits.matrix(of_rows[r].size(), labels.size());
              call->compute(Mode::kGrad, logits, weights, of_rows[r], labels);
              product(grad, transposed(logits), call->input(of_rows[r]), add);
              add = true;
            }
          }
          use(grad, labels);
        }
      });
}

/// Returns the operands of a step, but for the gradient.
StepOperands operands(const Tensor& weight, Range labels, const OptionalTensor& first,
                      const OptionalTensor& second = {}, const OptionalTensor& third = {}) {
  const int64_t offset = labels.begin * weight.size(1);
  const auto at = [&](const OptionalTensor& t) -> void* {
    if (!t) return nullptr;
    return static_cast<char*>(t->mutable_data_ptr()) + offset * size_of(t->scalar_type());
  };
  return {labels.size() * weight.size(1),
          dtype_of(weight),
          nullptr,
          at(weight),
          at(first),
          at(second),
          at(third)};
}

/// Writes the gradient of the labels from `first_label` on to `out`.
void linear_weight_grad_(const std::vector<Tensor>& calls, const OptionalTensor& dense,
                         const Tensor& weight, int64_t first_label, const Tensor& out,
                         const std::optional<int64_t>& most_labels) {
  STD_TORCH_CHECK(weight.dim() == 2, "linear_weight must have shape (labels, features)");
  check_matrix(out, out.size(0), weight.size(1), "out");
  const Range all{first_label, first_label + out.size(0)}, all_features{0, weight.size(1)};
  STD_TORCH_CHECK(all.begin >= 0 && all.begin < all.end && all.end <= weight.size(0),
                  "out must have rows for some of the labels, from first_label on");
  each_gradient(calls, dense, weight, all, most_labels, [&](const Tensor& grad, Range labels) {
    copy(part(out, labels.within(all), all_features), grad);
  });
}

/// Takes the step of torch.optim.SGD.
void linear_sgd_(const std::vector<Tensor>& calls, const OptionalTensor& dense,
                 const Tensor& weight, const OptionalTensor& momentum_buffer,
                 const std::optional<int64_t>& most_labels, double lr, double momentum,
                 double dampening, double weight_decay, bool nesterov, bool maximize,
                 bool is_first) {
  const SgdStep sgd{lr, momentum, dampening, weight_decay, nesterov, maximize, is_first};
  check_state(momentum_buffer, weight, "momentum_buffer");
  each_gradient(calls, dense, weight, {0, weight.size(0)}, most_labels,
                [&](const Tensor& grad, Range labels) {
                  StepOperands o = operands(weight, labels, momentum_buffer);
                  o.grad = grad.const_data_ptr();
                  isa().sgd(sgd, o);
                });
}

/// Takes the step of torch.optim.Adam. `steps` counts this one.
void linear_adam_(const std::vector<Tensor>& calls, const OptionalTensor& dense,
                  const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                  const OptionalTensor& max_exp_avg_sq, const std::optional<int64_t>& most_labels,
                  double lr, double beta1, double beta2, double eps, double weight_decay,
                  double steps, bool maximize, bool decoupled_weight_decay) {
  const double correction = std::pow(1 - std::pow(beta2, steps), 0.5);
  const AdamStep adam{lr,         beta1,        beta2,
                      eps,        weight_decay, std::pow(beta1, steps),
                      correction, maximize,     decoupled_weight_decay};
  check_state(exp_avg, weight, "exp_avg");
  check_state(exp_avg_sq, weight, "exp_avg_sq");
  check_state(max_exp_avg_sq, weight, "max_exp_avg_sq");
  each_gradient(calls, dense, weight, {0, weight.size(0)}, most_labels,
                [&](const Tensor& grad, Range labels) {
                  StepOperands o = operands(weight, labels, exp_avg, exp_avg_sq, max_exp_avg_sq);
                  o.grad = grad.const_data_ptr();
                  isa().adam(adam, o);
                });
}

}  // namespace
}  // namespace weighted_bce

STABLE_TORCH_LIBRARY_IMPL(weighted_bce, CPU, m) {
  m.impl("linear_call", &weighted_bce::Boxed<&weighted_bce::linear_call>::call);
  m.impl("linear_weight_grad_", TORCH_BOX(&weighted_bce::linear_weight_grad_));
  m.impl("linear_sgd_", TORCH_BOX(&weighted_bce::linear_sgd_));
  m.impl("linear_adam_", TORCH_BOX(&weighted_bce::linear_adam_));
}
