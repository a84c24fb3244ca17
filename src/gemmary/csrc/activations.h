// Activations as linear reads them: float32 rows and, for quantized weights, the same rows in int8 groups of 32.
#pragma once

#include "formats.h"

namespace gemmary {

// Each group keeps its largest value apart, exactly: x[t, k] is the group's outlier where k is its place, and elsewhere about
// code * scale with scale = (largest of the others) / 127 and code = x / scale rounded to nearest even. One value a group costs an eighth
// more integer work and takes six sevenths of the error away: a Gemma group often has one channel that dwarfs the rest. Of equals the
// first is the outlier, whose code is 0. An all-zero rest has scale 0 and codes 0; a NaN makes the outlier or the scale NaN.
struct alignas(16) ActivationGroup {
  int8_t codes[kGroup];
  float scale;
  int32_t sums;     // the exact sums of the two halves of 16 codes, in the low and high 16 bits
  float outlier;
  uint32_t place;   // the outlier is input 4v + i of the group: i | v << 8
};

// [T, K / 32], row after row.
struct QuantizedActivations {
  int64_t groups;   // K / 32
  ActivationGroup* data;
};

// A view of `buffer`, 64-byte aligned and of quantized_activations_bytes(rows, cols) bytes; cols is a multiple of 32.
size_t quantized_activations_bytes(int64_t rows, int64_t cols);
QuantizedActivations quantized_activations_at(void* buffer, int64_t rows, int64_t cols);

struct Activations {
  const float* x;            // [T, K], rows ldx floats apart, any alignment; read by float formats
  size_t ldx;
  QuantizedActivations q;    // read by quantized formats
};

}  // namespace gemmary
