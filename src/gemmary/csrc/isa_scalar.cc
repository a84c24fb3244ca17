// The plain C++ kernels. Compiled for the oldest machine of the architecture.
#define GEMMARY_ISA_SCALAR
#include "simd.h"

namespace gemmary::scalar {
// Register tiles: rows of x by panels of 16 outputs.
struct Tiles {
  static constexpr int kIntRows = 1, kIntPanels = 1;      // int8 products: integer and float accumulators are alive together
  static constexpr int kFloatRows = 1, kFloatPanels = 1;  // float products
  static constexpr int kIntVectorPanels = 1, kVectorPanels = 1;  // panels side by side for one row of x: int8, float
};
}  // namespace gemmary::scalar

#include "activations_impl.h"
#include "adapter_impl.h"
#include "attention_impl.h"
#include "dequantize_impl.h"
#include "head_impl.h"
#include "kernels.h"
#include "linear_float_impl.h"
#include "probe_impl.h"

namespace gemmary {
extern const Kernels kScalarKernels{Isa::Scalar, "scalar", scalar::quantize_activations, scalar::linear, scalar::adapt, &scalar::kStepKernels, &scalar::kHeadKernels, &scalar::kProbe, scalar::dequantize};
}  // namespace gemmary
