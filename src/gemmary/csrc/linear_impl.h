// The matrix product on the instruction set of the including unit, which has defined `Tiles` (how many rows of x and panels of weights
// its registers hold). linear.h says what is computed; nothing here may change the order of an accumulation.
#pragma once

#include "codec_impl.h"
#include "linear.h"

namespace gemmary::GEMMARY_ISA {

// Inputs between two visits to the accumulators in y: what is unpacked at once must stay in the nearest caches.
constexpr int64_t kBlockGroups = 32;   // 1,024 inputs: at most 24.5 KB of codes and scales for a panel
constexpr int64_t kBlockInputs = 512;  // 32 KB of float32 weights for a panel
// How far ahead of the group in work a matrix-vector product asks for weights.
constexpr int kPrefetchBytes = 4096;
static_assert(kBlockGroups * kMaxUnpackedBytes * Tiles::kIntPanels <= int64_t{kLinearScratchBytes});
static_assert(kBlockInputs * 64 * Tiles::kFloatPanels <= int64_t{kLinearScratchBytes});

// Where a tile of y is: MR rows from `y`, ldy apart, of NV panels, the last of which has `last` rows of the weight.
struct Output {
  float* y;
  size_t ldy;
  int last;
};

template <int MR, int NV> GEMMARY_INLINE void load_tile(F32x16 (&acc)[MR][NV], const Output& o, bool fresh) {
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) {
      const float* p = o.y + i * o.ldy + kLanes * n;
      acc[i][n] = fresh ? zero() : n + 1 < NV || o.last == kLanes ? load(p) : load_n(p, o.last);
    }
}
template <int MR, int NV> GEMMARY_INLINE void store_tile(const F32x16 (&acc)[MR][NV], const Output& o) {
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) {
      float* p = o.y + i * o.ldy + kLanes * n;
      if (n + 1 < NV || o.last == kLanes) store(p, acc[i][n]);
      else store_n(p, acc[i][n], o.last);
    }
}

// ---- Quantized weights.

// The rows of x that a tile reads, from its first group on.
struct QuantizedRows {
  const ActivationGroup* first;
  int64_t groups;  // from one row to the next
};
GEMMARY_INLINE QuantizedRows rows_from(const QuantizedActivations& q, int64_t t) { return {q.data + t * q.groups, q.groups}; }

// An integer of each row as the low int16 of a pair where `vector` is in the first half of a group, as the high one otherwise.
template <int kHalves> GEMMARY_INLINE I32x16 in_half(I32x16 a, int vector) {
  const I32x16 low = a & broadcast_i32(0xffff);
  if constexpr (kHalves == 1) return low;
  return select(less(broadcast_i32(vector), broadcast_i32(4)), low, shl<16>(a));
}

// Where a group's codes come from: vector v of panel n, with v a constant after unrolling, or any v.
template <Format F> struct PackedCodes {
  const uint8_t* group;
  size_t panel_bytes;
  GEMMARY_INLINE Bytes64 vector(int n, int v) const { return load_code<F>(group + n * panel_bytes, v); }
  GEMMARY_INLINE Bytes64 any(int n, int v) const { return load_any_code<F>(group + n * panel_bytes, v); }
};
template <int NV> struct UnpackedCodes {
  const uint8_t* group;
  GEMMARY_INLINE Bytes64 vector(int n, int v) const { return load_bytes(group + 64 * (NV * v + n)); }
  GEMMARY_INLINE Bytes64 any(int n, int v) const { return vector(n, v); }
};

// One group of the tile; scales[n] are those of panel n.
template <Format F, int MR, int NV, class Code>
GEMMARY_INLINE void accumulate_group(F32x16 (&acc)[MR][NV], const Code& code, const GroupScales (&scales)[NV], const ActivationGroup* x, int64_t groups) {
  using C = Codec<F>;
  using D = Dot<C::kBits>;
  constexpr int kHalf = C::kHalves == 2 ? 4 : 8, kChunk = D::kChunk < kHalf ? D::kChunk : kHalf;
  I32x16 total[MR][NV];
#pragma GCC unroll 8
  for (int start = 0; start < 8; start += kChunk) {
    typename D::Sum sum[MR][NV];
#pragma GCC unroll 8
    for (int step = start; step < start + kChunk; step++) {
      // A byte's two nibbles together, unless they belong to halves with different scales.
      const int v = C::kHalves == 1 ? step / 2 + step % 2 * 4 : step;
      Bytes64 w[NV];
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) w[n] = code.vector(n, v);
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) {
        const Quad q = broadcast_quad(x[i * groups].codes + 4 * v);
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) sum[i][n] = step == start ? D::first(w[n], q) : D::add(sum[i][n], w[n], q);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) {
      I32x16 factor{};
      if constexpr (C::kSubScales) factor = C::kHalves == 1 ? pair_equal(scales[n].scale) : start < 4 ? pair_low(scales[n].scale) : pair_high(scales[n].scale);
#pragma GCC unroll 16
      for (int i = 0; i < MR; i++) {
        I32x16 part;
        if constexpr (C::kSubScales) part = D::total(sum[i][n], factor);
        else part = D::total(sum[i][n]);
        total[i][n] = start == 0 ? part : total[i][n] + part;
      }
    }
  }
  constexpr int kZero = C::kZero + D::kOffset;
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
    const ActivationGroup& from = x[i * groups];
    const I32x16 sums = broadcast_i32(from.sums);
    const F32x16 xs = broadcast(from.scale), outlier = broadcast(from.outlier);
    const int vector = static_cast<int>(from.place >> 8);
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) {
      I32x16 t = total[i][n], c = D::pick(code.any(n, vector), from.place);
      if constexpr (kZero != 0) c = c - broadcast_i32(kZero);
      if constexpr (kZero != 0 && C::kSubScales) t = t - broadcast_i32(kZero) * pair_dot(scales[n].scale, sums);
      else if constexpr (kZero != 0) t = t - pair_dot(broadcast_i32(kZero | kZero << 16), sums);
      if constexpr (C::kSubScales) c = pair_dot(scales[n].scale, in_half<C::kHalves>(c, vector));
      acc[i][n] = fma(fma(to_f32(c), outlier, to_f32(t) * xs), scales[n].d, acc[i][n]);
      if constexpr (C::kMin) {
        const I32x16 mins = C::kSubScales ? scales[n].min : broadcast_i32(0x10001);
        const I32x16 min = pair_dot(mins, in_half<C::kHalves>(broadcast_i32(1), vector));
        acc[i][n] = fma(fma(to_f32(min), outlier, to_f32(pair_dot(mins, sums)) * xs), scales[n].m, acc[i][n]);
      }
    }
  }
}

// One row of x against NV panels, codes taken straight from the packed weight: a matrix-vector product reads each weight once.
template <Format F, int NV> static void vector_panels(const PackedView& w, const uint8_t* panel, const ActivationGroup* x, const Output& o) {
  using C = Codec<F>;
  const uint8_t* group = panel;
  const uint8_t* scales = panel + w.scale_offset;
  F32x16 acc[1][NV];
  load_tile<1, NV>(acc, o, true);
  GroupScales s[NV] = {};
  const int64_t groups = w.cols / kGroup;
  for (int64_t g = 0; g < groups; g++, group += C::kGroupBytes) {
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) {
      for (int line = 0; line < C::kGroupBytes; line += 64) __builtin_prefetch(group + n * w.panel_bytes + kPrefetchBytes + line);
      load_scales<F>(s[n], scales + n * w.panel_bytes, g, false);
    }
    accumulate_group<F, 1, NV>(acc, PackedCodes<F>{group, w.panel_bytes}, s, x + g, 0);
  }
  store_tile<1, NV>(acc, o);
}

// MR rows of x against NV unpacked panels, over `count` groups from g0.
template <Format F, int MR, int NV>
static __attribute__((noinline)) void tile(const uint8_t* unpacked, QuantizedRows x, int64_t g0, int64_t count, const Output& o) {
  F32x16 acc[MR][NV];
  load_tile<MR, NV>(acc, o, g0 == 0);
  for (int64_t g = g0; g < g0 + count; g++, unpacked += Codec<F>::kUnpackedBytes * NV) {
    GroupScales s[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) s[n] = reload_scales<F>(unpacked + 512 * NV + Codec<F>::kUnpackedScaleBytes * n);
    accumulate_group<F, MR, NV>(acc, UnpackedCodes<NV>{unpacked}, s, x.first + g, x.groups);
  }
  store_tile<MR, NV>(acc, o);
}

template <Format F, int NV> static void unpack(const PackedView& w, const uint8_t* panel, int64_t g0, int64_t count, uint8_t* out) {
  using C = Codec<F>;
  for (int64_t g = g0; g < g0 + count; g++, out += C::kUnpackedBytes * NV)
    for (int n = 0; n < NV; n++) {
      const uint8_t* group = panel + n * w.panel_bytes + g * C::kGroupBytes;
#pragma GCC unroll 8
      for (int v = 0; v < 8; v++) store_bytes(out + 64 * (NV * v + n), load_code<F>(group, v));
      GroupScales s{};
      load_scales<F>(s, panel + n * w.panel_bytes + w.scale_offset, g, true);
      keep_scales<F>(s, out + 512 * NV + C::kUnpackedScaleBytes * n);
    }
}

template <Format F, int NV>
static void product_panels(const PackedView& w, const QuantizedActivations& q, int64_t t0, int64_t t1, int64_t p, float* y, size_t ldy, uint8_t* scratch) {
  const int64_t groups = w.cols / kGroup;
  const int last = static_cast<int>(w.rows - (p + NV - 1) * kLanes < kLanes ? w.rows - (p + NV - 1) * kLanes : kLanes);
  for (int64_t g0 = 0; g0 < groups; g0 += kBlockGroups) {
    const int64_t count = groups - g0 < kBlockGroups ? groups - g0 : kBlockGroups;
    unpack<F, NV>(w, w.data + static_cast<size_t>(p) * w.panel_bytes, g0, count, scratch);
    for (int64_t t = t0; t < t1;) {
      const QuantizedRows x = rows_from(q, t);
      const Output o{y + static_cast<size_t>(t) * ldy + p * kLanes, ldy, last};
      const int64_t left = t1 - t;
      if (left >= Tiles::kIntRows) tile<F, Tiles::kIntRows, NV>(scratch, x, g0, count, o), t += Tiles::kIntRows;
      else if (left >= 2 && Tiles::kIntRows > 2) tile<F, 2, NV>(scratch, x, g0, count, o), t += 2;
      else tile<F, 1, NV>(scratch, x, g0, count, o), t += 1;
    }
  }
}

template <Format F>
static void linear_quantized(const PackedView& w, const QuantizedActivations& q, int64_t t0, int64_t t1, int64_t p0, int64_t p1, float* y, size_t ldy,
                             uint8_t* scratch) {
  const auto last = [&](int64_t p) { return static_cast<int>(w.rows - p * kLanes < kLanes ? w.rows - p * kLanes : kLanes); };
  int64_t p = p0;
  if (t1 - t0 == 1) {
    constexpr int kSide = Tiles::kIntVectorPanels;
    const ActivationGroup* x = rows_from(q, t0).first;
    float* row = y + static_cast<size_t>(t0) * ldy;
    const auto panel = [&](int64_t at) { return w.data + static_cast<size_t>(at) * w.panel_bytes; };
    for (; p + kSide <= p1; p += kSide) vector_panels<F, kSide>(w, panel(p), x, {row + p * kLanes, 0, last(p + kSide - 1)});
    if constexpr (kSide > 1)
      for (; p < p1; p++) vector_panels<F, 1>(w, panel(p), x, {row + p * kLanes, 0, last(p)});
    return;
  }
  for (; p + Tiles::kIntPanels <= p1; p += Tiles::kIntPanels) product_panels<F, Tiles::kIntPanels>(w, q, t0, t1, p, y, ldy, scratch);
  if constexpr (Tiles::kIntPanels > 1)
    for (; p < p1; p++) product_panels<F, 1>(w, q, t0, t1, p, y, ldy, scratch);
}

}  // namespace gemmary::GEMMARY_ISA
