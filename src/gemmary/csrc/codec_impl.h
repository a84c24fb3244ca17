// How each quantized format's packed codes and scales (packed.h) become vectors.
#pragma once

#include "packed.h"
#include "simd.h"

namespace gemmary::GEMMARY_ISA {

// kBits: width of a code as Dot takes it. kGroupBytes: packed codes of a group (must equal FormatInfo's). kNibbles; kTwoBitShift,
// kOneBitShift: where a plane's bits go, -1 for no plane. kZero: what is taken from codes. kSubScales: integer scales in blocks of 256;
// kHalves: 2 if they are for 16 inputs. kMin: a second term in the sum of x.
template <int kBits_, int kGroupBytes_, bool kNibbles_, int kTwoBitShift_, int kOneBitShift_, int kZero_, int kHalves_, bool kSubScales_, bool kMin_,
          int kScaleBytes_>
struct CodecOf {
  static constexpr int kBits = kBits_, kGroupBytes = kGroupBytes_, kTwoBitShift = kTwoBitShift_, kOneBitShift = kOneBitShift_;
  static constexpr int kZero = kZero_, kHalves = kHalves_, kScaleBytes = kScaleBytes_;
  static constexpr bool kNibbles = kNibbles_, kSubScales = kSubScales_, kMin = kMin_;
  static constexpr int kUnpackedCodeBytes = 8 * sizeof(typename Dot<kBits>::Code);
  static constexpr int kUnpackedScaleBytes = 64 * (1 + kMin + kSubScales + (kMin && kSubScales));
  static constexpr int kUnpackedBytes = kUnpackedCodeBytes + kUnpackedScaleBytes;
};
constexpr int64_t kMaxUnpackedBytes = 1024 + 64;  // 8-bit codes kept in two forms; K-quants need 512 + 256

template <Format F> struct Codec;
template <> struct Codec<Format::Q4_0> : CodecOf<4, 256, true, -1, -1, 8, 1, false, false, 32> {};
template <> struct Codec<Format::Q4_1> : CodecOf<4, 256, true, -1, -1, 0, 1, false, true, 64> {};
template <> struct Codec<Format::Q5_0> : CodecOf<5, 320, true, -1, 4, 16, 1, false, false, 32> {};
template <> struct Codec<Format::Q5_1> : CodecOf<5, 320, true, -1, 4, 0, 1, false, true, 64> {};
template <> struct Codec<Format::Q8_0> : CodecOf<8, 512, false, -1, -1, 0, 1, false, false, 32> {};
template <> struct Codec<Format::Q2_K> : CodecOf<2, 128, false, 0, -1, 0, 2, true, true, 320> {};
template <> struct Codec<Format::Q3_K> : CodecOf<3, 192, false, 0, 2, 4, 2, true, false, 288> {};
template <> struct Codec<Format::Q4_K> : CodecOf<4, 256, true, -1, -1, 0, 1, true, true, 256> {};
template <> struct Codec<Format::Q5_K> : CodecOf<5, 320, true, -1, 4, 0, 1, true, true, 256> {};
template <> struct Codec<Format::Q6_K> : CodecOf<6, 384, true, 4, -1, 32, 2, true, false, 288> {};

template <Format F> using CodeOf = typename Dot<Codec<F>::kBits>::Code;

// Vector V of a group (0..7): a code in each byte, signed for 8 bits.
template <Format F, int V> GEMMARY_INLINE Bytes64 code_bytes(const uint8_t* group) {
  using C = Codec<F>;
  if constexpr (C::kBits == 8) {
    return load_bytes(group + 64 * V);
  } else {
    constexpr int kTwoBitAt = C::kNibbles ? 256 : 0, kOneBitAt = kTwoBitAt + (C::kTwoBitShift >= 0 ? 128 : 0);
    Bytes64 code{};
    if constexpr (C::kNibbles) code = shift_and<V / 4 * 4>(load_bytes(group + 64 * (V % 4)), 15);
    if constexpr (C::kTwoBitShift >= 0) {
      const Bytes64 two = shift_and<V % 4 * 2 - C::kTwoBitShift>(load_bytes(group + kTwoBitAt + 64 * (V / 4)), 3 << C::kTwoBitShift);
      code = C::kNibbles ? code | two : two;
    }
    if constexpr (C::kOneBitShift >= 0) code = code | shift_and<V - C::kOneBitShift>(load_bytes(group + kOneBitAt), 1 << C::kOneBitShift);
    return code;
  }
}
// The same for a v that unrolling makes a constant.
template <Format F> GEMMARY_INLINE Bytes64 code_bytes(const uint8_t* group, int v) {
  switch (v) {
    case 0: return code_bytes<F, 0>(group);
    case 1: return code_bytes<F, 1>(group);
    case 2: return code_bytes<F, 2>(group);
    case 3: return code_bytes<F, 3>(group);
    case 4: return code_bytes<F, 4>(group);
    case 5: return code_bytes<F, 5>(group);
    case 6: return code_bytes<F, 6>(group);
    default: return code_bytes<F, 7>(group);
  }
}
// The same, ready for Dot.
template <Format F> GEMMARY_INLINE CodeOf<F> load_code(const uint8_t* group, int v) { return Dot<Codec<F>::kBits>::prepare(code_bytes<F>(group, v)); }

// Vector v of a group, for a v that is known only at run time, 0..7.
template <Format F> GEMMARY_INLINE CodeOf<F> load_any_code(const uint8_t* group, int v) {
  using C = Codec<F>;
  if constexpr (C::kBits == 8) {
    return Dot<8>::prepare(load_bytes(group + 64 * v));
  } else {
    constexpr int kTwoBitAt = C::kNibbles ? 256 : 0, kOneBitAt = kTwoBitAt + (C::kTwoBitShift >= 0 ? 128 : 0);
    Bytes64 code{};
    if constexpr (C::kNibbles) code = shift_right_and(load_bytes(group + 64 * (v % 4)), v / 4 * 4, 15);
    if constexpr (C::kTwoBitShift >= 0) {
      const Bytes64 two = shift_right_and(load_bytes(group + kTwoBitAt + 64 * (v / 4)), v % 4 * 2, 3);
      code = C::kNibbles ? code | shift_and<-C::kTwoBitShift>(two, 3 << C::kTwoBitShift) : two;
    }
    if constexpr (C::kOneBitShift >= 0) code = code | shift_and<-C::kOneBitShift>(shift_right_and(load_bytes(group + kOneBitAt), v, 1), 1 << C::kOneBitShift);
    return Dot<C::kBits>::prepare(code);
  }
}

// A group's scales. d: for the code sums. m: for the sum of x (minus dmin in K-quants). scale, min: pairs of sub-block integers for the
// two halves of the group (simd.h), equal where a sub-block is the whole group.
struct GroupScales {
  F32x16 d, m;
  I32x16 scale, min;
};

// The scales of group g of a panel whose scales start at `scales`: d and m are read only where a block begins or `all` is set.
template <Format F> GEMMARY_INLINE void load_scales(GroupScales& s, const uint8_t* scales, int64_t g, bool all) {
  using C = Codec<F>;
  const uint8_t* block = scales + (C::kSubScales ? g / 8 : g) * C::kScaleBytes;
  if (!C::kSubScales || all || g % 8 == 0) {
    s.d = load_f16(reinterpret_cast<const uint16_t*>(block));
    if constexpr (C::kMin) s.m = load_f16(reinterpret_cast<const uint16_t*>(block + 32));
    if constexpr (C::kMin && C::kSubScales) s.m = neg(s.m);
  }
  if constexpr (!C::kSubScales) return;
  const int j = static_cast<int>(g % 8);
  const uint8_t* sub = block + (C::kMin ? 64 : 32);
  const I32x16 four_bits = broadcast_i32(0x000f000f);
  if constexpr (C::kHalves == 1) {
    const uint8_t *low_at = sub + 16 * j, *high_at = sub + 128 + 16 * (j / 2);
    const I32x16 low = load_pairs_u8(low_at, low_at), both = load_pairs_u8(high_at, high_at);
    const I32x16 high = (j % 2 ? shr<4>(both) : both) & four_bits;
    s.scale = low & broadcast_i32(0x003f003f);
    s.min = (shr<6>(low) & broadcast_i32(0x00030003)) | shl<2>(high);
  } else if constexpr (C::kMin) {
    const I32x16 both = load_pairs_u8(sub + 32 * j, sub + 32 * j + 16);
    s.scale = both & four_bits;
    s.min = shr<4>(both) & four_bits;
  } else {
    const auto* signed_scales = reinterpret_cast<const int8_t*>(sub + 32 * j);
    s.scale = load_pairs_i8(signed_scales, signed_scales + 16);
  }
}

// To and from scratch: d, then those of m, scale, min that the format has.
template <Format F> GEMMARY_INLINE void keep_scales(const GroupScales& s, uint8_t* out) {
  using C = Codec<F>;
  store(reinterpret_cast<float*>(out), s.d);
  if constexpr (C::kMin) store(reinterpret_cast<float*>(out += 64), s.m);
  if constexpr (C::kSubScales) store_i32(reinterpret_cast<int32_t*>(out += 64), s.scale);
  if constexpr (C::kMin && C::kSubScales) store_i32(reinterpret_cast<int32_t*>(out += 64), s.min);
}
template <Format F> GEMMARY_INLINE GroupScales reload_scales(const uint8_t* in) {
  using C = Codec<F>;
  GroupScales s{};
  s.d = load(reinterpret_cast<const float*>(in));
  if constexpr (C::kMin) s.m = load(reinterpret_cast<const float*>(in += 64));
  if constexpr (C::kSubScales) s.scale = load_i32(reinterpret_cast<const int32_t*>(in += 64));
  if constexpr (C::kMin && C::kSubScales) s.min = load_i32(reinterpret_cast<const int32_t*>(in += 64));
  return s;
}

}  // namespace gemmary::GEMMARY_ISA
