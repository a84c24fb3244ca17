// Quantizing activations to int8 groups, on the instruction set of the including unit (see simd.h).
#pragma once

#include "activations.h"
#include "simd.h"

namespace gemmary::GEMMARY_ISA {

alignas(64) constexpr int32_t kIndex[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                            16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

// Bits of the largest |x| of a group. As integers the bit patterns of |x| order like the values, with NaN above infinity, so a NaN is
// not lost.
GEMMARY_INLINE I32x16 magnitude(F32x16 x) { return bits(x) & broadcast_i32(INT32_MAX); }
GEMMARY_INLINE int32_t largest_bits(F32x16 a, F32x16 b) { return reduce_max(max(magnitude(a), magnitude(b))); }

// One group of 32: number `at` of `out`.
GEMMARY_INLINE void quantize_group(F32x16 a, F32x16 b, const QuantizedActivations& out, int64_t at) {
  const I32x16 first = load_i32(kIndex), second = load_i32(kIndex + 16), last = broadcast_i32(31);
  const I32x16 peak = broadcast_i32(largest_bits(a, b)), no = broadcast_i32(-1);
  const int32_t from_end = reduce_max(max(select(equal(magnitude(a), peak), last - first, no), select(equal(magnitude(b), peak), last - second, no)));
  const int32_t place = 31 - from_end;
  const I32x16 here = broadcast_i32(place);
  out.places[at] = static_cast<uint8_t>(place);
  a = select(equal(first, here), zero(), a);
  b = select(equal(second, here), zero(), b);
  const float largest = __builtin_bit_cast(float, largest_bits(a, b));
  const float step = largest / 127.0f;
  I32x16 qa = broadcast_i32(0), qb = qa;
  if (step != 0.0f) {
    // Clamped because a subnormal step is far from largest / 127; the order of the arguments turns NaN into -127.
    const F32x16 divisor = broadcast(step), low = broadcast(-127.0f), high = broadcast(127.0f);
    qa = to_i32(min(max(a / divisor, low), high));
    qb = to_i32(min(max(b / divisor, low), high));
  }
  store_i8(out.codes + at * kGroup, qa);
  store_i8(out.codes + at * kGroup + 16, qb);
  out.scales[at] = step;
  out.sums[at] = (reduce_add(qa) & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(reduce_add(qb)) << 16);
}

static void quantize_activations(const float* x, size_t ldx, const QuantizedActivations& out, int64_t t0, int64_t t1) {
  const int64_t groups = out.cols / kGroup;
  for (int64_t t = t0; t < t1; t++)
    for (int64_t g = 0; g < groups; g++) {
      const float* from = x + static_cast<size_t>(t) * ldx + g * kGroup;
      const int64_t at = t * groups + g;
      quantize_group(load(from), load(from + 16), out, at);
      out.outliers[at] = from[out.places[at]];
    }
}

}  // namespace gemmary::GEMMARY_ISA
