// simd.h on AVX-512 (F, BW, VL, DQ, VNNI): a sixteen-lane vector is one register. Included by simd.h only.
#pragma once

#if defined(GEMMARY_EMULATE_AVX512)
#include "avx512_emulation.h"  // tests only: SIMDe in place of the instructions (tests/native)
#else
#pragma GCC diagnostic push  // GCC 12 warns of its own headers' deliberately undefined registers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace gemmary::avx512 {

struct F32x16 { __m512 v; };
struct I32x16 { __m512i v; };
struct Mask16 { __mmask16 m; };

GEMMARY_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
GEMMARY_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
GEMMARY_INLINE F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
GEMMARY_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
GEMMARY_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
GEMMARY_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
GEMMARY_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
GEMMARY_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
GEMMARY_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
GEMMARY_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
GEMMARY_INLINE F32x16 sqrt(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
GEMMARY_INLINE F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

GEMMARY_INLINE I32x16 bits(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
GEMMARY_INLINE F32x16 from_bits(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }

GEMMARY_INLINE I32x16 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
GEMMARY_INLINE void store_i32(int32_t* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
GEMMARY_INLINE I32x16 broadcast_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
GEMMARY_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
GEMMARY_INLINE I32x16 operator-(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
GEMMARY_INLINE I32x16 operator*(I32x16 a, I32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
GEMMARY_INLINE I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
GEMMARY_INLINE I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
GEMMARY_INLINE I32x16 operator^(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
GEMMARY_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int kBits> GEMMARY_INLINE I32x16 shl(I32x16 a) { return {_mm512_slli_epi32(a.v, kBits)}; }
template <int kBits> GEMMARY_INLINE I32x16 shr(I32x16 a) { return {_mm512_srli_epi32(a.v, kBits)}; }
template <int kBits> GEMMARY_INLINE I32x16 sar(I32x16 a) { return {_mm512_srai_epi32(a.v, kBits)}; }
GEMMARY_INLINE F32x16 abs(F32x16 a) { return from_bits(bits(a) & broadcast_i32(INT32_MAX)); }

GEMMARY_INLINE Mask16 less(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
GEMMARY_INLINE Mask16 equal(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
GEMMARY_INLINE Mask16 less(I32x16 a, I32x16 b) { return {_mm512_cmpgt_epi32_mask(b.v, a.v)}; }
GEMMARY_INLINE Mask16 equal(I32x16 a, I32x16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
GEMMARY_INLINE F32x16 select(Mask16 m, F32x16 a, F32x16 b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }
GEMMARY_INLINE I32x16 select(Mask16 m, I32x16 a, I32x16 b) { return {_mm512_mask_blend_epi32(m.m, b.v, a.v)}; }

GEMMARY_INLINE I32x16 to_i32(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
GEMMARY_INLINE F32x16 to_f32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

GEMMARY_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
GEMMARY_INLINE __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
GEMMARY_INLINE I32x16 load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(load128(p))}; }
GEMMARY_INLINE I32x16 load_i8(const int8_t* p) { return {_mm512_cvtepi8_epi32(load128(p))}; }
GEMMARY_INLINE I32x16 load_u16(const uint16_t* p) { return {_mm512_cvtepu16_epi32(load256(p))}; }
GEMMARY_INLINE void store_i8(int8_t* p, I32x16 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v)); }
GEMMARY_INLINE void store_u16(uint16_t* p, I32x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v)); }
GEMMARY_INLINE F32x16 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(load256(p))}; }

GEMMARY_INLINE F32x16 load_bf16(const uint16_t* p) { return from_bits(shl<16>(load_u16(p))); }
GEMMARY_INLINE __m256i low_half(I32x16 a) { return _mm512_castsi512_si256(a.v); }
GEMMARY_INLINE __m256i high_half(I32x16 a) { return _mm512_extracti64x4_epi64(a.v, 1); }
GEMMARY_INLINE float reduce_add(F32x16 a) {
  const __m256 s8 = _mm256_add_ps(_mm256_castsi256_ps(low_half(bits(a))), _mm256_castsi256_ps(high_half(bits(a))));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
GEMMARY_INLINE int32_t reduce_add(I32x16 a) {
  const __m256i s8 = _mm256_add_epi32(low_half(a), high_half(a));
  const __m128i s4 = _mm_add_epi32(_mm256_castsi256_si128(s8), _mm256_extracti128_si256(s8, 1));
  const __m128i s2 = _mm_add_epi32(s4, _mm_unpackhi_epi64(s4, s4));
  return _mm_cvtsi128_si32(_mm_add_epi32(s2, _mm_shuffle_epi32(s2, 1)));
}
GEMMARY_INLINE int32_t reduce_max(I32x16 a) {
  const __m256i m8 = _mm256_max_epi32(low_half(a), high_half(a));
  const __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
  const __m128i m2 = _mm_max_epi32(m4, _mm_unpackhi_epi64(m4, m4));
  return _mm_cvtsi128_si32(_mm_max_epi32(m2, _mm_shuffle_epi32(m2, 1)));
}

// ---- Integer dot products (their meaning is defined in simd_scalar.h).
struct Bytes64 { __m512i v; };
struct Quad { __m512i v; };

GEMMARY_INLINE Bytes64 load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
GEMMARY_INLINE void store_bytes(void* p, Bytes64 a) { _mm512_storeu_si512(p, a.v); }
GEMMARY_INLINE Bytes64 operator|(Bytes64 a, Bytes64 b) { return {_mm512_or_si512(a.v, b.v)}; }
// There is no byte shift: 16-bit shifts drag in bits of the neighbour, and the mask drops them.
template <int kShift> GEMMARY_INLINE Bytes64 shift_and(Bytes64 a, uint8_t mask) {
  if constexpr (kShift > 0) a.v = _mm512_srli_epi16(a.v, kShift);
  if constexpr (kShift < 0) a.v = _mm512_slli_epi16(a.v, -kShift);
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(static_cast<char>(mask)))};
}
GEMMARY_INLINE Bytes64 shift_right_and(Bytes64 a, int shift, uint8_t mask) {
  return {_mm512_and_si512(_mm512_srl_epi16(a.v, _mm_cvtsi32_si128(shift)), _mm512_set1_epi8(static_cast<char>(mask)))};
}
GEMMARY_INLINE Quad broadcast_quad(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return {_mm512_set1_epi32(word)};
}

// dpbusd sums four u8 x s8 products into 32 bits with no intermediate rounding or saturation. Signed 8-bit codes are flipped to
// w + 128, which makes every sum 128 * (sum of x) too large: kOffset tells the caller to take that away.
template <int kBits> struct Dot {
  static constexpr int kChunk = 8;
  static constexpr int kOffset = kBits == 8 ? 128 : 0;
  using Code = Bytes64;
  using Sum = I32x16;
  static GEMMARY_INLINE Code prepare(Bytes64 w) {
    return kBits == 8 ? Bytes64{_mm512_xor_si512(w.v, _mm512_set1_epi8(static_cast<char>(0x80)))} : w;
  }
  static GEMMARY_INLINE I32x16 pick(Code w, uint32_t place) {  // a shuffled byte is 0 where its index has the top bit set
    const __m512i first = _mm512_set4_epi32(0x8080800c, 0x80808008, 0x80808004, 0x80808000);
    return {_mm512_shuffle_epi8(w.v, _mm512_or_si512(first, _mm512_set1_epi32(static_cast<int32_t>(place))))};
  }
  static GEMMARY_INLINE Sum add(Sum s, Code w, Quad x) { return {_mm512_dpbusd_epi32(s.v, w.v, x.v)}; }
  static GEMMARY_INLINE Sum first(Code w, Quad x) { return add({_mm512_setzero_si512()}, w, x); }
  static GEMMARY_INLINE I32x16 total(Sum s) { return s; }
  static GEMMARY_INLINE I32x16 total(Sum s, I32x16 scale) { return s * scale; }
};

GEMMARY_INLINE I32x16 load_pairs_u8(const uint8_t* low, const uint8_t* high) { return load_u8(low) | shl<16>(load_u8(high)); }
GEMMARY_INLINE I32x16 load_pairs_i8(const int8_t* low, const int8_t* high) { return (load_i8(low) & broadcast_i32(0xffff)) | shl<16>(load_i8(high)); }
GEMMARY_INLINE I32x16 pair_low(I32x16 p) { return sar<16>(shl<16>(p)); }
GEMMARY_INLINE I32x16 pair_equal(I32x16 p) { return pair_low(p); }
GEMMARY_INLINE I32x16 pair_high(I32x16 p) { return sar<16>(p); }
GEMMARY_INLINE I32x16 pair_dot(I32x16 a, I32x16 b) { return {_mm512_madd_epi16(a.v, b.v)}; }

}  // namespace gemmary::avx512
