// Packed panels to float32, and to the source blocks that they were made of.
#include <bit>
#include <cstring>

#include "source_blocks.h"

namespace gemmary {
namespace {

float half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return f16_to_f32(h);
}

template <Format F> int packed_code(const uint8_t* group, int r, int i) {
  const int v = i / 4, lane = 4 * r + i % 4;
  if constexpr (kBytes<F>) return static_cast<int8_t>(group[64 * v + lane]);
  int code = 0;
  if constexpr (kCodeBytes<F> > 0) code = group[64 * (v % 4) + lane] >> (v / 4 * 4) & 15;
  if constexpr (source<F>().two_bits >= 0) code |= (group[kCodeBytes<F> + 64 * (v / 4) + lane] >> (v % 4 * 2) & 3) << (kCodeBytes<F> ? 4 : 0);
  if constexpr (source<F>().one_bit >= 0) code |= (group[kOneBitAt<F> + lane] >> v & 1) << (kCodeBytes<F> ? 4 : 2);
  return code;
}

template <Format F> SubScale packed_scale(const uint8_t* scales, int r, int j) {
  const uint8_t* sub = scales + kSubScalesAt<F> + r;
  if constexpr (kSixBitPairs<F>) return {sub[16 * j] & 63, sub[16 * j] >> 6 | (sub[128 + 16 * (j / 2)] >> (j % 2 * 4) & 15) << 2};
  if constexpr (F == Format::Q2_K) return {sub[16 * j] & 15, sub[16 * j] >> 4};
  return {static_cast<int8_t>(sub[16 * j]), 0};
}

// ---- To float32.
template <Format F> void unpack_row(const PackedView& w, const uint8_t* panel, int r, float* out) {
  const FormatInfo& info = format_info(F);
  for (int64_t g = 0; g < w.cols / kGroup; g++, out += kGroup) {
    const uint8_t* group = panel + g * info.group_bytes;
    const uint8_t* scales = panel + w.scale_offset + g / (info.block / kGroup) * info.scale_bytes;
    const float d = half_at(scales + 2 * r), m = source<F>().m >= 0 ? half_at(scales + 32 + 2 * r) : 0.0f;
    for (int i = 0; i < kGroup; i++) {
      const float q = static_cast<float>(packed_code<F>(group, r, i) - source<F>().zero);
      if constexpr (kSuperBlock<F>) {
        const int j = kSixBitPairs<F> ? static_cast<int>(g % 8) : static_cast<int>(g % 8) * 2 + i / 16;
        const SubScale s = packed_scale<F>(scales, r, j);
        const float product = d * static_cast<float>(s.scale) * q;
        out[i] = source<F>().m >= 0 ? product - m * static_cast<float>(s.min) : product;
      } else {
        out[i] = source<F>().m >= 0 ? d * q + m : d * q;
      }
    }
  }
}

template <class T> void unpack_float_row(const PackedView& w, const uint8_t* panel, int r, float* out) {
  for (int64_t k = 0; k < w.cols; k++) {
    T v;
    std::memcpy(&v, panel + (k * kPanelRows + r) * sizeof(T), sizeof(T));
    if constexpr (sizeof(T) == 4) out[k] = v;
    else out[k] = w.format == Format::F16 ? f16_to_f32(v) : std::bit_cast<float>(uint32_t{v} << 16);
  }
}

// ---- To source blocks, which are zeros before.
template <Format F> void put_code(uint8_t* block, int i, int code) {
  constexpr Source s = source<F>();
  const auto put = [&](int at, int shift, int bits) { block[at] = static_cast<uint8_t>(block[at] | bits << shift); };
  if constexpr (kBytes<F>) put(s.codes + i, 0, code & 255);
  else if constexpr (!kSuperBlock<F>) put(s.codes + i % 16, i / 16 * 4, code & 15);
  else if constexpr (F == Format::Q6_K) put(s.codes + i / 128 * 64 + i % 64, i % 128 / 64 * 4, code & 15);
  else if constexpr (kCodeBytes<F> > 0) put(s.codes + i / 64 * 32 + i % 32, i % 64 / 32 * 4, code & 15);
  if constexpr (s.two_bits >= 0) put(s.two_bits + i / 128 * 32 + i % 32, i % 128 / 32 * 2, (kCodeBytes<F> ? code >> 4 : code) & 3);
  if constexpr (s.one_bit >= 0) {
    const int bit = code >> (kCodeBytes<F> ? 4 : 2);
    if constexpr (kSuperBlock<F>) put(s.one_bit + i % 32, i / 32, bit);
    else put(s.one_bit + i / 8, i % 8, bit);
  }
}

template <Format F> void put_scales(const uint8_t* scales, int r, uint8_t* block) {
  constexpr Source s = source<F>();
  std::memcpy(block + s.d, scales + 2 * r, 2);
  if constexpr (s.m >= 0) std::memcpy(block + s.m, scales + 32 + 2 * r, 2);
  if constexpr (!kSuperBlock<F>) return;
  uint8_t* to = block + s.scales;
  const auto put = [&](int at, int bits) { to[at] = static_cast<uint8_t>(to[at] | bits); };
  for (int j = 0; j < (kSixBitPairs<F> ? 8 : 16); j++) {
    const auto [scale, min] = packed_scale<F>(scales, r, j);
    if constexpr (F == Format::Q2_K) put(j, scale | min << 4);
    else if constexpr (F == Format::Q6_K) put(j, scale & 255);
    else if constexpr (F == Format::Q3_K) {
      put(j % 8, ((scale + 32) & 15) << j / 8 * 4);
      put(8 + j % 4, (scale + 32) >> 4 << j / 4 * 2);
    } else if (j < 4) {
      put(j, scale);
      put(j + 4, min);
    } else {
      put(j + 4, (scale & 15) | (min & 15) << 4);
      put(j - 4, scale >> 4 << 6);
      put(j, min >> 4 << 6);
    }
  }
}

template <Format F> void unpack_source_row(const PackedView& w, const uint8_t* panel, int r, uint8_t* block) {
  const FormatInfo& info = format_info(F);
  const uint8_t* scales = panel + w.scale_offset;
  for (int64_t b = 0; b < w.cols / info.block; b++, block += info.block_bytes, scales += info.scale_bytes) {
    std::memset(block, 0, info.block_bytes);
    put_scales<F>(scales, r, block);
    for (int g = 0; g < info.block / kGroup; g++, panel += info.group_bytes)
      for (int i = 0; i < kGroup; i++) put_code<F>(block, g * kGroup + i, packed_code<F>(panel, r, i));
  }
}

}  // namespace

void unpack(const PackedView& w, int64_t row, int64_t n, uint8_t* source) {
  const size_t row_bytes = source_row_bytes(w.format, w.cols), weight_bytes = format_info(w.format).block_bytes;
  for (int64_t i = row; i < row + n; i++, source += row_bytes) {
    const uint8_t* panel = w.data + static_cast<size_t>(i / kPanelRows) * w.panel_bytes;
    const int r = static_cast<int>(i % kPanelRows);
    if (!format_info(w.format).quantized)
      for (int64_t k = 0; k < w.cols; k++)
        std::memcpy(source + k * weight_bytes, panel + (k * kPanelRows + r) * weight_bytes, weight_bytes);
    else dispatch(w.format, [&]<Format F>() { unpack_source_row<F>(w, panel, r, source); });
  }
}

void unpack_rows(const PackedView& w, int64_t row, int64_t n, float* out, size_t ld) {
  for (int64_t i = row; i < row + n; i++, out += ld) {
    const uint8_t* panel = w.data + static_cast<size_t>(i / kPanelRows) * w.panel_bytes;
    const int r = static_cast<int>(i % kPanelRows);
    if (w.format == Format::F32) unpack_float_row<float>(w, panel, r, out);
    else if (!format_info(w.format).quantized) unpack_float_row<uint16_t>(w, panel, r, out);
    else dispatch(w.format, [&]<Format F>() { unpack_row<F>(w, panel, r, out); });
  }
}

void embed_rows(const PackedView& w, const int32_t* ids, int64_t i0, int64_t i1, float scale, float* out, size_t ld) {
  for (int64_t i = i0; i < i1; i++) {
    float* row = out + static_cast<size_t>(i) * ld;
    unpack_rows(w, ids[i], 1, row, ld);
    for (int64_t k = 0; k < w.cols; k++) row[k] *= scale;
  }
}

}  // namespace gemmary
