// The schemas of all ops. An op's own tensors come first, then input, then the arguments of args.h.
#include "args.h"

STABLE_TORCH_LIBRARY(weighted_bce, m) {
  const std::string shared = weighted_bce::schema_of_arguments();
  const auto define = [&](const char* begin, const char* end) {
    m.def((begin + shared + end).c_str());
  };
  define("loss(Tensor input", ") -> Tensor");
  // The loss; the gradient for a grad_output of `expected`, a 0-d tensor of the dtype of the loss;
  // and a copy of `expected`.
  define("loss_and_grad(Tensor expected, Tensor input", ") -> (Tensor, Tensor, Tensor)");
  // The gradient is written over input, whose version the caller increments.
  define("loss_and_grad_(Tensor expected, Tensor(a!) input", ") -> Tensor");
  // What loss_and_grad gave, grad for a grad_output of used, becomes what it is for this
  // grad_output; it is left alone where the two are equal. used becomes grad_output, and so does
  // expected, unless it is 0.
  define(
      "update_grad_(Tensor grad_output, Tensor(a!) used, Tensor(b!) expected, Tensor(c!) grad, "
      "Tensor input",
      ") -> ()");
  // grad_output: 0-d, or of input's shape, which for a sum makes it that of an unreduced loss.
  // grad_ writes over input, whose version the caller increments.
  define("grad(Tensor grad_output, Tensor input", ") -> Tensor");
  define("grad_(Tensor grad_output, Tensor(a!) input", ") -> ()");
  define("unreduced(Tensor input", ") -> Tensor");
  // The loss of a linear layer, and its gradients where grad_output is given; see cpu/linear.cpp.
  // input has the shape of the logits and the dtype of x, and no memory of its own. Without a
  // reduction there is a loss for each row, or, with grad_output, (rows, 1), only the gradients. No
  // tile of the logits has more labels than most_labels.
  define(
      "linear_pass_(Tensor? grad_output, Tensor x, Tensor linear_weight, Tensor? linear_bias, "
      "Tensor(a!)? input_grad, Tensor(b!)? weight_grad, Tensor(c!)? bias_grad, int? most_labels, "
      "Tensor input",
      ") -> Tensor");
  // What the ops below need of a call of the loss of a linear layer, as a tensor of bytes. They add
  // the gradients of the weight of several calls to a dense one. One writes that of some labels to
  // out, and others take the steps of torch's optimizers with it; see cpu/linear_step.cpp.
  define("linear_call(Tensor grad_output, Tensor x, Tensor? linear_bias, Tensor input",
         ") -> Tensor");
  m.def(
      "linear_weight_grad_(Tensor[] calls, Tensor? dense, Tensor linear_weight, int first_label, "
      "Tensor(a!) out, int? most_labels) -> ()");
  m.def(
      "linear_sgd_(Tensor[] calls, Tensor? dense, Tensor(a!) linear_weight, "
      "Tensor(b!)? momentum_buffer, int? most_labels, float lr, float momentum, float dampening, "
      "float weight_decay, bool nesterov, bool maximize, bool is_first_step) -> ()");
  m.def(
      "linear_adam_(Tensor[] calls, Tensor? dense, Tensor(a!) linear_weight, Tensor(b!) exp_avg, "
      "Tensor(c!) exp_avg_sq, Tensor(d!)? max_exp_avg_sq, int? most_labels, float lr, "
      "float beta1, float beta2, float eps, float weight_decay, float steps, bool maximize, "
      "bool decoupled_weight_decay) -> ()");
  // Memory for a gradient of the tensor; on the CPU it may be what an earlier one has left.
  m.def("empty_grad(Tensor tensor) -> Tensor");
}
