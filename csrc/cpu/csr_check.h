// The check of the values of sparse labels.
#pragma once

#include "args.h"

namespace weighted_bce {

/// Throws where the rows are no parts of col_indices, where a row's labels do not ascend, or where
/// one is negative or, unless the input is a part of a larger one, beyond its columns.
void check_csr(const Arguments& a, const Csr& csr);

}  // namespace weighted_bce
