// The plain twin: every vector operation written as a loop over its 16 lanes. It is the definition that the other backends must equal,
// and the only backend a machine needs. Included by simd.h only.
#pragma once

#include <cmath>

namespace gemmary::scalar {

struct F32x16 { float v[16]; };
struct I32x16 { int32_t v[16]; };
struct Mask16 { bool v[16]; };

#define GEMMARY_LANES(TYPE, EXPRESSION) \
  {                                     \
    TYPE r;                             \
    for (int i = 0; i < 16; i++) r.v[i] = (EXPRESSION); \
    return r;                           \
  }

GEMMARY_INLINE F32x16 load(const float* p) GEMMARY_LANES(F32x16, p[i])
GEMMARY_INLINE void store(float* p, F32x16 a) { std::memcpy(p, a.v, 64); }
GEMMARY_INLINE F32x16 broadcast(float x) GEMMARY_LANES(F32x16, x)
GEMMARY_INLINE F32x16 operator+(F32x16 a, F32x16 b) GEMMARY_LANES(F32x16, a.v[i] + b.v[i])
GEMMARY_INLINE F32x16 operator-(F32x16 a, F32x16 b) GEMMARY_LANES(F32x16, a.v[i] - b.v[i])
GEMMARY_INLINE F32x16 operator*(F32x16 a, F32x16 b) GEMMARY_LANES(F32x16, a.v[i] * b.v[i])
GEMMARY_INLINE F32x16 operator/(F32x16 a, F32x16 b) GEMMARY_LANES(F32x16, a.v[i] / b.v[i])
GEMMARY_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) GEMMARY_LANES(F32x16, __builtin_fmaf(a.v[i], b.v[i], c.v[i]))
GEMMARY_INLINE F32x16 max(F32x16 a, F32x16 b) GEMMARY_LANES(F32x16, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
GEMMARY_INLINE F32x16 min(F32x16 a, F32x16 b) GEMMARY_LANES(F32x16, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
GEMMARY_INLINE F32x16 abs(F32x16 a) GEMMARY_LANES(F32x16, __builtin_fabsf(a.v[i]))
GEMMARY_INLINE F32x16 sqrt(F32x16 a) GEMMARY_LANES(F32x16, __builtin_sqrtf(a.v[i]))
GEMMARY_INLINE F32x16 round(F32x16 a) GEMMARY_LANES(F32x16, __builtin_rintf(a.v[i]))

GEMMARY_INLINE Mask16 less(F32x16 a, F32x16 b) GEMMARY_LANES(Mask16, a.v[i] < b.v[i])
GEMMARY_INLINE Mask16 equal(F32x16 a, F32x16 b) GEMMARY_LANES(Mask16, a.v[i] == b.v[i])
GEMMARY_INLINE Mask16 less(I32x16 a, I32x16 b) GEMMARY_LANES(Mask16, a.v[i] < b.v[i])
GEMMARY_INLINE Mask16 equal(I32x16 a, I32x16 b) GEMMARY_LANES(Mask16, a.v[i] == b.v[i])
GEMMARY_INLINE F32x16 select(Mask16 m, F32x16 a, F32x16 b) GEMMARY_LANES(F32x16, m.v[i] ? a.v[i] : b.v[i])
GEMMARY_INLINE I32x16 select(Mask16 m, I32x16 a, I32x16 b) GEMMARY_LANES(I32x16, m.v[i] ? a.v[i] : b.v[i])

GEMMARY_INLINE I32x16 load_i32(const int32_t* p) GEMMARY_LANES(I32x16, p[i])
GEMMARY_INLINE void store_i32(int32_t* p, I32x16 a) { std::memcpy(p, a.v, 64); }
GEMMARY_INLINE I32x16 broadcast_i32(int32_t x) GEMMARY_LANES(I32x16, x)
// Integer arithmetic wraps, as the vector instructions do: computed unsigned so that it is defined in C++ too.
GEMMARY_INLINE I32x16 operator+(I32x16 a, I32x16 b) GEMMARY_LANES(I32x16, static_cast<int32_t>(uint32_t(a.v[i]) + uint32_t(b.v[i])))
GEMMARY_INLINE I32x16 operator-(I32x16 a, I32x16 b) GEMMARY_LANES(I32x16, static_cast<int32_t>(uint32_t(a.v[i]) - uint32_t(b.v[i])))
GEMMARY_INLINE I32x16 operator*(I32x16 a, I32x16 b) GEMMARY_LANES(I32x16, static_cast<int32_t>(uint32_t(a.v[i]) * uint32_t(b.v[i])))
GEMMARY_INLINE I32x16 operator&(I32x16 a, I32x16 b) GEMMARY_LANES(I32x16, a.v[i] & b.v[i])
GEMMARY_INLINE I32x16 operator|(I32x16 a, I32x16 b) GEMMARY_LANES(I32x16, a.v[i] | b.v[i])
GEMMARY_INLINE I32x16 operator^(I32x16 a, I32x16 b) GEMMARY_LANES(I32x16, a.v[i] ^ b.v[i])
GEMMARY_INLINE I32x16 max(I32x16 a, I32x16 b) GEMMARY_LANES(I32x16, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
template <int kBits> GEMMARY_INLINE I32x16 shl(I32x16 a) GEMMARY_LANES(I32x16, static_cast<int32_t>(uint32_t(a.v[i]) << kBits))
template <int kBits> GEMMARY_INLINE I32x16 shr(I32x16 a) GEMMARY_LANES(I32x16, static_cast<int32_t>(uint32_t(a.v[i]) >> kBits))
template <int kBits> GEMMARY_INLINE I32x16 sar(I32x16 a) GEMMARY_LANES(I32x16, a.v[i] >> kBits)

GEMMARY_INLINE int32_t nearest_i32(float x) {
  const float r = __builtin_rintf(x);
  return r >= -0x1p31f && r < 0x1p31f ? static_cast<int32_t>(r) : INT32_MIN;  // NaN and overflow, as x86 does
}
GEMMARY_INLINE I32x16 to_i32(F32x16 a) GEMMARY_LANES(I32x16, nearest_i32(a.v[i]))
GEMMARY_INLINE F32x16 to_f32(I32x16 a) GEMMARY_LANES(F32x16, static_cast<float>(a.v[i]))
GEMMARY_INLINE I32x16 bits(F32x16 a) GEMMARY_LANES(I32x16, __builtin_bit_cast(int32_t, a.v[i]))
GEMMARY_INLINE F32x16 from_bits(I32x16 a) GEMMARY_LANES(F32x16, __builtin_bit_cast(float, a.v[i]))

GEMMARY_INLINE I32x16 load_u8(const uint8_t* p) GEMMARY_LANES(I32x16, p[i])
GEMMARY_INLINE I32x16 load_i8(const int8_t* p) GEMMARY_LANES(I32x16, p[i])
GEMMARY_INLINE I32x16 load_u16(const uint16_t* p) GEMMARY_LANES(I32x16, p[i])
GEMMARY_INLINE void store_i8(int8_t* p, I32x16 a) { for (int i = 0; i < 16; i++) p[i] = static_cast<int8_t>(a.v[i]); }
GEMMARY_INLINE void store_u16(uint16_t* p, I32x16 a) { for (int i = 0; i < 16; i++) p[i] = static_cast<uint16_t>(a.v[i]); }

// IEEE binary16. A subnormal half is m * 2^-24; a NaN becomes quiet.
GEMMARY_INLINE float widen_f16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  if (exponent < 31) return __builtin_bit_cast(float, sign | (exponent + 112) << 23 | mantissa << 13);
  return __builtin_bit_cast(float, sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0u));
}
GEMMARY_INLINE F32x16 load_f16(const uint16_t* p) GEMMARY_LANES(F32x16, widen_f16(p[i]))

GEMMARY_INLINE F32x16 load_bf16(const uint16_t* p) { return from_bits(shl<16>(load_u16(p))); }
GEMMARY_INLINE float reduce_add(F32x16 a) {
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; i++) a.v[i] = a.v[i] + a.v[i + step];
  return a.v[0];
}
GEMMARY_INLINE int32_t reduce_add(I32x16 a) {
  int32_t s = 0;
  for (int i = 0; i < 16; i++) s += a.v[i];
  return s;
}
GEMMARY_INLINE int32_t reduce_max(I32x16 a) {
  int32_t m = a.v[0];
  for (int i = 1; i < 16; i++) m = m > a.v[i] ? m : a.v[i];
  return m;
}

// ---- Integer dot products: 16 rows of 4 weight codes times 4 activations, summed exactly in 32 bits for each row.
struct Bytes64 { uint8_t v[64]; };  // byte 4*row + i
struct Quad { int8_t v[4]; };       // the same 4 activations for every row

GEMMARY_INLINE Bytes64 load_bytes(const void* p) { Bytes64 r; std::memcpy(r.v, p, 64); return r; }
GEMMARY_INLINE void store_bytes(void* p, Bytes64 a) { std::memcpy(p, a.v, 64); }
GEMMARY_INLINE Bytes64 operator|(Bytes64 a, Bytes64 b) {
  for (int i = 0; i < 64; i++) a.v[i] |= b.v[i];
  return a;
}
// (byte >> kShift, or << -kShift) & mask in every byte.
template <int kShift> GEMMARY_INLINE Bytes64 shift_and(Bytes64 a, uint8_t mask) {
  for (int i = 0; i < 64; i++) a.v[i] = static_cast<uint8_t>((kShift >= 0 ? a.v[i] >> (kShift & 7) : a.v[i] << (-kShift & 7)) & mask);
  return a;
}
// (byte >> shift) & mask in every byte, 0 <= shift <= 7, mask within the bits that stay.
GEMMARY_INLINE Bytes64 shift_right_and(Bytes64 a, int shift, uint8_t mask) {
  for (int i = 0; i < 64; i++) a.v[i] = static_cast<uint8_t>((a.v[i] >> shift) & mask);
  return a;
}
GEMMARY_INLINE Quad broadcast_quad(const int8_t* p) { Quad r; std::memcpy(r.v, p, 4); return r; }

// Codes of kBits bits: unsigned for kBits <= 6, signed for 8 (which has no total by scale). What the other backends may vary, and their
// callers must honour: Code, what prepare makes of 64 code bytes; kChunk, how many vectors may be added before total (8 is a whole group; AVX2 adds in 16 bits); kOffset, a multiple of the sum of x that total is too large by. pick gives each row's code of input
// `place & 255` of the four, too large by kOffset.
template <int kBits> struct Dot {
  static constexpr int kChunk = 8;
  static constexpr int kOffset = 0;
  using Code = Bytes64;
  using Sum = I32x16;
  static GEMMARY_INLINE Code prepare(Bytes64 w) { return w; }
  static GEMMARY_INLINE I32x16 pick(Code w, uint32_t place) {
    I32x16 r;
    for (int i = 0; i < 16; i++) r.v[i] = kBits == 8 ? static_cast<int8_t>(w.v[4 * i + (place & 3)]) : w.v[4 * i + (place & 3)];
    return r;
  }
  static GEMMARY_INLINE Sum add(Sum s, Code w, Quad x) {
    for (int r = 0; r < 16; r++)
      for (int i = 0; i < 4; i++) s.v[r] += (kBits == 8 ? static_cast<int8_t>(w.v[4 * r + i]) : w.v[4 * r + i]) * x.v[i];
    return s;
  }
  static GEMMARY_INLINE Sum first(Code w, Quad x) { return add(Sum{}, w, x); }
  static GEMMARY_INLINE I32x16 total(Sum s) { return s; }
  static GEMMARY_INLINE I32x16 total(Sum s, I32x16 scale) { return s * scale; }  // scale: from pair_low or pair_high
};

// Pairs: two int16 in each 32-bit lane, the low half and the high half. pair_low, pair_high and, where both are equal, pair_equal give the factor form that Dot::total
// takes, whatever that is on a backend.
GEMMARY_INLINE I32x16 load_pairs_u8(const uint8_t* low, const uint8_t* high) { return load_u8(low) | shl<16>(load_u8(high)); }
GEMMARY_INLINE I32x16 load_pairs_i8(const int8_t* low, const int8_t* high) { return (load_i8(low) & broadcast_i32(0xffff)) | shl<16>(load_i8(high)); }
GEMMARY_INLINE I32x16 pair_low(I32x16 p) { return sar<16>(shl<16>(p)); }
GEMMARY_INLINE I32x16 pair_equal(I32x16 p) { return pair_low(p); }
GEMMARY_INLINE I32x16 pair_high(I32x16 p) { return sar<16>(p); }
GEMMARY_INLINE I32x16 pair_dot(I32x16 a, I32x16 b) { return pair_low(a) * pair_low(b) + pair_high(a) * pair_high(b); }

#undef GEMMARY_LANES

}  // namespace gemmary::scalar
