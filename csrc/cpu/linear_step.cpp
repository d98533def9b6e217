// The ops for the gradient of a linear layer's weight where the whole of it is not wanted: each
// thread computes that of one chunk of labels after another, from logits that it computes again,
// and takes the step of torch's optimizer with it.
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "cpu/linear_call.h"

namespace weighted_bce {
namespace {

/// A call is handed to Python as a tensor of bytes that owns it. A copy of the bytes is no call.
struct Held {
  const Held* self = this;
  LinearCall call;

  explicit Held(const LinearCall& call) : call(call) {}
  ~Held() { self = nullptr; }
};

Tensor linear_call(const Arguments& a, const Tensor& grad_output, const Tensor& x,
                   const OptionalTensor& bias) {
  auto held = std::make_unique<Held>(LinearCall(a, x, bias, grad_output));
  const int64_t size = sizeof(Held), stride = 1;
  Tensor handle = torch::stable::from_blob(
      held.get(), {&size, 1}, {&stride, 1},
      torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Byte,
      [](void* memory) { delete static_cast<Held*>(memory); });
  held.release();
  return handle;
}

const LinearCall& call_of(const Tensor& tensor) {
  const auto* const held = static_cast<const Held*>(tensor.const_data_ptr());
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.numel() == sizeof(Held) && held->self == held,
                  "calls must be what linear_call has returned");
  return held->call;
}

/// Calls use(gradient, labels) for chunks of some labels, on all threads. The gradient is the sum
/// of those of the calls and `dense`, in the dtype of arithmetic.
template <class Use>
void each_gradient(const std::vector<Tensor>& handles, const OptionalTensor& dense,
                   const Tensor& weight, Range all_labels,
                   const std::optional<int64_t>& most_labels, const Use& use) {
  const int64_t features = weight.size(1);
  const bool is_double = weight.scalar_type() == ScalarType::Double;
  const ScalarType dtype = is_double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(dense || !handles.empty(), "calls must not be empty without dense");
  if (dense) check_matrix(*dense, weight.size(0), features, "dense");
  check_most_labels(most_labels);
  std::vector<const LinearCall*> calls;
  int64_t most_rows = 1;
  for (const Tensor& handle : handles) {
    const LinearCall& call = call_of(handle);
    call.check_weight(weight);
    STD_TORCH_CHECK(call.x.scalar_type() == dtype, "calls must have the dtype of linear_weight");
    calls.push_back(&call);
    most_rows = std::max(most_rows, call.x.size(0));
  }
  const LinearTiles tiles{Cut::of(most_rows, all_labels.size(), features, most_labels), features,
                          dtype, weight.scalar_type() != dtype, true};
  run_slabs<float>(
      tiles, all_labels, 0, nullptr, [&](const LinearWorkspaces& own, Range slab, float*) {
        const Parts of_labels(slab, tiles.cut.tile_labels);
        for (int64_t l = 0; l < of_labels.count(); ++l) {
          const Range labels = of_labels[l];
          const Tensor weights = own.weight_of(weight, labels);
          const Tensor grad = own.products.matrix(labels.size(), features);
          if (dense) copy(grad, rows_of(*dense, labels));
          bool add = dense.has_value();
          for (const LinearCall* const call : calls) {
            const Parts of_rows({0, call->x.size(0)}, tiles.cut.tile_rows);
            for (int64_t r = 0; r < of_rows.count(); ++r) {
              const Tensor logits = own.logits.matrix(of_rows[r].size(), labels.size());
              call->compute(Mode::kGrad, logits, weights, of_rows[r], labels);
              product(grad, transposed(logits), rows_of(call->x, of_rows[r]), add);
              add = true;
            }
          }
          use(grad, labels);
        }
        return 0.0;
      });
}

/// Throws unless the tensor is like the weight, in memory as well. Returns its memory, to write.
void* state_of(const OptionalTensor& state, const Tensor& weight, const char* name) {
  if (!state) return nullptr;
  check_matrix(*state, weight.size(0), weight.size(1), name);
  STD_TORCH_CHECK(state->scalar_type() == weight.scalar_type() && is_contiguous(*state), name,
                  " must be contiguous and have the dtype of linear_weight");
  return state->mutable_data_ptr();
}

/// Returns the operands of a step of the whole weight, but for the gradient.
StepOperands operands_of(const Tensor& weight, const OptionalTensor& first, const char* name) {
  STD_TORCH_CHECK(weight.dim() == 2, "linear_weight must have shape (labels, features)");
  StepOperands o{};
  o.dtype = dtype_of(weight);
  o.weight = state_of(weight, weight, "linear_weight");
  o.first = state_of(first, weight, name);
  return o;
}

/// Returns the operands for some labels of a weight.
StepOperands part_of_operands(StepOperands o, const Tensor& grad, const Tensor& weight,
                              Range labels) {
  const int64_t features = weight.size(1);
  for (void** const memory : {&o.weight, &o.first, &o.second, &o.third}) {
    if (*memory == nullptr) continue;
    *memory = static_cast<char*>(*memory) + labels.begin * features * size_of(weight.scalar_type());
  }
  o.n = labels.size() * features;
  o.grad = grad.const_data_ptr();
  return o;
}

/// Writes the gradient of the labels from `first_label` on to `out`.
void linear_weight_grad_(const std::vector<Tensor>& calls, const OptionalTensor& dense,
                         const Tensor& weight, int64_t first_label, const Tensor& out,
                         const std::optional<int64_t>& most_labels) {
  STD_TORCH_CHECK(weight.dim() == 2, "linear_weight must have shape (labels, features)");
  STD_TORCH_CHECK(out.dim() == 2, "out must have shape (labels, features)");
  check_matrix(out, out.size(0), weight.size(1), "out");
  const Range all{first_label, first_label + out.size(0)};
  STD_TORCH_CHECK(all.begin >= 0 && all.begin < all.end && all.end <= weight.size(0),
                  "out must have rows for some of the labels, from first_label on");
  check_writable(out, "out");
  out.mutable_data_ptr();  // it has memory of its own from now on
  each_gradient(calls, dense, weight, all, most_labels, [&](const Tensor& grad, Range labels) {
    copy(rows_of(out, labels.within(all)), grad);
  });
}

/// Takes the step of torch.optim.SGD.
void linear_sgd_(const std::vector<Tensor>& calls, const OptionalTensor& dense,
                 const Tensor& weight, const OptionalTensor& momentum_buffer,
                 const std::optional<int64_t>& most_labels, double lr, double momentum,
                 double dampening, double weight_decay, bool nesterov, bool maximize,
                 bool is_first) {
  const SgdStep sgd{lr, momentum, dampening, weight_decay, nesterov, maximize, is_first};
  const StepOperands all = operands_of(weight, momentum_buffer, "momentum_buffer");
  each_gradient(calls, dense, weight, {0, weight.size(0)}, most_labels,
                [&](const Tensor& grad, Range labels) {
                  isa().sgd(sgd, part_of_operands(all, grad, weight, labels));
                });
}

/// Takes the step of torch.optim.Adam. `steps` counts this one.
void linear_adam_(const std::vector<Tensor>& calls, const OptionalTensor& dense,
                  const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                  const OptionalTensor& max_exp_avg_sq, const std::optional<int64_t>& most_labels,
                  double lr, double beta1, double beta2, double eps, double weight_decay,
                  double steps, bool maximize, bool decoupled_weight_decay) {
  const double beta1_power = std::pow(beta1, steps);
  const double correction = std::pow(1 - std::pow(beta2, steps), 0.5);
  const AdamStep adam{lr,         beta1,        beta2,
                      eps,        weight_decay, beta1_power,
                      correction, maximize,     decoupled_weight_decay};
  StepOperands all = operands_of(weight, exp_avg, "exp_avg");
  all.second = state_of(exp_avg_sq, weight, "exp_avg_sq");
  all.third = state_of(max_exp_avg_sq, weight, "max_exp_avg_sq");
  each_gradient(calls, dense, weight, {0, weight.size(0)}, most_labels,
                [&](const Tensor& grad, Range labels) {
                  isa().adam(adam, part_of_operands(all, grad, weight, labels));
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
