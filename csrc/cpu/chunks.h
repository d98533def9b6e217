// Computes all elements of a problem, by chunks that threads share.
#pragma once

#include "args.h"

namespace weighted_bce {

/// Computes what the problem's mode says, and returns the sum of the losses or the count; 0 for
/// other modes.
double run_chunks(const Problem& problem);

/// Returns what a sum of losses is divided by, and a gradient as well. It may count targets, those
/// of the problem.
double divisor_of(const Arguments& a, Problem problem);

/// Returns a sum after the reduction. It is 0 where nothing counts although there are elements,
/// instead of 0 / 0.
double reduced(double sum, double divisor, int64_t numel);

}  // namespace weighted_bce
