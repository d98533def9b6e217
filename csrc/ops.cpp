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
  // Memory for a gradient of the tensor; on the CPU it may be what an earlier one has left.
  m.def("empty_grad(Tensor tensor) -> Tensor");
}
