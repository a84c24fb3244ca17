// The step kernels (norms, rotation, gated units, attention over a ring) on odd sizes, so that their bits can be compared between
// instruction sets.
#pragma once

#include "kernels.h"

namespace gemmary {

// One number of everything that the kernels wrote; 0: attention cut into spans gave other bits than attention in one piece.
uint64_t step_digest(const StepKernels& kernels);

}  // namespace gemmary
