// The losses of the rows of a linear layer.
#pragma once

#include "cpu/linear_call.h"

namespace weighted_bce {

/// Returns the sum of each row's losses, (rows,).
Tensor losses_of_rows(const LinearCall& call, const Tensor& weight, const LinearTiles& tiles);

}  // namespace weighted_bce
