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

// Lanes whose |x| is at least half the peak: all of them if the peak is NaN.
GEMMARY_INLINE int32_t near_peak(F32x16 a, F32x16 b, F32x16 peak) {
  const I32x16 none = broadcast_i32(0), one = broadcast_i32(1);
  return reduce_add(select(less(abs(a) + abs(a), peak), none, one) + select(less(abs(b) + abs(b), peak), none, one));
}

// Writes the group and, if it has one, its outlier (input: its place in the group); returns how many.
GEMMARY_INLINE int32_t quantize_group(F32x16 a, F32x16 b, ActivationGroup& out, Outlier& outlier) {
  const I32x16 none = broadcast_i32(0);
  int32_t peak_bits = largest_bits(a, b), outliers = 0;
  const F32x16 peak = from_bits(broadcast_i32(peak_bits));
  if (near_peak(a, b, peak) == 1) {
    const Mask16 in_a = equal(abs(a), peak), in_b = equal(abs(b), peak);
    // As integers, since all other lanes are 0.
    const I32x16 value = select(in_a, bits(a), none) | select(in_b, bits(b), none);
    const I32x16 place = select(in_a, load_i32(kIndex), none) | select(in_b, load_i32(kIndex + 16), none);
    outlier = {__builtin_bit_cast(float, reduce_add(value)), reduce_add(place)};
    outliers = 1;
    a = select(in_a, zero(), a);
    b = select(in_b, zero(), b);
    peak_bits = largest_bits(a, b);
  }
  const float step = __builtin_bit_cast(float, peak_bits) / 127.0f;
  I32x16 qa = none, qb = none;
  if (step != 0.0f) {
    // Clamped because a subnormal step is far from largest / 127; the order of the arguments turns NaN into -127.
    const F32x16 divisor = broadcast(step), low = broadcast(-127.0f), high = broadcast(127.0f);
    qa = to_i32(min(max(a / divisor, low), high));
    qb = to_i32(min(max(b / divisor, low), high));
  }
  store_i8(out.codes, qa);
  store_i8(out.codes + 16, qb);
  out.scale = step;
  out.sums = (reduce_add(qa) & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(reduce_add(qb)) << 16);
  return outliers;
}

static void quantize_activations(const float* x, size_t ldx, const QuantizedActivations& out, int64_t t0, int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    Outlier* const outliers = out.outliers + t * out.groups;
    int32_t count = 0;
    for (int64_t g = 0; g < out.groups; g++) {
      const float* from = x + static_cast<size_t>(t) * ldx + g * kGroup;
      const int64_t left = out.inputs - g * kGroup;
      const F32x16 a = left >= 16 ? load(from) : load_n(from, static_cast<int>(left));
      const F32x16 b = left >= kGroup ? load(from + 16) : left > 16 ? load_n(from + 16, static_cast<int>(left - 16)) : zero();
      Outlier outlier;
      if (quantize_group(a, b, out.data[t * out.groups + g], outlier)) {
        outlier.input += static_cast<int32_t>(g * kGroup);
        outliers[count++] = outlier;
      }
      out.ends[t * out.spans + g / kSpanGroups] = count;
    }
  }
}

}  // namespace gemmary::GEMMARY_ISA
