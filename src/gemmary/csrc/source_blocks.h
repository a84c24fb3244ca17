// Where the parts of a quantized format lie: in ggml's source block, and in a packed panel (packed.h). For pack.cc and unpack.cc.
#pragma once

#include "packed.h"

namespace gemmary {

// Where a format's parts lie in its source block (-1: it has none), and its zero point.
struct Source {
  int codes, two_bits, one_bit, d, m, scales;
  int zero;
};
template <Format F> constexpr Source source() {
  switch (F) {
    case Format::Q4_0: return {2, -1, -1, 0, -1, -1, 8};
    case Format::Q4_1: return {4, -1, -1, 0, 2, -1, 0};
    case Format::Q5_0: return {6, -1, 2, 0, -1, -1, 16};
    case Format::Q5_1: return {8, -1, 4, 0, 2, -1, 0};
    case Format::Q8_0: return {2, -1, -1, 0, -1, -1, 0};
    case Format::Q2_K: return {-1, 16, -1, 80, 82, 0, 0};
    case Format::Q3_K: return {-1, 32, 0, 108, -1, 96, 4};
    case Format::Q4_K: return {16, -1, -1, 0, 2, 4, 0};
    case Format::Q5_K: return {48, -1, 16, 0, 2, 4, 0};
    case Format::Q6_K: return {0, 128, -1, 208, -1, 192, 32};
    default: return {};
  }
}
template <Format F> constexpr bool kSuperBlock = F >= Format::Q2_K;  // 256 weights, two levels of scales
template <Format F> constexpr bool kBytes = F == Format::Q8_0;
template <Format F> constexpr int kCodeBytes = kBytes<F> ? 512 : source<F>().codes >= 0 ? 256 : 0;  // then the two-bit plane, the one-bit plane
template <Format F> constexpr int kOneBitAt = kCodeBytes<F> + (source<F>().two_bits >= 0 ? 128 : 0);

// A sub-block's scale and min: both 6 bits in Q4_K and Q5_K, 4 in Q2_K; Q3_K has a signed scale of 6 bits, Q6_K of 8, and no min.
struct SubScale { int scale, min; };
template <Format F> constexpr bool kSixBitPairs = F == Format::Q4_K || F == Format::Q5_K;
template <Format F> constexpr int kSubScalesAt = source<F>().m >= 0 ? 64 : 32;  // after d and, where there is one, dmin

// Calls visit.template operator()<F>() for a quantized format.
template <class Visitor> void dispatch(Format format, const Visitor& visit) {
  switch (format) {
    case Format::Q4_0: return visit.template operator()<Format::Q4_0>();
    case Format::Q4_1: return visit.template operator()<Format::Q4_1>();
    case Format::Q5_0: return visit.template operator()<Format::Q5_0>();
    case Format::Q5_1: return visit.template operator()<Format::Q5_1>();
    case Format::Q8_0: return visit.template operator()<Format::Q8_0>();
    case Format::Q2_K: return visit.template operator()<Format::Q2_K>();
    case Format::Q3_K: return visit.template operator()<Format::Q3_K>();
    case Format::Q4_K: return visit.template operator()<Format::Q4_K>();
    case Format::Q5_K: return visit.template operator()<Format::Q5_K>();
    case Format::Q6_K: return visit.template operator()<Format::Q6_K>();
    case Format::F32: case Format::BF16: case Format::F16: return;
  }
}

}  // namespace gemmary
