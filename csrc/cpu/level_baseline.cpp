// The kernels for any processor: four floats at a time, lowered by the compiler.
#include "cpu/level_headers.h"

#define WEIGHTED_BCE_LEVEL baseline
#define WEIGHTED_BCE_VECTOR_BYTES 16
#include "cpu/level.h"

namespace weighted_bce {
extern const Level kBaseline;
const Level kBaseline{"baseline", baseline::kernels<float>(), baseline::kernels<double>()};
}  // namespace weighted_bce
