// The step kernels (norms, rotation, gated units, attention over a ring) on odd sizes, so that their bits can be compared between
// instruction sets.
#pragma once

#include "kernels.h"

namespace gemmary {

// One number of everything that the kernels wrote.
uint64_t step_digest(const StepKernels& kernels);

}  // namespace gemmary
