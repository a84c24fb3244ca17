// The matrix product on the instruction set of the including unit, which has defined `Tiles` (how many rows of x and panels of weights
// its registers hold). linear.h says what is computed; nothing here may change the order of an accumulation.
#pragma once

#include "codec_impl.h"
#include "linear.h"

namespace gemmary::GEMMARY_ISA {

// How far ahead of the group in work a matrix-vector product asks for weights, and the most that the nearest cache should be asked to hold.
constexpr size_t kPrefetchBytes = 4096, kMaxPrefetchBytes = 16384;
// Up to so many rows of x, unpacking a panel first costs more than it saves.
constexpr int64_t kFewRows = 8;
// Inputs of float weights between two visits to the accumulators in y: 32 KB for a panel.
constexpr int64_t kBlockInputs = 512;
static_assert(kSpanGroups * kMaxUnpackedBytes * Tiles::kIntPanels <= int64_t{kLinearScratchBytes});
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

constexpr int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

// An integer of each row as the low int16 of a pair where `vector` is in the first half of a group, as the high one otherwise.
template <int kHalves> GEMMARY_INLINE I32x16 in_half(I32x16 a, int vector) {
  const I32x16 low = a & broadcast_i32(0xffff);
  if constexpr (kHalves == 1) return low;
  return select(less(broadcast_i32(vector), broadcast_i32(4)), low, shl<16>(a));
}

// NV panels side by side as they are packed, `first` being the first one.
template <Format F> struct PackedPanels {
  const uint8_t* first;
  size_t panel_bytes, scale_offset;
  GEMMARY_INLINE const uint8_t* group(int n, int64_t g) const { return first + n * panel_bytes + g * Codec<F>::kGroupBytes; }
  GEMMARY_INLINE CodeOf<F> code(int n, int64_t g, int v) const { return load_code<F>(group(n, g), v); }          // v constant after unrolling
  GEMMARY_INLINE CodeOf<F> any_code(int n, int64_t g, int v) const { return load_any_code<F>(group(n, g), v); }  // any v
  GEMMARY_INLINE void scales(GroupScales& s, int n, int64_t g, bool all) const { load_scales<F>(s, first + n * panel_bytes + scale_offset, g, all); }
};

// The same, unpacked into scratch from group g0 on: for each group the codes, vector by vector, then the scales.
template <Format F, int NV> struct UnpackedPanels {
  using Code = CodeOf<F>;
  uint8_t* first;
  int64_t g0;
  GEMMARY_INLINE uint8_t* group(int64_t g) const { return first + (g - g0) * (Codec<F>::kUnpackedBytes * NV); }
  GEMMARY_INLINE uint8_t* scales_at(int n, int64_t g) const { return group(g) + Codec<F>::kUnpackedCodeBytes * NV + Codec<F>::kUnpackedScaleBytes * n; }
  GEMMARY_INLINE Code& code(int n, int64_t g, int v) const { return reinterpret_cast<Code*>(group(g))[NV * v + n]; }
  GEMMARY_INLINE CodeOf<F> any_code(int n, int64_t g, int v) const { return code(n, g, v); }
  GEMMARY_INLINE void scales(GroupScales& s, int n, int64_t g, bool) const { s = reload_scales<F>(scales_at(n, g)); }

  void unpack(const PackedPanels<F>& from, int64_t count) const {
    for (int64_t g = g0; g < g0 + count; g++)
      for (int n = 0; n < NV; n++) {
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++) code(n, g, v) = from.code(n, g, v);
        GroupScales s{};
        from.scales(s, n, g, true);
        keep_scales<F>(s, scales_at(n, g));
      }
  }
};

// Group g of the tile; scales[n] are those of panel n; x is the group of the first row, others are `groups` apart.
template <Format F, int MR, int NV, class Panels>
GEMMARY_INLINE void accumulate_group(F32x16 (&acc)[MR][NV], const Panels& panels, int64_t g, const GroupScales (&scales)[NV], const ActivationGroup* x, int64_t groups) {
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
      CodeOf<F> w[NV];
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) w[n] = panels.code(n, g, v);
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
  constexpr int kZero = C::kZero + D::kOffset, kShift = log2_of(kZero);
  static_assert(kZero == 0 || kZero == 1 << kShift);
#pragma GCC unroll 16
  for (int i = 0; i < MR; i++) {
    const ActivationGroup& from = x[i * groups];
    const I32x16 sums = broadcast_i32(from.sums);
    const F32x16 xs = broadcast(from.scale);
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) {
      I32x16 t = total[i][n];
      if constexpr (kZero != 0 && C::kSubScales) t = t - shl<kShift>(pair_dot(scales[n].scale, sums));
      else if constexpr (kZero != 0) t = t - pair_dot(broadcast_i32(kZero | kZero << 16), sums);
      F32x16 sum;
      if constexpr (C::kMin) sum = fma(to_f32(t), scales[n].d, to_f32(pair_dot(C::kSubScales ? scales[n].min : broadcast_i32(0x10001), sums)) * scales[n].m);
      else sum = to_f32(t) * scales[n].d;
      acc[i][n] = fma(sum, xs, acc[i][n]);
    }
  }
}

// The outliers from `from` to `to` of one row of x.
template <Format F, int NV, class Panels> GEMMARY_INLINE void accumulate_outliers(F32x16 (&acc)[NV], const Panels& panels, const Outlier* from, const Outlier* to) {
  using C = Codec<F>;
  for (; from < to; from++) {
    const int64_t g = from->input / kGroup;
    const int vector = from->input % kGroup / 4;
    const F32x16 value = broadcast(from->value);
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) {
      GroupScales s{};
      panels.scales(s, n, g, true);
      I32x16 c = Dot<C::kBits>::pick(panels.any_code(n, g, vector), static_cast<uint32_t>(from->input % 4));
      if constexpr (C::kZero + Dot<C::kBits>::kOffset != 0) c = c - broadcast_i32(C::kZero + Dot<C::kBits>::kOffset);
      if constexpr (C::kSubScales) c = pair_dot(s.scale, in_half<C::kHalves>(c, vector));
      F32x16 w;
      if constexpr (C::kMin) {
        const I32x16 min = pair_dot(C::kSubScales ? s.min : broadcast_i32(0x10001), in_half<C::kHalves>(broadcast_i32(1), vector));
        w = fma(to_f32(c), s.d, to_f32(min) * s.m);
      } else {
        w = to_f32(c) * s.d;
      }
      acc[n] = fma(w, value, acc[n]);
    }
  }
}

struct OutlierRange {
  const Outlier *from, *to;
};
GEMMARY_INLINE OutlierRange outliers_of(const QuantizedActivations& q, int64_t t, int64_t span) {
  const Outlier* row = q.outliers + t * q.groups;
  const int32_t* ends = q.ends + t * q.spans;
  return {row + (span > 0 ? ends[span - 1] : 0), row + ends[span]};
}

// MR rows of x from t against NV panels, codes taken straight from the packed weight: for few rows each weight is read once, from memory.
template <Format F, int MR, int NV>
static void few_rows(const PackedView& w, const uint8_t* first, const QuantizedActivations& q, int64_t t, const Output& o) {
  using C = Codec<F>;
  const PackedPanels<F> panels{first, w.panel_bytes, w.scale_offset};
  const ActivationGroup* x = q.data + t * q.groups;
  F32x16 acc[MR][NV];
  load_tile<MR, NV>(acc, o, true);
  GroupScales s[NV] = {};
  // Small panels: the same group of the next ones. Large ones: a little ahead, within reach of the nearest cache.
  const size_t ahead = NV * w.panel_bytes <= kMaxPrefetchBytes ? NV * w.panel_bytes : kPrefetchBytes;
  for (int64_t span = 0; span < q.spans; span++) {
    const int64_t end = (span + 1) * kSpanGroups < q.groups ? (span + 1) * kSpanGroups : q.groups;
    for (int64_t g = span * kSpanGroups; g < end; g++) {
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) {
        for (int line = 0; line < C::kGroupBytes; line += 64) __builtin_prefetch(panels.group(n, g) + ahead + line);
        panels.scales(s[n], n, g, false);
      }
      accumulate_group<F, MR, NV>(acc, panels, g, s, x + g, q.groups);
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      const OutlierRange outliers = outliers_of(q, t + i, span);
      accumulate_outliers<F, NV>(acc[i], panels, outliers.from, outliers.to);
    }
  }
  store_tile<MR, NV>(acc, o);
}

// MR rows of x from t against NV unpacked panels, over `count` groups from g0.
template <Format F, int MR, int NV>
static __attribute__((noinline)) void tile(const UnpackedPanels<F, NV>& panels, const QuantizedActivations& q, int64_t t, int64_t count, const Output& o) {
  F32x16 acc[MR][NV];
  load_tile<MR, NV>(acc, o, panels.g0 == 0);
  const ActivationGroup* x = q.data + t * q.groups;
  for (int64_t g = panels.g0; g < panels.g0 + count; g++) {
    GroupScales s[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) panels.scales(s[n], n, g, true);
    accumulate_group<F, MR, NV>(acc, panels, g, s, x + g, q.groups);
  }
  store_tile<MR, NV>(acc, o);
}

template <Format F, int NV>
static void product_panels(const PackedView& w, const QuantizedActivations& q, int64_t t0, int64_t t1, int64_t p, float* y, size_t ldy, uint8_t* scratch) {
  const PackedPanels<F> packed{w.data + static_cast<size_t>(p) * w.panel_bytes, w.panel_bytes, w.scale_offset};
  const int last = static_cast<int>(w.rows - (p + NV - 1) * kLanes < kLanes ? w.rows - (p + NV - 1) * kLanes : kLanes);
  const auto at = [&](int64_t t) { return Output{y + static_cast<size_t>(t) * ldy + p * kLanes, ldy, last}; };
  for (int64_t span = 0; span < q.spans; span++) {
    const int64_t g0 = span * kSpanGroups, count = q.groups - g0 < kSpanGroups ? q.groups - g0 : kSpanGroups;
    const UnpackedPanels<F, NV> panels{scratch, g0};
    panels.unpack(packed, count);
    for (int64_t t = t0; t < t1;) {
      const int64_t left = t1 - t;
      if (left >= Tiles::kIntRows) tile<F, Tiles::kIntRows, NV>(panels, q, t, count, at(t)), t += Tiles::kIntRows;
      else if (left >= 2 && Tiles::kIntRows > 2) tile<F, 2, NV>(panels, q, t, count, at(t)), t += 2;
      else tile<F, 1, NV>(panels, q, t, count, at(t)), t += 1;
    }
    for (int64_t t = t0; t < t1; t++) {
      const OutlierRange outliers = outliers_of(q, t, span);
      if (outliers.from == outliers.to) continue;
      F32x16 acc[1][NV];
      load_tile<1, NV>(acc, at(t), false);
      accumulate_outliers<F, NV>(acc[0], panels, outliers.from, outliers.to);
      store_tile<1, NV>(acc, at(t));
    }
  }
}

template <Format F>
static void linear_quantized(const PackedView& w, const QuantizedActivations& q, int64_t t0, int64_t t1, int64_t p0, int64_t p1, float* y, size_t ldy,
                             uint8_t* scratch) {
  const auto panel = [&](int64_t p) { return w.data + static_cast<size_t>(p) * w.panel_bytes; };
  const auto at = [&](int64_t t, int64_t p, int panels) {
    const int64_t left = w.rows - (p + panels - 1) * kLanes;
    return Output{y + static_cast<size_t>(t) * ldy + p * kLanes, ldy, static_cast<int>(left < kLanes ? left : kLanes)};
  };
  int64_t p = p0;
  if (t1 - t0 == 1) {
    constexpr int kSide = Tiles::kIntVectorPanels;
    for (; p + kSide <= p1; p += kSide) few_rows<F, 1, kSide>(w, panel(p), q, t0, at(t0, p, kSide));
    for (; p < p1; p++) few_rows<F, 1, 1>(w, panel(p), q, t0, at(t0, p, 1));
    return;
  }
  if (t1 - t0 <= kFewRows) {
    constexpr int kRows = Tiles::kIntRows;
    for (; p < p1; p++) {
      int64_t t = t0;
      for (; t + kRows <= t1; t += kRows) few_rows<F, kRows, 1>(w, panel(p), q, t, at(t, p, 1));
      if constexpr (kRows > 2)
        for (; t + 2 <= t1; t += 2) few_rows<F, 2, 1>(w, panel(p), q, t, at(t, p, 1));
      for (; t < t1; t++) few_rows<F, 1, 1>(w, panel(p), q, t, at(t, p, 1));
    }
    return;
  }
  for (; p + Tiles::kIntPanels <= p1; p += Tiles::kIntPanels) product_panels<F, Tiles::kIntPanels>(w, q, t0, t1, p, y, ldy, scratch);
  if constexpr (Tiles::kIntPanels > 1)
    for (; p < p1; p++) product_panels<F, 1>(w, q, t0, t1, p, y, ldy, scratch);
}

}  // namespace gemmary::GEMMARY_ISA
