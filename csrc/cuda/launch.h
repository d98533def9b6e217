// Starts the kernels, from code that knows no CUDA. All throw std::runtime_error with CUDA's words.
#pragma once

#include "cuda/parameters.h"

namespace weighted_bce::cuda {

/// Up to here one block does all, and the sums and factors of the blocks are not needed.
constexpr int64_t kOneBlock = 1024;

/// Computes what the mode says on a stream of the device, with as many blocks as fit at once. Where
/// there is a sum, its last addition is a kernel of its own.
void launch(Mode mode, const Problem& problem, int device, void* stream);

/// problem.loss, a double, receives how many targets are not ignored. `wide`: targets are compared
/// in float64, otherwise in float32.
void launch_count(const Problem& problem, bool wide, int device, void* stream);

/// The newest CUDA that the driver serves, as 1000 major + 10 minor; 0 without a driver.
int driver_version();

}  // namespace weighted_bce::cuda
