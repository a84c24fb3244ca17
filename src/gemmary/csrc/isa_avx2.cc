// The AVX2 kernels. Compiled with -mavx2 -mfma -mf16c.
#define GEMMARY_ISA_AVX2
#include "simd.h"

namespace gemmary::avx2 {
// Register tiles: rows of x by panels of 16 outputs.
struct Tiles {
  static constexpr int kIntRows = 4, kIntPanels = 1;      // int8 products: integer and float accumulators are alive together
  static constexpr int kFloatRows = 6, kFloatPanels = 1;  // float products
  static constexpr int kIntVectorPanels = 2, kVectorPanels = 3;  // panels side by side for one row of x: int8, float
};
}  // namespace gemmary::avx2

#include "activations_impl.h"
#include "adapter_impl.h"
#include "attention_impl.h"
#include "dequantize_impl.h"
#include "head_impl.h"
#include "kernels.h"
#include "linear_float_impl.h"
#include "probe_impl.h"

namespace gemmary {
extern const Kernels kAvx2Kernels{Isa::Avx2, "avx2", avx2::quantize_activations, avx2::linear, avx2::adapt, &avx2::kStepKernels, &avx2::kHeadKernels, &avx2::kProbe, avx2::dequantize};
}  // namespace gemmary
