// Activations as linear reads them: float32 rows and, for quantized weights, the same rows in int8 groups of 32.
#pragma once

#include "formats.h"

namespace gemmary {

// The rest of a group: x[t, k] is about code * scale, with scale = (largest |x| of the group) / 127 and code = x / scale rounded to nearest
// even. An all-zero group has scale 0; a NaN makes the scale NaN.
struct alignas(8) ActivationGroup {
  int8_t codes[kGroup];
  float scale;
  int32_t sums;     // the exact sums of the two halves of 16 codes, in the low and high 16 bits
};

// A value that more than twice exceeds every other of its group is kept apart, exactly, with code 0 in the group, whose scale is then that
// of the others. In a Gemma about every fourth group has one, often always in the same channel, which would take the precision from the
// rest; keeping them takes three quarters of the error away.
struct Outlier {
  float value;
  int32_t input;    // k
};

// Inputs between two visits to the outliers: part of the order of accumulation (linear.h).
constexpr int64_t kSpanGroups = 32;

struct QuantizedActivations {
  int64_t inputs;          // K; a last group that is not whole is filled up with zeros
  int64_t groups, spans;   // K / 32 and that / 32, both rounded up
  ActivationGroup* data;   // [T, groups]
  Outlier* outliers;       // [T, groups], of which each row uses as many of its first as it has
  int32_t* ends;           // [T, spans]: how many outliers a row has up to the end of each span
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
