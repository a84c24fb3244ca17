// Packed panels to row-major floats. The lanes of a panel are rows, so its codes are turned over in words of four, the narrowest form
// that they have, and widened afterwards.
#pragma once

#include "codec_impl.h"
#include "dequantize.h"
#include "linear_float_impl.h"

namespace gemmary::GEMMARY_ISA {

GEMMARY_INLINE void put(float* out, F32x16 v) { store(out, v); }
GEMMARY_INLINE void put(uint16_t* out, F32x16 v) { store_bf16(out, v); }
GEMMARY_INLINE void put_n(float* out, F32x16 v, int n) { store_n(out, v, n); }
GEMMARY_INLINE void put_n(uint16_t* out, F32x16 v, int n) { store_bf16_n(out, v, n); }

// For each row of a panel: what the codes of either half of a group are multiplied with, and what is added.
struct RowScales {
  float factor[2][kLanes], term[2][kLanes];
};

template <Format F> GEMMARY_INLINE void row_scales(const GroupScales& s, RowScales& out) {
  using C = Codec<F>;
  if constexpr (!C::kSubScales) {
    store(out.factor[0], s.d);
    if constexpr (C::kMin) store(out.term[0], s.m);
  } else {
    store(out.factor[0], s.d * to_f32(sar<16>(shl<16>(s.scale))));
    if constexpr (C::kMin) store(out.term[0], s.m * to_f32(sar<16>(shl<16>(s.min))));
    if constexpr (C::kHalves == 2) {
      store(out.factor[1], s.d * to_f32(sar<16>(s.scale)));
      if constexpr (C::kMin) store(out.term[1], s.m * to_f32(sar<16>(s.min)));
    }
  }
}

// The codes of a group: those of row r are the 32 bytes from rows + 32 r.
template <Format F> GEMMARY_INLINE void turn_codes(const uint8_t* group, uint8_t* rows) {
  alignas(64) uint8_t codes[8 * 64];
#pragma GCC unroll 8
  for (int v = 0; v < 8; v++) store_bytes(codes + 64 * v, code_bytes<F>(group, v));
  for (int r = 0; r < kLanes; r++)  // all of them before any is widened: a wide load right behind narrow stores waits for them
    for (int v = 0; v < 8; v++) std::memcpy(rows + 32 * r + 4 * v, codes + 64 * v + 4 * r, 4);
}

// Rows [r0, r1) of a panel; `out` is row r0.
template <Format F, class T> static void dequantize_blocks(const PackedView& w, const uint8_t* panel, int r0, int r1, T* out, size_t ld) {
  using C = Codec<F>;
  alignas(64) uint8_t rows[kLanes * 32];
  RowScales scales;
  GroupScales group_scales{};
  const I32x16 zero_point = broadcast_i32(C::kZero);
  for (int64_t g = 0; g < w.cols / kGroup; g++, out += kGroup) {
    load_scales<F>(group_scales, panel + w.scale_offset, g, false);
    row_scales<F>(group_scales, scales);
    turn_codes<F>(panel + g * C::kGroupBytes, rows);
    T* to = out;
    for (int r = r0; r < r1; r++, to += ld) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        const uint8_t* from = rows + 32 * r + 16 * half;
        const int sub = C::kHalves == 2 ? half : 0;
        I32x16 code;
        if constexpr (C::kBits == 8) code = load_i8(reinterpret_cast<const int8_t*>(from));
        else code = load_u8(from);
        F32x16 value = to_f32(code - zero_point) * broadcast(scales.factor[sub][r]);
        if constexpr (C::kMin) value = value + broadcast(scales.term[sub][r]);
        put(to + 16 * half, value);
      }
    }
  }
}

template <Format F, class T> static void dequantize_floats(const PackedView& w, const uint8_t* panel, int r0, int r1, T* out, size_t ld) {
  alignas(64) float inputs[kLanes][kLanes] = {}, turned[kLanes][kLanes];
  for (int64_t k = 0; k < w.cols; k += kLanes, out += kLanes) {
    const int count = w.cols - k < kLanes ? static_cast<int>(w.cols - k) : kLanes;
    for (int i = 0; i < count; i++) store(inputs[i], load_weights<F>(panel + (k + i) * kInputBytes<F>));
    for (int r = 0; r < kLanes; r++)  // all before any is loaded, as above
      for (int i = 0; i < kLanes; i++) turned[r][i] = inputs[i][r];
    T* to = out;
    for (int r = r0; r < r1; r++, to += ld) {
      if (count == kLanes) put(to, load(turned[r]));
      else put_n(to, load(turned[r]), count);
    }
  }
}

template <class T> static void dequantize_rows(const PackedView& w, int64_t row, int64_t n, T* out, size_t ld) {
  for (const int64_t end = row + n; row < end;) {
    const int r0 = static_cast<int>(row % kLanes), r1 = end - row < kLanes - r0 ? r0 + static_cast<int>(end - row) : kLanes;
    const uint8_t* panel = w.data + static_cast<size_t>(row / kLanes) * w.panel_bytes;
    switch (w.format) {
      case Format::F32: dequantize_floats<Format::F32>(w, panel, r0, r1, out, ld); break;
      case Format::BF16: dequantize_floats<Format::BF16>(w, panel, r0, r1, out, ld); break;
      case Format::F16: dequantize_floats<Format::F16>(w, panel, r0, r1, out, ld); break;
      case Format::Q4_0: dequantize_blocks<Format::Q4_0>(w, panel, r0, r1, out, ld); break;
      case Format::Q4_1: dequantize_blocks<Format::Q4_1>(w, panel, r0, r1, out, ld); break;
      case Format::Q5_0: dequantize_blocks<Format::Q5_0>(w, panel, r0, r1, out, ld); break;
      case Format::Q5_1: dequantize_blocks<Format::Q5_1>(w, panel, r0, r1, out, ld); break;
      case Format::Q8_0: dequantize_blocks<Format::Q8_0>(w, panel, r0, r1, out, ld); break;
      case Format::Q2_K: dequantize_blocks<Format::Q2_K>(w, panel, r0, r1, out, ld); break;
      case Format::Q3_K: dequantize_blocks<Format::Q3_K>(w, panel, r0, r1, out, ld); break;
      case Format::Q4_K: dequantize_blocks<Format::Q4_K>(w, panel, r0, r1, out, ld); break;
      case Format::Q5_K: dequantize_blocks<Format::Q5_K>(w, panel, r0, r1, out, ld); break;
      case Format::Q6_K: dequantize_blocks<Format::Q6_K>(w, panel, r0, r1, out, ld); break;
    }
    row += r1 - r0;
    out += static_cast<size_t>(r1 - r0) * ld;
  }
}

static void dequantize(const PackedView& w, int64_t row, int64_t n, void* out, size_t ld, bool bfloat16) {
  if (bfloat16) dequantize_rows(w, row, n, static_cast<uint16_t*>(out), ld);
  else dequantize_rows(w, row, n, static_cast<float*>(out), ld);
}

}  // namespace gemmary::GEMMARY_ISA
