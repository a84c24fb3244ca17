// simd.h on AVX2 + FMA + F16C: a sixteen-lane vector is two registers, lanes 0-7 in `lo` and 8-15 in `hi`. Included by simd.h only.
#pragma once

#include <immintrin.h>

namespace gemmary::avx2 {

struct F32x16 { __m256 lo, hi; };
struct I32x16 { __m256i lo, hi; };
struct Mask16 { __m256i lo, hi; };  // all ones or all zeros in each lane

GEMMARY_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
GEMMARY_INLINE void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
GEMMARY_INLINE F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
GEMMARY_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
GEMMARY_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
GEMMARY_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
GEMMARY_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
GEMMARY_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
GEMMARY_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
GEMMARY_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
GEMMARY_INLINE F32x16 abs(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
GEMMARY_INLINE F32x16 sqrt(F32x16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
GEMMARY_INLINE F32x16 round(F32x16 a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kNearest), _mm256_round_ps(a.hi, kNearest)};
}

GEMMARY_INLINE I32x16 bits(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
GEMMARY_INLINE F32x16 from_bits(I32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }

GEMMARY_INLINE Mask16 less(F32x16 a, F32x16 b) {
  return {_mm256_castps_si256(_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)), _mm256_castps_si256(_mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
GEMMARY_INLINE Mask16 equal(F32x16 a, F32x16 b) {
  return {_mm256_castps_si256(_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ)), _mm256_castps_si256(_mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ))};
}
GEMMARY_INLINE Mask16 less(I32x16 a, I32x16 b) { return {_mm256_cmpgt_epi32(b.lo, a.lo), _mm256_cmpgt_epi32(b.hi, a.hi)}; }
GEMMARY_INLINE Mask16 equal(I32x16 a, I32x16 b) { return {_mm256_cmpeq_epi32(a.lo, b.lo), _mm256_cmpeq_epi32(a.hi, b.hi)}; }
GEMMARY_INLINE I32x16 select(Mask16 m, I32x16 a, I32x16 b) {
  return {_mm256_blendv_epi8(b.lo, a.lo, m.lo), _mm256_blendv_epi8(b.hi, a.hi, m.hi)};
}
GEMMARY_INLINE F32x16 select(Mask16 m, F32x16 a, F32x16 b) { return from_bits(select(m, bits(a), bits(b))); }

GEMMARY_INLINE __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
GEMMARY_INLINE void store256(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
GEMMARY_INLINE __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
GEMMARY_INLINE __m128i load64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }

GEMMARY_INLINE I32x16 load_i32(const int32_t* p) { return {load256(p), load256(p + 8)}; }
GEMMARY_INLINE void store_i32(int32_t* p, I32x16 a) {
  store256(p, a.lo);
  store256(p + 8, a.hi);
}
GEMMARY_INLINE I32x16 broadcast_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
GEMMARY_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
GEMMARY_INLINE I32x16 operator-(I32x16 a, I32x16 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
GEMMARY_INLINE I32x16 operator*(I32x16 a, I32x16 b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
GEMMARY_INLINE I32x16 operator&(I32x16 a, I32x16 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
GEMMARY_INLINE I32x16 operator|(I32x16 a, I32x16 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
GEMMARY_INLINE I32x16 operator^(I32x16 a, I32x16 b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
GEMMARY_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
template <int kBits> GEMMARY_INLINE I32x16 shl(I32x16 a) { return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)}; }
template <int kBits> GEMMARY_INLINE I32x16 shr(I32x16 a) { return {_mm256_srli_epi32(a.lo, kBits), _mm256_srli_epi32(a.hi, kBits)}; }
template <int kBits> GEMMARY_INLINE I32x16 sar(I32x16 a) { return {_mm256_srai_epi32(a.lo, kBits), _mm256_srai_epi32(a.hi, kBits)}; }

GEMMARY_INLINE I32x16 to_i32(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
GEMMARY_INLINE F32x16 to_f32(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

GEMMARY_INLINE I32x16 load_u8(const uint8_t* p) { return {_mm256_cvtepu8_epi32(load64(p)), _mm256_cvtepu8_epi32(load64(p + 8))}; }
GEMMARY_INLINE I32x16 load_i8(const int8_t* p) { return {_mm256_cvtepi8_epi32(load64(p)), _mm256_cvtepi8_epi32(load64(p + 8))}; }
GEMMARY_INLINE I32x16 load_u16(const uint16_t* p) {
  return {_mm256_cvtepu16_epi32(load128(p)), _mm256_cvtepu16_epi32(load128(p + 8))};
}
GEMMARY_INLINE void store_i8(int8_t* p, I32x16 a) {  // packs works in 128-bit lanes: put the quarters back in order
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0b11011000);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
GEMMARY_INLINE void store_u16(uint16_t* p, I32x16 a) {
  store256(p, _mm256_permute4x64_epi64(_mm256_packus_epi32(a.lo, a.hi), 0b11011000));
}
GEMMARY_INLINE F32x16 load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))}; }

// One shuffle of a doubled quarter moves each 16 bits to the top of its lane.
GEMMARY_INLINE F32x16 load_bf16(const uint16_t* p) {
  const __m256i to_top = _mm256_setr_epi32(0x01008080, 0x03028080, 0x05048080, 0x07068080, 0x09088080, 0x0b0a8080, 0x0d0c8080, 0x0f0e8080);
  const __m256i lo = _mm256_broadcastsi128_si256(load128(p)), hi = _mm256_broadcastsi128_si256(load128(p + 8));
  return from_bits({_mm256_shuffle_epi8(lo, to_top), _mm256_shuffle_epi8(hi, to_top)});
}
GEMMARY_INLINE float reduce_add(F32x16 a) {
  const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
GEMMARY_INLINE int32_t reduce_add(I32x16 a) {
  const __m256i s8 = _mm256_add_epi32(a.lo, a.hi);
  const __m128i s4 = _mm_add_epi32(_mm256_castsi256_si128(s8), _mm256_extracti128_si256(s8, 1));
  const __m128i s2 = _mm_add_epi32(s4, _mm_unpackhi_epi64(s4, s4));
  return _mm_cvtsi128_si32(_mm_add_epi32(s2, _mm_shuffle_epi32(s2, 1)));
}
GEMMARY_INLINE int32_t reduce_max(I32x16 a) {
  const __m256i m8 = _mm256_max_epi32(a.lo, a.hi);
  const __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
  const __m128i m2 = _mm_max_epi32(m4, _mm_unpackhi_epi64(m4, m4));
  return _mm_cvtsi128_si32(_mm_max_epi32(m2, _mm_shuffle_epi32(m2, 1)));
}

// ---- Integer dot products (their meaning is defined in simd_scalar.h).
struct Bytes64 { __m256i lo, hi; };
struct Quad { __m256i v; };

GEMMARY_INLINE Bytes64 load_bytes(const void* p) { return {load256(p), load256(static_cast<const char*>(p) + 32)}; }
GEMMARY_INLINE void store_bytes(void* p, Bytes64 a) {
  store256(p, a.lo);
  store256(static_cast<char*>(p) + 32, a.hi);
}
GEMMARY_INLINE Bytes64 operator|(Bytes64 a, Bytes64 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
// There is no byte shift: 16-bit shifts drag in bits of the neighbour, and the mask drops them.
template <int kShift> GEMMARY_INLINE Bytes64 shift_and(Bytes64 a, uint8_t mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  if constexpr (kShift > 0) a = {_mm256_srli_epi16(a.lo, kShift), _mm256_srli_epi16(a.hi, kShift)};
  if constexpr (kShift < 0) a = {_mm256_slli_epi16(a.lo, -kShift), _mm256_slli_epi16(a.hi, -kShift)};
  return {_mm256_and_si256(a.lo, m), _mm256_and_si256(a.hi, m)};
}
GEMMARY_INLINE Bytes64 shift_right_and(Bytes64 a, int shift, uint8_t mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  const __m128i count = _mm_cvtsi32_si128(shift);
  return {_mm256_and_si256(_mm256_srl_epi16(a.lo, count), m), _mm256_and_si256(_mm256_srl_epi16(a.hi, count), m)};
}
GEMMARY_INLINE Quad broadcast_quad(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return {_mm256_set1_epi32(word)};
}

// Byte `place & 255` of every four, widened. The shuffle makes a byte 0 where its index has the top bit set, whatever else place holds.
GEMMARY_INLINE I32x16 pick_byte(Bytes64 w, uint32_t place) {
  const __m256i first = _mm256_setr_epi32(0x80808000, 0x80808004, 0x80808008, 0x8080800c, 0x80808000, 0x80808004, 0x80808008, 0x8080800c);
  const __m256i index = _mm256_or_si256(first, _mm256_set1_epi32(static_cast<int32_t>(place)));
  return {_mm256_shuffle_epi8(w.lo, index), _mm256_shuffle_epi8(w.hi, index)};
}

// GCC moves a chain of vector additions away from the products it adds, and then keeps every product on the stack. This says "use it here".
GEMMARY_INLINE void settle(__m256i& a, __m256i& b) { asm("" : "+x"(a), "+x"(b)); }

// maddubs multiplies unsigned codes by signed activations and adds neighbours in 16 bits. With |x| <= 127 and codes below 2^kBits a
// lane grows by at most 2 * (2^kBits - 1) * 127 for each vector added, and 32767 holds
//   8 vectors of 4-bit codes (8 * 3810 = 30480), 4 of 5-bit codes (4 * 7874 = 31496), 2 of 6-bit codes (2 * 16002 = 32004).
// So nothing saturates or wraps within kChunk vectors, and one madd, by 1 or by the sub-block scale, widens the sum exactly:
// |scale| <= 128, so a lane stays below 2 * 32767 * 128 < 2^31.
template <int kBits> struct Dot {
  static_assert(kBits <= 6);
  static constexpr int kChunk = kBits <= 4 ? 8 : kBits == 5 ? 4 : 2;
  static constexpr int kOffset = 0;
  using Code = Bytes64;
  struct Sum { __m256i lo, hi; };  // sixteen 16-bit sums each: two for each row
  static GEMMARY_INLINE Code prepare(Bytes64 w) { return w; }
  static GEMMARY_INLINE I32x16 pick(Code w, uint32_t place) { return pick_byte(w, place); }
  static GEMMARY_INLINE Sum first(Code w, Quad x) { return {_mm256_maddubs_epi16(w.lo, x.v), _mm256_maddubs_epi16(w.hi, x.v)}; }
  static GEMMARY_INLINE Sum add(Sum s, Code w, Quad x) {
    const Sum t = first(w, x);
    s = {_mm256_add_epi16(s.lo, t.lo), _mm256_add_epi16(s.hi, t.hi)};
    settle(s.lo, s.hi);
    return s;
  }
  static GEMMARY_INLINE I32x16 total(Sum s, I32x16 scale) { return {_mm256_madd_epi16(s.lo, scale.lo), _mm256_madd_epi16(s.hi, scale.hi)}; }
  static GEMMARY_INLINE I32x16 total(Sum s) { return total(s, {_mm256_set1_epi16(1), _mm256_set1_epi16(1)}); }
};

// Signed 8-bit codes: |w| times (x with w's sign). |w| <= 128 fits a u8 and x, in -127..127, can be negated, so a pair is at most
// 2 * 128 * 127 = 32512: it fits, but nothing more may be added to it in 16 bits.
template <> struct Dot<8> {
  static constexpr int kChunk = 8;
  static constexpr int kOffset = 0;
  struct Code { Bytes64 w, magnitude; };
  using Sum = I32x16;
  static GEMMARY_INLINE Code prepare(Bytes64 w) { return {w, {_mm256_abs_epi8(w.lo), _mm256_abs_epi8(w.hi)}}; }
  static GEMMARY_INLINE I32x16 pick(const Code& c, uint32_t place) { return sar<24>(shl<24>(pick_byte(c.w, place))); }
  static GEMMARY_INLINE __m256i product(__m256i magnitude, __m256i w, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w)), _mm256_set1_epi16(1));
  }
  static GEMMARY_INLINE Sum first(const Code& c, Quad x) { return {product(c.magnitude.lo, c.w.lo, x.v), product(c.magnitude.hi, c.w.hi, x.v)}; }
  static GEMMARY_INLINE Sum add(Sum s, const Code& w, Quad x) {
    s = s + first(w, x);
    settle(s.lo, s.hi);
    return s;
  }
  static GEMMARY_INLINE I32x16 total(Sum s) { return s; }
};

GEMMARY_INLINE I32x16 load_pairs_u8(const uint8_t* low, const uint8_t* high) {
  const __m128i a = load128(low), b = load128(high);
  return {_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b))};
}
GEMMARY_INLINE I32x16 load_pairs_i8(const int8_t* low, const int8_t* high) {
  const __m128i a = load128(low), b = load128(high);
  return {_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b))};
}
GEMMARY_INLINE I32x16 pair_low(I32x16 p) { return (p & broadcast_i32(0xffff)) | shl<16>(p); }
GEMMARY_INLINE I32x16 pair_equal(I32x16 p) { return p; }
GEMMARY_INLINE I32x16 pair_high(I32x16 p) { return shr<16>(p) | (p & broadcast_i32(static_cast<int32_t>(0xffff0000u))); }
GEMMARY_INLINE I32x16 pair_dot(I32x16 a, I32x16 b) { return {_mm256_madd_epi16(a.lo, b.lo), _mm256_madd_epi16(a.hi, b.hi)}; }

}  // namespace gemmary::avx2
