// The matrix product, y[t, n] = sum over k of weight[n, k] * x[t, k], with the same bits on every instruction set, for any range of
// rows or panels, in any order: each output is one chain of fused multiply-adds in an order that k alone decides.
//   float weights (F32, BF16, F16, widened exactly):  acc = fma(w[k], x[k], acc) for each k
//   quantized weights and activations: span after span of 1,024 inputs, in each first all groups of 32, then all outliers (activations.h).
//     A group, with its integer sums exact, x the codes of the activations and xs their scale:
//       Q4_0 Q5_0 Q8_0   acc = fma(float(sum (q - zero) x) * d, xs, acc)
//       Q6_K Q3_K        the same with every (q - zero) times its sub-block's scale
//       Q4_1 Q5_1        acc = fma(fma(float(sum q x), d, float(sum x) * m), xs, acc)
//       Q4_K Q5_K Q2_K   the same with every q times its sub-block's scale, sum x times its sub-block's min, and m = -dmin
//     An outlier of value xo is a group of one input: the same formula with x = 1 and xo for xs.
// Every integer sum is below 2^24 in magnitude (the largest is Q6_K's, 32 * 128 * 32 * 127), so its conversion to float32
// is exact too.
#pragma once

#include "activations.h"
#include "packed.h"

namespace gemmary {

// Scratch that one thread gives to linear: 64-byte aligned, contents undefined before and after.
constexpr size_t kLinearScratchBytes = 128 * 1024;

// y[t * ldy + n] for t in [t0, t1) and the rows n of panels [p0, p1); t and n are absolute. Nothing else of y is written.
using LinearFunction = void(const PackedView& weight, const Activations& x, int64_t t0, int64_t t1, int64_t p0, int64_t p1, float* y,
                            size_t ldy, void* scratch);

// Rows [t0, t1) of x, ldx floats apart.
using QuantizeActivationsFunction = void(const float* x, size_t ldx, const QuantizedActivations& out, int64_t t0, int64_t t1);

}  // namespace gemmary
