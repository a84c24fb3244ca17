// AVX-512 on a machine without it: SIMDe's portable versions, plus the conversions that SIMDe 0.7.4 lacks, made of two
// AVX2 halves. Used only to test that the AVX-512 kernels give the same bits; compiled with -mavx2 -mfma -mf16c
// (without -mfma SIMDe would not fuse).
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace gemmary::emulated {

inline simde__m512i join(__m256i lo, __m256i hi) {
  simde__m512i_private r;
  r.m256i[0] = lo;
  r.m256i[1] = hi;
  return simde__m512i_from_private(r);
}
inline simde__m512 join(__m256 lo, __m256 hi) {
  simde__m512_private r;
  r.m256[0] = lo;
  r.m256[1] = hi;
  return simde__m512_from_private(r);
}
inline simde__m512i cvtepu8_epi32(__m128i a) {
  return join(_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_srli_si128(a, 8)));
}
inline simde__m512i cvtepi8_epi32(__m128i a) {
  return join(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)));
}
inline simde__m512i cvtepu16_epi32(__m256i a) {
  return join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)));
}
inline simde__m512 cvtph_ps(__m256i a) {
  return join(_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}
inline simde__m512 cvtepi32_ps(simde__m512i a) {
  const simde__m512i_private p = simde__m512i_to_private(a);
  return join(_mm256_cvtepi32_ps(p.m256i[0]), _mm256_cvtepi32_ps(p.m256i[1]));
}
inline simde__m512i cvtps_epi32(simde__m512 a) {
  const simde__m512_private p = simde__m512_to_private(a);
  return join(_mm256_cvtps_epi32(p.m256[0]), _mm256_cvtps_epi32(p.m256[1]));
}
inline __m256i cvtepi32_epi16(simde__m512i a) {
  const simde__m512i_private p = simde__m512i_to_private(a);
  uint16_t low[16];
  for (int i = 0; i < 16; i++) low[i] = static_cast<uint16_t>(p.i32[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
}
inline __m128i cvtepi32_epi8(simde__m512i a) {
  const simde__m512i_private p = simde__m512i_to_private(a);
  uint8_t low[16];
  for (int i = 0; i < 16; i++) low[i] = static_cast<uint8_t>(p.i32[i]);
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
}
template <int kBits> inline simde__m512i srai_epi32(simde__m512i a) {
  const simde__m512i_private p = simde__m512i_to_private(a);
  return join(_mm256_srai_epi32(p.m256i[0], kBits), _mm256_srai_epi32(p.m256i[1], kBits));
}

}  // namespace gemmary::emulated

#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtph_ps
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtps_epi32
#undef _mm512_cvtepi32_epi16
#undef _mm512_cvtepi32_epi8
#undef _mm512_srai_epi32
#undef _mm512_madd_epi16  // SIMDe 0.7.4 gives this alias four parameters
#define _mm512_cvtepu8_epi32 ::gemmary::emulated::cvtepu8_epi32
#define _mm512_cvtepi8_epi32 ::gemmary::emulated::cvtepi8_epi32
#define _mm512_cvtepu16_epi32 ::gemmary::emulated::cvtepu16_epi32
#define _mm512_cvtph_ps ::gemmary::emulated::cvtph_ps
#define _mm512_cvtepi32_ps ::gemmary::emulated::cvtepi32_ps
#define _mm512_cvtps_epi32 ::gemmary::emulated::cvtps_epi32
#define _mm512_cvtepi32_epi16 ::gemmary::emulated::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 ::gemmary::emulated::cvtepi32_epi8
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#define _mm512_srai_epi32(a, bits) ::gemmary::emulated::srai_epi32<(bits)>(a)
