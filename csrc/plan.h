// Makes the Problem that the kernels work on from tensors.
#pragma once

#include "args.h"

namespace weighted_bce {

/// Returns the problem of a call. The iteration follows the memory of `input`, whatever the order
/// of its dimensions (channels_last, a transpose). `grad_output` may be null; `out`, where it is
/// not null, has the shape of input. With sparse labels it goes row by row. Dimensions that no
/// operand tells apart are merged.
Problem plan(Mode mode, const Arguments& a, const Tensor* grad_output, const Tensor* out);

/// Returns the kernels' name of a tensor's dtype. Throws where they do not know it.
Dtype dtype_of(const Tensor& tensor);

/// Returns the value of a tensor on the CPU with one element.
double only_value(const Tensor& tensor);

/// Writes the strides of a new tensor for the gradient or the unreduced loss, those of
/// torch.empty_like: the order of input's dimensions without its gaps. `strides` holds kMaxDims.
void output_strides(const Tensor& input, int64_t* strides);

/// Tells whether no two elements of the tensor can share memory, by its sizes and strides.
bool non_overlapping(const Tensor& tensor);

}  // namespace weighted_bce
