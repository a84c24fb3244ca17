// The AVX-512 VNNI kernels. Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c.
#define GEMMARY_ISA_AVX512
#include "simd.h"

namespace gemmary::avx512 {
// Register tiles: rows of x by panels of 16 outputs.
struct Tiles {
  static constexpr int kIntRows = 4, kIntPanels = 3;      // int8 products: integer and float accumulators are alive together
  static constexpr int kFloatRows = 8, kFloatPanels = 3;  // float products
  static constexpr int kIntVectorPanels = 2, kVectorPanels = 4;  // panels side by side for one row of x: int8, float
};
}  // namespace gemmary::avx512

#include "activations_impl.h"
#include "adapter_impl.h"
#include "attention_impl.h"
#include "dequantize_impl.h"
#include "head_impl.h"
#include "kernels.h"
#include "linear_float_impl.h"
#include "probe_impl.h"

namespace gemmary {
extern const Kernels kAvx512Kernels{Isa::Avx512, "avx512", avx512::quantize_activations, avx512::linear, avx512::adapt, &avx512::kStepKernels, &avx512::kHeadKernels, &avx512::kProbe, avx512::dequantize};
}  // namespace gemmary
