// From tensors to the Problem that the kernels work on.
#pragma once

#include "checks.h"
#include "problem.h"

namespace weighted_bce {

/// The iteration follows the memory of `input`, whatever the order of its dimensions
/// (channels_last, a transpose). `out`, when not null, has its shape; `upstream` is null, has the
/// shape of input, or is 0-d and on the CPU. With sparse labels it goes row by row. Dimensions that
/// no operand tells apart are merged.
Problem plan(const Arguments& arguments, const Tensor* upstream, const Tensor* out);

/// The value of a floating-point tensor on the CPU with one element.
double only_value(const Tensor& tensor);

/// The strides of a new tensor for the gradient or the unreduced loss, those of torch.empty_like:
/// the order of input's dimensions without its gaps. `strides` has room for input.dim().
void output_strides(const Tensor& input, int64_t* strides);

/// True where no two elements of the tensor can share memory, by its sizes and strides.
bool non_overlapping(const Tensor& tensor);

}  // namespace weighted_bce
