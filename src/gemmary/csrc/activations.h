// Activations as linear reads them: float32 rows and, for quantized weights, the same rows in int8 groups of 32.
#pragma once

#include "formats.h"

namespace gemmary {

// Each group keeps its largest value apart, exactly: x[t, k] is outliers[t, g] where k is the group's place, and elsewhere about
// codes[t, k] * scales[t, g] with scale = (largest of the others) / 127 and code = x / scale rounded to nearest even. One value a group
// costs an eighth more integer work and takes six sevenths of the error away: a Gemma group often has one channel that dwarfs the rest.
// Of equals the first is the outlier, whose code is 0. An all-zero rest has scale 0 and codes 0; a NaN makes the outlier or the scale
// NaN. sums holds the exact sums of the group's two halves of 16 codes, in the low and high 16 bits.
struct QuantizedActivations {
  int64_t cols;      // K, a multiple of 32
  int8_t* codes;     // [T, K]
  float* scales;     // [T, K / 32]
  int32_t* sums;     // [T, K / 32]
  float* outliers;   // [T, K / 32]
  uint8_t* places;   // [T, K / 32]: 0..31
};

// A view of `buffer`, 64-byte aligned and of quantized_activations_bytes(rows, cols) bytes.
size_t quantized_activations_bytes(int64_t rows, int64_t cols);
QuantizedActivations quantized_activations_at(void* buffer, int64_t rows, int64_t cols);

struct Activations {
  const float* x;            // [T, K], rows ldx floats apart, any alignment; read by float formats
  size_t ldx;
  QuantizedActivations q;    // read by quantized formats
};

}  // namespace gemmary
