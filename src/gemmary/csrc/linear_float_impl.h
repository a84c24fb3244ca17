// The matrix product with float weights, and the choice among formats (see linear_impl.h).
#pragma once

#include "linear_impl.h"

namespace gemmary::GEMMARY_ISA {

// 16 rows' weights for one input, widened exactly.
template <Format F> GEMMARY_INLINE F32x16 load_weights(const uint8_t* p) {
  if constexpr (F == Format::F32) return load(reinterpret_cast<const float*>(p));
  else if constexpr (F == Format::BF16) return load_bf16(reinterpret_cast<const uint16_t*>(p));
  else return load_f16(reinterpret_cast<const uint16_t*>(p));
}
template <Format F> constexpr int kInputBytes = F == Format::F32 ? 64 : 32;

// MR rows of x against NV panels `stride` apart, over `count` inputs; w and x point at the first of them.
template <Format F, int MR, int NV>
static __attribute__((noinline)) void float_tile(const uint8_t* w, size_t stride, const float* x, size_t ldx, int64_t count, bool fresh, const Output& o) {
  F32x16 acc[MR][NV];
  load_tile<MR, NV>(acc, o, fresh);
  for (int64_t k = 0; k < count; k++, w += kInputBytes<F>) {
    F32x16 v[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) v[n] = load_weights<F>(w + n * stride);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
      const F32x16 xv = broadcast(x[i * ldx + k]);
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) acc[i][n] = fma(v[n], xv, acc[i][n]);
    }
  }
  store_tile<MR, NV>(acc, o);
}

template <int MR, int NV>
static void float_rows(const uint8_t* w, size_t stride, const Activations& a, int64_t& t, int64_t t1, int64_t k0, int64_t count, Output o) {
  float* y = o.y;
  for (; t + MR <= t1; t += MR) {
    o.y = y + static_cast<size_t>(t) * o.ldy;
    float_tile<Format::F32, MR, NV>(w, stride, a.x + static_cast<size_t>(t) * a.ldx + k0, a.ldx, count, k0 == 0, o);
  }
}

template <Format F, int NV>
static void float_panels(const PackedView& w, const Activations& a, int64_t t0, int64_t t1, int64_t p, float* y, size_t ldy, uint8_t* scratch) {
  const uint8_t* panel = w.data + static_cast<size_t>(p) * w.panel_bytes;
  const int last = static_cast<int>(w.rows - (p + NV - 1) * kLanes < kLanes ? w.rows - (p + NV - 1) * kLanes : kLanes);
  const Output o{y + p * kLanes, ldy, last};
  for (int64_t k0 = 0; k0 < w.cols; k0 += kBlockInputs) {
    const int64_t count = w.cols - k0 < kBlockInputs ? w.cols - k0 : kBlockInputs;
    const uint8_t* from = panel + k0 * kInputBytes<F>;
    size_t stride = w.panel_bytes;
    if constexpr (F != Format::F32) {  // widen once for all rows
      for (int n = 0; n < NV; n++)
        for (int64_t k = 0; k < count; k++)
          store(reinterpret_cast<float*>(scratch + (n * kBlockInputs + k) * 64), load_weights<F>(from + n * stride + k * kInputBytes<F>));
      from = scratch;
      stride = kBlockInputs * 64;
    }
    int64_t t = t0;
    float_rows<Tiles::kFloatRows, NV>(from, stride, a, t, t1, k0, count, o);
    if constexpr (Tiles::kFloatRows > 2) float_rows<2, NV>(from, stride, a, t, t1, k0, count, o);
    if constexpr (Tiles::kFloatRows > 1) float_rows<1, NV>(from, stride, a, t, t1, k0, count, o);
  }
}

template <Format F>
static void linear_float(const PackedView& w, const Activations& a, int64_t t0, int64_t t1, int64_t p0, int64_t p1, float* y, size_t ldy, uint8_t* scratch) {
  int64_t p = p0;
  if (t1 - t0 == 1) {  // one row: an accumulator waits for its last fma, so several panels go side by side
    constexpr int kSide = Tiles::kVectorPanels;
    const float* x = a.x + static_cast<size_t>(t0) * a.ldx;
    float* row = y + static_cast<size_t>(t0) * ldy;
    const auto last = [&](int64_t q) { return static_cast<int>(w.rows - q * kLanes < kLanes ? w.rows - q * kLanes : kLanes); };
    for (; p + kSide <= p1; p += kSide)
      float_tile<F, 1, kSide>(w.data + static_cast<size_t>(p) * w.panel_bytes, w.panel_bytes, x, 0, w.cols, true, {row + p * kLanes, 0, last(p + kSide - 1)});
    for (; p < p1; p++)
      float_tile<F, 1, 1>(w.data + static_cast<size_t>(p) * w.panel_bytes, 0, x, 0, w.cols, true, {row + p * kLanes, 0, last(p)});
    return;
  }
  for (; p + Tiles::kFloatPanels <= p1; p += Tiles::kFloatPanels) float_panels<F, Tiles::kFloatPanels>(w, a, t0, t1, p, y, ldy, scratch);
  if constexpr (Tiles::kFloatPanels > 1)
    for (; p < p1; p++) float_panels<F, 1>(w, a, t0, t1, p, y, ldy, scratch);
}

static void linear(const PackedView& w, const Activations& a, int64_t t0, int64_t t1, int64_t p0, int64_t p1, float* y, size_t ldy, void* scratch) {
  auto* bytes = static_cast<uint8_t*>(scratch);
  switch (w.format) {
    case Format::F32: return linear_float<Format::F32>(w, a, t0, t1, p0, p1, y, ldy, bytes);
    case Format::BF16: return linear_float<Format::BF16>(w, a, t0, t1, p0, p1, y, ldy, bytes);
    case Format::F16: return linear_float<Format::F16>(w, a, t0, t1, p0, p1, y, ldy, bytes);
    case Format::Q4_0: return linear_quantized<Format::Q4_0>(w, a.q, t0, t1, p0, p1, y, ldy, bytes);
    case Format::Q4_1: return linear_quantized<Format::Q4_1>(w, a.q, t0, t1, p0, p1, y, ldy, bytes);
    case Format::Q5_0: return linear_quantized<Format::Q5_0>(w, a.q, t0, t1, p0, p1, y, ldy, bytes);
    case Format::Q5_1: return linear_quantized<Format::Q5_1>(w, a.q, t0, t1, p0, p1, y, ldy, bytes);
    case Format::Q8_0: return linear_quantized<Format::Q8_0>(w, a.q, t0, t1, p0, p1, y, ldy, bytes);
    case Format::Q2_K: return linear_quantized<Format::Q2_K>(w, a.q, t0, t1, p0, p1, y, ldy, bytes);
    case Format::Q3_K: return linear_quantized<Format::Q3_K>(w, a.q, t0, t1, p0, p1, y, ldy, bytes);
    case Format::Q4_K: return linear_quantized<Format::Q4_K>(w, a.q, t0, t1, p0, p1, y, ldy, bytes);
    case Format::Q5_K: return linear_quantized<Format::Q5_K>(w, a.q, t0, t1, p0, p1, y, ldy, bytes);
    case Format::Q6_K: return linear_quantized<Format::Q6_K>(w, a.q, t0, t1, p0, p1, y, ldy, bytes);
  }
}

}  // namespace gemmary::GEMMARY_ISA
