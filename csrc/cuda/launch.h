// Starts the kernels, from code that knows no CUDA. All functions throw std::runtime_error with
// CUDA's message.
#pragma once

#include "problem.h"

namespace weighted_bce::cuda {

constexpr int kThreads = 256;  // of a block
constexpr int kMaxBlocks = 4096;
/// Up to here one block does all, and Workspace::sums is not needed.
constexpr int64_t kOneBlock = 1024;

/// A call needs this device memory besides its operands. T is double for float64 logits, and float
/// for others.
struct Workspace {
  const double* count = nullptr;  // the divisor; null: problem.divisor
  double* sums = nullptr;         // [kMaxBlocks]
  void* loss = nullptr;           // T; double for Mode::kCount
  // T. With Mode::kLossAndGrad, `used` receives the grad_output that the gradient is made with.
  // With Mode::kGrad and `expected`, problem.out is that gradient: it is written again only where
  // grad_output differs from `used`, and both then become grad_output, but for an expected 0.
  void* used = nullptr;
  void* expected = nullptr;
};
static_assert(sizeof(Problem) + sizeof(Workspace) <= 4096, "the arguments of a kernel");

/// Computes what problem.mode says on a stream of the device, with as many blocks as fit at once.
/// Where there is a sum, its last addition is a kernel of its own.
void launch(const Problem& problem, const Workspace& workspace, int device, void* stream);

/// Returns the newest CUDA that the driver serves, as 1000 major + 10 minor; 0 without a driver.
int driver_version();

}  // namespace weighted_bce::cuda
