// Sixteen-lane vectors with one meaning on every instruction set.
//
// A translation unit defines exactly one of GEMMARY_ISA_SCALAR, GEMMARY_ISA_AVX2, GEMMARY_ISA_AVX512, GEMMARY_ISA_NEON, is compiled
// with that set's flags, and includes this file. Everything here lands in `namespace gemmary::<isa>`, so code compiled with wide flags
// can never be picked by the linker for a narrow machine. For the same reason these units call no inline function of a common header
// and no std:: template.
//
// Every operation gives the same bits on every instruction set (NaN payloads and signs excepted). What that needs:
//   max(a, b) is a > b ? a : b and min(a, b) is a < b ? a : b, so b is returned when either is NaN (x86's rule);
//   to_i32 rounds to nearest even, and is defined for |x| < 2^31 only;
//   reduce_add folds lanes i and i+8, then i+4, i+2, i+1; nothing else adds across lanes;
//   fma is always fused, and nothing is ever contracted into one (-ffp-contract=off).
#pragma once

#include <cstdint>
#include <cstring>

// Always inlined where a call would cost more than the work. The plain twin and unoptimized builds (the tests') want small code instead.
#if defined(GEMMARY_ISA_SCALAR) || !defined(__OPTIMIZE__)
#define GEMMARY_INLINE inline
#else
#define GEMMARY_INLINE inline __attribute__((always_inline))
#endif

#if defined(GEMMARY_ISA_SCALAR)
#define GEMMARY_ISA scalar
#include "simd_scalar.h"
#elif defined(GEMMARY_ISA_AVX2)
#define GEMMARY_ISA avx2
#include "simd_avx2.h"
#elif defined(GEMMARY_ISA_AVX512)
#define GEMMARY_ISA avx512
#include "simd_avx512.h"
#elif defined(GEMMARY_ISA_NEON)
#define GEMMARY_ISA neon
#include "simd_neon.h"
#else
#error "define one GEMMARY_ISA_* before including simd.h"
#endif

namespace gemmary::GEMMARY_ISA {

// What each backend provides (F32x16 and I32x16 are values; Mask16 is opaque):
//   F32x16 load(const float*)  void store(float*, F32x16)  F32x16 broadcast(float)              [any alignment]
//   F32x16 + - * /   fma(a, b, c) = a*b + c   max  min  abs  sqrt  round (to nearest even)
//   Mask16 less(a, b), equal(a, b) for F32x16 and I32x16 (false for NaN)   select(Mask16, if_true, if_false)
//   I32x16 load_i32(const int32_t*)  store_i32  broadcast_i32   + - * & | ^   max(a, b) (signed)
//   shl<n>(v)  shr<n>(v) (zeros in)  sar<n>(v) (sign in)
//   I32x16 to_i32(F32x16)  F32x16 to_f32(I32x16)   I32x16 bits(F32x16)  F32x16 from_bits(I32x16)
//   I32x16 load_u8(const uint8_t*)  load_i8(const int8_t*)  load_u16(const uint16_t*)
//   void store_i8(int8_t*, I32x16 in -128..127)  store_u16(uint16_t*, I32x16 in 0..65535)
//   F32x16 load_f16(const uint16_t*)  load_bf16(const uint16_t*)   float reduce_add(F32x16)   int32_t reduce_add(I32x16)  reduce_max(I32x16)
//   the integer dot products of linear_impl.h: see the end of simd_scalar.h, which is their definition

constexpr int kLanes = 16;

GEMMARY_INLINE F32x16 zero() { return broadcast(0.0f); }
GEMMARY_INLINE F32x16 neg(F32x16 a) { return from_bits(bits(a) ^ broadcast_i32(INT32_MIN)); }

// The first n lanes (0 <= n <= 16); the others are 0 on load and untouched in memory on store.
GEMMARY_INLINE F32x16 load_n(const float* p, int n) {
  float lanes[kLanes] = {};
  for (int i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}
GEMMARY_INLINE void store_n(float* p, F32x16 v, int n) {
  float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
}

// bfloat16: the upper half of a float32; stores round to nearest even, and a NaN stays a (quiet) NaN.
GEMMARY_INLINE void store_bf16(uint16_t* p, F32x16 v) {
  const I32x16 u = bits(v), top = shr<16>(u);
  const I32x16 rounded = shr<16>(u + broadcast_i32(0x7fff) + (top & broadcast_i32(1)));
  store_u16(p, select(equal(v, v), rounded, top | broadcast_i32(0x40)));
}
GEMMARY_INLINE F32x16 load_bf16_n(const uint16_t* p, int n) {
  uint16_t lanes[kLanes] = {};
  for (int i = 0; i < n; i++) lanes[i] = p[i];
  return load_bf16(lanes);
}
GEMMARY_INLINE void store_bf16_n(uint16_t* p, F32x16 v, int n) {
  uint16_t lanes[kLanes];
  store_bf16(lanes, v);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
}

GEMMARY_INLINE float reduce_max(F32x16 v) {
  float lanes[kLanes];
  store(lanes, v);
  float m = lanes[0];
  for (int i = 1; i < kLanes; i++) m = m > lanes[i] ? m : lanes[i];
  return m;
}

// e^x: at most 1.01 ulp from the true value (measured on every 13th float32; 0.75 where the result is subnormal). Exactly 0 below about
// -103.98 and for -inf, inf above 88.7228, 1 for 0, NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r), q fitted by Remez (relative error 2^-28.3); 2^n in two exact factors.
GEMMARY_INLINE F32x16 exp(F32x16 x) {
  x = min(broadcast(89.0f), max(broadcast(-104.5f), x));  // this order lets NaN through
  const I32x16 n = to_i32(x * broadcast(0x1.715476p+0f));
  const F32x16 nf = to_f32(n);
  F32x16 r = fma(nf, broadcast(-0x1.63p-1f), x);          // 355/512: n times it is exact
  r = fma(nf, broadcast(0x1.bd0106p-13f), r);
  F32x16 q = broadcast(0x1.6a2352p-10f);
  q = fma(q, r, broadcast(0x1.123a6cp-7f));
  q = fma(q, r, broadcast(0x1.5558f4p-5f));
  q = fma(q, r, broadcast(0x1.55549p-3f));
  q = fma(q, r, broadcast(0x1.fffffcp-2f));
  const F32x16 p = fma(r * r, q, r) + broadcast(1.0f);
  const I32x16 half = sar<1>(n), bias = broadcast_i32(127);
  return p * from_bits(shl<23>(half + bias)) * from_bits(shl<23>(n - half + bias));
}

// tanh: at most 1.33 ulp (measured likewise). Odd polynomial below 0.625 (Remez, relative error 2^-31.8), 1 - 2 / (e^2x + 1) above; NaN
// for NaN, -0 for -0.
GEMMARY_INLINE F32x16 tanh(F32x16 x) {
  const F32x16 a = abs(x), u = x * x, one = broadcast(1.0f), two = broadcast(2.0f);
  F32x16 p = broadcast(0x1.0df40ep-9f);
  p = fma(p, u, broadcast(-0x1.08f326p-7f));
  p = fma(p, u, broadcast(0x1.62eee6p-6f));
  p = fma(p, u, broadcast(-0x1.b9e042p-5f));
  p = fma(p, u, broadcast(0x1.11101ep-3f));
  p = fma(p, u, broadcast(-0x1.555552p-2f));
  const F32x16 small = fma(a * u, p, a), large = one - two / (exp(a + a) + one);
  const F32x16 magnitude = select(less(a, broadcast(0.625f)), small, large);
  return from_bits(bits(magnitude) | (bits(x) & broadcast_i32(INT32_MIN)));
}

}  // namespace gemmary::GEMMARY_ISA
