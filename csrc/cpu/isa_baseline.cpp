// The kernels for any processor.
#include "cpu/kernel.h"
#include "cpu/step.h"

namespace weighted_bce {
extern const Isa kBaseline;
const Isa kBaseline{"baseline", baseline::run, baseline::sgd, baseline::adam};
}  // namespace weighted_bce
