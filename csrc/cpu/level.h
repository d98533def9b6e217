// One level of the kernels: level_*.cpp sets WEIGHTED_BCE_LEVEL (its namespace and name),
// kBytes and the compiler's target, then includes this.
//
// The standard headers come before the target is set: what is inlined from them is then compiled
// for the baseline, and no processor meets an instruction that it lacks.

#include "loss_math.h"

namespace weighted_bce {
namespace {
namespace WEIGHTED_BCE_LEVEL {

constexpr int kBytes = WEIGHTED_BCE_VECTOR_BYTES;
#include "cpu/vec.h"

#include "cpu/convert.h"

#include "cpu/lines.h"

#include "cpu/positives.h"

#include "cpu/groups.h"

#include "cpu/sum.h"

#include "cpu/kernel.h"

}  // namespace WEIGHTED_BCE_LEVEL
}  // namespace
}  // namespace weighted_bce
