// simd.h on Armv8.2 with the dot-product extension: a sixteen-lane vector is four registers. Included by simd.h only.
#pragma once

#include <arm_neon.h>

namespace gemmary::neon {

struct F32x16 { float32x4_t v[4]; };
struct I32x16 { int32x4_t v[4]; };
struct Mask16 { uint32x4_t v[4]; };

// Applies an expression to the four registers; the loop is unrolled.
#define GEMMARY_QUARTERS(TYPE, EXPRESSION)           \
  {                                                  \
    TYPE r;                                          \
    for (int i = 0; i < 4; i++) r.v[i] = (EXPRESSION); \
    return r;                                        \
  }

GEMMARY_INLINE F32x16 load(const float* p) GEMMARY_QUARTERS(F32x16, vld1q_f32(p + 4 * i))
GEMMARY_INLINE void store(float* p, F32x16 a) { for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, a.v[i]); }
GEMMARY_INLINE F32x16 broadcast(float x) GEMMARY_QUARTERS(F32x16, vdupq_n_f32(x))
GEMMARY_INLINE F32x16 operator+(F32x16 a, F32x16 b) GEMMARY_QUARTERS(F32x16, vaddq_f32(a.v[i], b.v[i]))
GEMMARY_INLINE F32x16 operator-(F32x16 a, F32x16 b) GEMMARY_QUARTERS(F32x16, vsubq_f32(a.v[i], b.v[i]))
GEMMARY_INLINE F32x16 operator*(F32x16 a, F32x16 b) GEMMARY_QUARTERS(F32x16, vmulq_f32(a.v[i], b.v[i]))
GEMMARY_INLINE F32x16 operator/(F32x16 a, F32x16 b) GEMMARY_QUARTERS(F32x16, vdivq_f32(a.v[i], b.v[i]))
GEMMARY_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) GEMMARY_QUARTERS(F32x16, vfmaq_f32(c.v[i], a.v[i], b.v[i]))
GEMMARY_INLINE F32x16 abs(F32x16 a) GEMMARY_QUARTERS(F32x16, vabsq_f32(a.v[i]))
GEMMARY_INLINE F32x16 sqrt(F32x16 a) GEMMARY_QUARTERS(F32x16, vsqrtq_f32(a.v[i]))
GEMMARY_INLINE F32x16 round(F32x16 a) GEMMARY_QUARTERS(F32x16, vrndnq_f32(a.v[i]))

GEMMARY_INLINE Mask16 less(F32x16 a, F32x16 b) GEMMARY_QUARTERS(Mask16, vcltq_f32(a.v[i], b.v[i]))
GEMMARY_INLINE Mask16 equal(F32x16 a, F32x16 b) GEMMARY_QUARTERS(Mask16, vceqq_f32(a.v[i], b.v[i]))
GEMMARY_INLINE Mask16 less(I32x16 a, I32x16 b) GEMMARY_QUARTERS(Mask16, vcltq_s32(a.v[i], b.v[i]))
GEMMARY_INLINE Mask16 equal(I32x16 a, I32x16 b) GEMMARY_QUARTERS(Mask16, vceqq_s32(a.v[i], b.v[i]))
GEMMARY_INLINE F32x16 select(Mask16 m, F32x16 a, F32x16 b) GEMMARY_QUARTERS(F32x16, vbslq_f32(m.v[i], a.v[i], b.v[i]))
GEMMARY_INLINE I32x16 select(Mask16 m, I32x16 a, I32x16 b) GEMMARY_QUARTERS(I32x16, vbslq_s32(m.v[i], a.v[i], b.v[i]))
// vmaxq returns NaN if either side is one; the rule here is x86's.
GEMMARY_INLINE F32x16 max(F32x16 a, F32x16 b) { return select(less(b, a), a, b); }
GEMMARY_INLINE F32x16 min(F32x16 a, F32x16 b) { return select(less(a, b), a, b); }

GEMMARY_INLINE I32x16 load_i32(const int32_t* p) GEMMARY_QUARTERS(I32x16, vld1q_s32(p + 4 * i))
GEMMARY_INLINE void store_i32(int32_t* p, I32x16 a) { for (int i = 0; i < 4; i++) vst1q_s32(p + 4 * i, a.v[i]); }
GEMMARY_INLINE I32x16 broadcast_i32(int32_t x) GEMMARY_QUARTERS(I32x16, vdupq_n_s32(x))
GEMMARY_INLINE I32x16 operator+(I32x16 a, I32x16 b) GEMMARY_QUARTERS(I32x16, vaddq_s32(a.v[i], b.v[i]))
GEMMARY_INLINE I32x16 operator-(I32x16 a, I32x16 b) GEMMARY_QUARTERS(I32x16, vsubq_s32(a.v[i], b.v[i]))
GEMMARY_INLINE I32x16 operator*(I32x16 a, I32x16 b) GEMMARY_QUARTERS(I32x16, vmulq_s32(a.v[i], b.v[i]))
GEMMARY_INLINE I32x16 operator&(I32x16 a, I32x16 b) GEMMARY_QUARTERS(I32x16, vandq_s32(a.v[i], b.v[i]))
GEMMARY_INLINE I32x16 operator|(I32x16 a, I32x16 b) GEMMARY_QUARTERS(I32x16, vorrq_s32(a.v[i], b.v[i]))
GEMMARY_INLINE I32x16 operator^(I32x16 a, I32x16 b) GEMMARY_QUARTERS(I32x16, veorq_s32(a.v[i], b.v[i]))
GEMMARY_INLINE I32x16 max(I32x16 a, I32x16 b) GEMMARY_QUARTERS(I32x16, vmaxq_s32(a.v[i], b.v[i]))
template <int kBits> GEMMARY_INLINE I32x16 shl(I32x16 a) GEMMARY_QUARTERS(I32x16, vshlq_n_s32(a.v[i], kBits))
template <int kBits> GEMMARY_INLINE I32x16 shr(I32x16 a)
    GEMMARY_QUARTERS(I32x16, vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.v[i]), kBits)))
template <int kBits> GEMMARY_INLINE I32x16 sar(I32x16 a) GEMMARY_QUARTERS(I32x16, vshrq_n_s32(a.v[i], kBits))

GEMMARY_INLINE I32x16 to_i32(F32x16 a) GEMMARY_QUARTERS(I32x16, vcvtnq_s32_f32(a.v[i]))
GEMMARY_INLINE F32x16 to_f32(I32x16 a) GEMMARY_QUARTERS(F32x16, vcvtq_f32_s32(a.v[i]))
GEMMARY_INLINE I32x16 bits(F32x16 a) GEMMARY_QUARTERS(I32x16, vreinterpretq_s32_f32(a.v[i]))
GEMMARY_INLINE F32x16 from_bits(I32x16 a) GEMMARY_QUARTERS(F32x16, vreinterpretq_f32_s32(a.v[i]))

GEMMARY_INLINE I32x16 load_u16(const uint16_t* p) GEMMARY_QUARTERS(I32x16, vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p + 4 * i))))
GEMMARY_INLINE I32x16 load_u8(const uint8_t* p) {
  const uint8x16_t b = vld1q_u8(p);
  const uint16x8_t h[2] = {vmovl_u8(vget_low_u8(b)), vmovl_u8(vget_high_u8(b))};
  GEMMARY_QUARTERS(I32x16, vreinterpretq_s32_u32(vmovl_u16(i & 1 ? vget_high_u16(h[i / 2]) : vget_low_u16(h[i / 2]))))
}
GEMMARY_INLINE I32x16 load_i8(const int8_t* p) {
  const int8x16_t b = vld1q_s8(p);
  const int16x8_t h[2] = {vmovl_s8(vget_low_s8(b)), vmovl_s8(vget_high_s8(b))};
  GEMMARY_QUARTERS(I32x16, vmovl_s16(i & 1 ? vget_high_s16(h[i / 2]) : vget_low_s16(h[i / 2])))
}
GEMMARY_INLINE void store_i8(int8_t* p, I32x16 a) {
  for (int i = 0; i < 2; i++) vst1_s8(p + 8 * i, vmovn_s16(vcombine_s16(vmovn_s32(a.v[2 * i]), vmovn_s32(a.v[2 * i + 1]))));
}
GEMMARY_INLINE void store_u16(uint16_t* p, I32x16 a) {
  for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vmovn_u32(vreinterpretq_u32_s32(a.v[i])));
}
GEMMARY_INLINE F32x16 load_f16(const uint16_t* p) GEMMARY_QUARTERS(F32x16, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))))

GEMMARY_INLINE F32x16 load_bf16(const uint16_t* p) { return from_bits(shl<16>(load_u16(p))); }
GEMMARY_INLINE float reduce_add(F32x16 a) {
  const float32x4_t s4 = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
  return vget_lane_f32(s2, 0) + vget_lane_f32(s2, 1);
}
GEMMARY_INLINE int32_t reduce_add(I32x16 a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]))); }
GEMMARY_INLINE int32_t reduce_max(I32x16 a) { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3]))); }

// ---- Integer dot products (their meaning is defined in simd_scalar.h).
struct Bytes64 { uint8x16_t v[4]; };
struct Quad { int8x16_t v; };

GEMMARY_INLINE Bytes64 load_bytes(const void* p) GEMMARY_QUARTERS(Bytes64, vld1q_u8(static_cast<const uint8_t*>(p) + 16 * i))
GEMMARY_INLINE void store_bytes(void* p, Bytes64 a) { for (int i = 0; i < 4; i++) vst1q_u8(static_cast<uint8_t*>(p) + 16 * i, a.v[i]); }
GEMMARY_INLINE Bytes64 operator|(Bytes64 a, Bytes64 b) GEMMARY_QUARTERS(Bytes64, vorrq_u8(a.v[i], b.v[i]))
template <int kShift> GEMMARY_INLINE Bytes64 shift_and(Bytes64 a, uint8_t mask) {
  const uint8x16_t m = vdupq_n_u8(mask);
  for (int i = 0; i < 4; i++) {
    if constexpr (kShift > 0) a.v[i] = vshrq_n_u8(a.v[i], kShift);
    if constexpr (kShift < 0) a.v[i] = vshlq_n_u8(a.v[i], -kShift);
    a.v[i] = vandq_u8(a.v[i], m);
  }
  return a;
}
GEMMARY_INLINE Bytes64 shift_right_and(Bytes64 a, int shift, uint8_t mask) {
  const int8x16_t count = vdupq_n_s8(static_cast<int8_t>(-shift));
  GEMMARY_QUARTERS(Bytes64, vandq_u8(vshlq_u8(a.v[i], count), vdupq_n_u8(mask)))
}
GEMMARY_INLINE Quad broadcast_quad(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return {vreinterpretq_s8_s32(vdupq_n_s32(word))};
}

// sdot: four s8 x s8 products into 32 bits, exact; unsigned codes are at most 63, so they are s8 values too.
template <int kBits> struct Dot {
  static constexpr int kChunk = 8;
  static constexpr int kOffset = 0;
  using Code = Bytes64;
  using Sum = I32x16;
  static GEMMARY_INLINE Code prepare(Bytes64 w) { return w; }
  static GEMMARY_INLINE I32x16 pick(Code w, uint32_t place) {  // the byte to the top of its lane, then down again
    const int32x4_t up = vdupq_n_s32(24 - 8 * static_cast<int32_t>(place & 3));
    if constexpr (kBits == 8) GEMMARY_QUARTERS(I32x16, vshrq_n_s32(vshlq_s32(vreinterpretq_s32_u8(w.v[i]), up), 24))
    else GEMMARY_QUARTERS(I32x16, vreinterpretq_s32_u32(vshrq_n_u32(vshlq_u32(vreinterpretq_u32_u8(w.v[i]), up), 24)))
  }
  static GEMMARY_INLINE Sum add(Sum s, Code w, Quad x) GEMMARY_QUARTERS(Sum, vdotq_s32(s.v[i], vreinterpretq_s8_u8(w.v[i]), x.v))
  static GEMMARY_INLINE Sum first(Code w, Quad x) { return add(broadcast_i32(0), w, x); }
  static GEMMARY_INLINE I32x16 total(Sum s) { return s; }
  static GEMMARY_INLINE I32x16 total(Sum s, I32x16 scale) { return s * scale; }
};

GEMMARY_INLINE I32x16 load_pairs_u8(const uint8_t* low, const uint8_t* high) { return load_u8(low) | shl<16>(load_u8(high)); }
GEMMARY_INLINE I32x16 load_pairs_i8(const int8_t* low, const int8_t* high) { return (load_i8(low) & broadcast_i32(0xffff)) | shl<16>(load_i8(high)); }
GEMMARY_INLINE I32x16 pair_low(I32x16 p) { return sar<16>(shl<16>(p)); }
GEMMARY_INLINE I32x16 pair_equal(I32x16 p) { return pair_low(p); }
GEMMARY_INLINE I32x16 pair_high(I32x16 p) { return sar<16>(p); }
GEMMARY_INLINE I32x16 pair_dot(I32x16 a, I32x16 b) { return pair_low(a) * pair_low(b) + pair_high(a) * pair_high(b); }

#undef GEMMARY_QUARTERS

}  // namespace gemmary::neon
