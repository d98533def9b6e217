// The schemas of all ops. Arguments in this order throughout:
//
//   input            logits, any shape
//   target           the same shape; with crow_indices the col_indices of sparse labels: input is
//                    then (rows, labels), and the target 1 in row r at the labels
//                    target[crow_indices[r] : crow_indices[r + 1]], which ascend, and 0 elsewhere
//   crow_indices     (rows + 1,), of the dtype of target, int32 or int64
//   weight           broadcasts to input
//   pos_weight       broadcasts to input; where it is None, pos_weight_value is used
//   label_smoothing  in [0, 1)
//   ignore_index     targets equal to it do not count; NaN ignores NaN
//   first_label      only with crow_indices: the label of the first column of input, where it is a
//                    part of a larger one. Labels outside of it may be listed, and so may rows:
//                    crow_indices need not begin with 0. None: all that is listed is in input
//   reduction        1: the mean over the targets that count; 2: the sum; 3: the sum divided by the
//                    size of the first dimension
#include <torch/csrc/stable/library.h>

#define WEIGHTED_BCE_ARGS                                                     \
  "Tensor target, Tensor? crow_indices, Tensor? weight, Tensor? pos_weight, " \
  "float pos_weight_value, float label_smoothing, float? ignore_index, int? first_label"

STABLE_TORCH_LIBRARY(weighted_bce, m) {
  m.def("loss(Tensor input, " WEIGHTED_BCE_ARGS ", int reduction) -> Tensor");
  // The gradient for an upstream gradient of `expected`, a 0-d tensor of the dtype of the loss; the
  // third result is the value found there, NaN if another stream changed it meanwhile.
  m.def("loss_and_grad(Tensor input, " WEIGHTED_BCE_ARGS
        ", int reduction, Tensor expected) -> (Tensor, Tensor, Tensor)");
  // The gradient is written over input, whose version the caller increments.
  m.def("loss_and_grad_(Tensor(a!) input, " WEIGHTED_BCE_ARGS
        ", int reduction, Tensor expected) -> Tensor");
  // What loss_and_grad gave, grad for an upstream gradient of used, becomes what it is for that of
  // grad_output; it is left alone where the two are equal. used becomes grad_output, and so does
  // expected, unless it is 0.
  m.def(
      "update_grad_(Tensor grad_output, Tensor(a!) used, Tensor(b!) expected, Tensor(c!) grad, "
      "Tensor input, " WEIGHTED_BCE_ARGS ", int reduction) -> ()");
  // grad_output: 0-d, or of input's shape, which for a sum makes it that of an unreduced loss.
  // grad_ writes over input, whose version the caller increments.
  m.def("grad(Tensor grad_output, Tensor input, " WEIGHTED_BCE_ARGS ", int reduction) -> Tensor");
  m.def("grad_(Tensor grad_output, Tensor(a!) input, " WEIGHTED_BCE_ARGS ", int reduction) -> ()");
  // Room for a gradient of the tensor; on the CPU in memory that an earlier one has left.
  m.def("empty_grad(Tensor tensor) -> Tensor");
  m.def("unreduced(Tensor input, " WEIGHTED_BCE_ARGS ") -> Tensor");
}
