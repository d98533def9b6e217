// The kernels for any processor.
#include "cpu/kernel.h"

namespace weighted_bce {
extern const Isa kBaseline;
const Isa kBaseline{"baseline", baseline::run};
}  // namespace weighted_bce
