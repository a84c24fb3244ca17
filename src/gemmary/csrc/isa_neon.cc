// The Arm dot-product kernels. Compiled with -march=armv8.2-a+dotprod.
#define GEMMARY_ISA_NEON
#include "simd.h"

namespace gemmary::neon {
// Register tiles: rows of x by panels of 16 outputs.
struct Tiles {
  static constexpr int kIntRows = 4, kIntPanels = 1;      // int8 products: integer and float accumulators are alive together
  static constexpr int kFloatRows = 6, kFloatPanels = 1;  // float products
  static constexpr int kIntVectorPanels = 1, kVectorPanels = 2;  // panels side by side for one row of x: int8, float
};
}  // namespace gemmary::neon

#include "activations_impl.h"
#include "adapter_impl.h"
#include "attention_impl.h"
#include "dequantize_impl.h"
#include "head_impl.h"
#include "kernels.h"
#include "linear_float_impl.h"
#include "probe_impl.h"

namespace gemmary {
extern const Kernels kNeonKernels{Isa::Neon, "neon", neon::quantize_activations, neon::linear, neon::adapt, &neon::kStepKernels, &neon::kHeadKernels, &neon::kProbe, neon::dequantize};
}  // namespace gemmary
