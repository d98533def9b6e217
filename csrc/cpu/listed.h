// The check of the values of sparse labels.
#pragma once

#include "checks.h"
#include "problem.h"

namespace weighted_bce {

/// Throws where the rows are no parts of the list, where a row's labels do not ascend, or where one
/// is negative or, unless the input is a part of a larger one, beyond its columns.
void check_listed(const Arguments& arguments, const Positives& positives);

}  // namespace weighted_bce
