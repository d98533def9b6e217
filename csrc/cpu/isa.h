// The CPU kernels, once for each SIMD instruction set.
#pragma once

#include <string>

#include "problem.h"

namespace weighted_bce {

/// Computes elements [begin, end) of a problem, as its mode says, and returns their part of the sum
/// or of the count, in double precision; 0 for other modes.
using Run = double (*)(const Problem&, int64_t begin, int64_t end);

/// The options of torch.optim.SGD, and whether the momentum has not been written.
struct SgdStep {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, is_first;
};
/// The options of torch.optim.Adam, and what follows from how many steps there have been, t:
/// beta1^t and sqrt(1 - beta2^t).
struct AdamStep {
  double lr, beta1, beta2, eps, weight_decay, beta1_power, correction;
  bool maximize, decoupled_weight_decay;
};
/// Each is n elements: the gradient of the dtype of arithmetic, and others of the dtype of the
/// weight, which are changed.
struct StepOperands {
  int64_t n;
  Dtype dtype;
  const void* grad;
  void *weight, *first;  // first: the momentum, or the average of gradients
  void *second, *third;  // the average of their squares, and the largest such, with amsgrad
};

/// An Isa is all that is compiled for one instruction set.
struct Isa {
  const char* name;
  Run run;
  void (*sgd)(const SgdStep&, const StepOperands&);
  void (*adam)(const AdamStep&, const StepOperands&);
};

/// Returns the best instruction set that this processor has, or the lower one that
/// WEIGHTED_BCE_SIMD names. Throws std::runtime_error, on each call, when the variable holds
/// another word.
const Isa& isa();

/// Makes all calls use its kernels from now on, those of other threads as well. It serves tests.
/// Throws std::runtime_error where nothing has the name or this processor does not have it.
void set_isa(const std::string& name);

/// Lists all that are compiled in, lowest first, and whether this processor has each. Returns how
/// many.
struct IsaInfo {
  const Isa* isa;
  bool supported;
};
constexpr int kMaxIsas = 3;
int isas(IsaInfo (&out)[kMaxIsas]);

}  // namespace weighted_bce
