// Source blocks to packed panels. Each format's block layout is ggml's; packed.h says where things go.
#include <cstring>

#include "source_blocks.h"

namespace gemmary {
namespace {

uint32_t word(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
// ---- Codes. Word v of a row is bytes 4r..4r+3 of vector v of the panel.

// Word v of group g: nibbles of vectors v and v + 4, or bytes of vector v.
template <Format F> uint32_t code_word(const uint8_t* block, int g, int v) {
  constexpr uint32_t kLow = 0x0f0f0f0f;
  const uint8_t* q = block + source<F>().codes;
  if constexpr (!kSuperBlock<F>) return word(q + 4 * v);
  int shift;
  if constexpr (F == Format::Q6_K) {
    q += 64 * (g / 4) + 32 * (g % 2);
    shift = g % 4 / 2 * 4;
  } else {
    q += 32 * (g / 2);
    shift = g % 2 * 4;
  }
  return (word(q + 4 * v) >> shift & kLow) | (word(q + 16 + 4 * v) >> shift & kLow) << 4;
}

// The two-bit plane's word h: inputs 16h..16h+15.
template <Format F> uint32_t two_bit_word(const uint8_t* block, int g, int h) {
  const uint8_t* q = block + source<F>().two_bits + 32 * (g / 4) + 16 * h;
  uint32_t plane = 0;
  for (int v = 0; v < 4; v++) plane |= (word(q + 4 * v) >> (2 * (g % 4)) & 0x03030303u) << (2 * v);
  return plane;
}

template <Format F> uint32_t one_bit_word(const uint8_t* block, int g) {
  const uint8_t* q = block + source<F>().one_bit;
  uint32_t plane = 0;
  for (int v = 0; v < 8; v++) {
    if constexpr (kSuperBlock<F>) {  // byte i holds input i of each of the eight groups
      plane |= (word(q + 4 * v) >> g & 0x01010101u) << v;
    } else {  // bit i of a 32-bit word is input i: put four neighbours in the four bytes
      plane |= ((word(q) >> (4 * v) & 15) * 0x00204081u & 0x01010101u) << v;
    }
  }
  return plane;
}

// ---- Scales.
template <Format F> SubScale source_scale(const uint8_t* block, int j) {
  const uint8_t* s = block + source<F>().scales;
  if constexpr (F == Format::Q2_K) return {s[j] & 15, s[j] >> 4};
  if constexpr (F == Format::Q6_K) return {static_cast<int8_t>(s[j]), 0};
  if constexpr (F == Format::Q3_K) return {((j < 8 ? s[j] & 15 : s[j - 8] >> 4) | (s[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32, 0};
  if (j < 4) return {s[j] & 63, s[j + 4] & 63};
  return {(s[j + 4] & 15) | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4};
}
template <Format F> void pack_scales(const uint8_t* block, int r, uint8_t* scales) {
  std::memcpy(scales + 2 * r, block + source<F>().d, 2);
  if constexpr (source<F>().m >= 0) std::memcpy(scales + 32 + 2 * r, block + source<F>().m, 2);
  if constexpr (!kSuperBlock<F>) return;
  uint8_t* sub = scales + kSubScalesAt<F> + r;
  if constexpr (kSixBitPairs<F>) {
    for (int j = 0; j < 8; j += 2) {
      const SubScale a = source_scale<F>(block, j), b = source_scale<F>(block, j + 1);
      sub[16 * j] = static_cast<uint8_t>(a.scale | a.min << 6);
      sub[16 * j + 16] = static_cast<uint8_t>(b.scale | b.min << 6);
      sub[128 + 8 * j] = static_cast<uint8_t>(a.min >> 2 | b.min >> 2 << 4);
    }
  } else {
    for (int j = 0; j < 16; j++) {
      const SubScale s = source_scale<F>(block, j);
      sub[16 * j] = static_cast<uint8_t>(F == Format::Q2_K ? s.scale | s.min << 4 : s.scale);
    }
  }
}

// ---- Whole panels.
template <Format F> void pack_panel(const PackedView& w, uint8_t* panel, const uint8_t* source_row, size_t row_bytes, int rows) {
  const FormatInfo& info = format_info(F);
  constexpr int kBlockGroups = kSuperBlock<F> ? 8 : 1, kWords = kBytes<F> ? 8 : kCodeBytes<F> / 64;
  uint8_t* codes = panel;
  uint8_t* scales = panel + w.scale_offset;
  for (int64_t block = 0; block < w.cols / info.block; block++, source_row += info.block_bytes, scales += info.scale_bytes) {
    for (int r = 0; r < rows; r++) {
      const uint8_t* from = source_row + r * row_bytes;
      for (int g = 0; g < kBlockGroups; g++) {
        uint8_t* to = codes + g * info.group_bytes + 4 * r;
        const auto put = [&](int at, uint32_t v) { std::memcpy(to + at, &v, 4); };
        for (int v = 0; v < kWords; v++) put(64 * v, code_word<F>(from, g, v));
        if constexpr (source<F>().two_bits >= 0)
          for (int h = 0; h < 2; h++) put(kCodeBytes<F> + 64 * h, two_bit_word<F>(from, g, h));
        if constexpr (source<F>().one_bit >= 0) put(kOneBitAt<F>, one_bit_word<F>(from, g));
      }
      pack_scales<F>(from, r, scales);
    }
    codes += kBlockGroups * info.group_bytes;
  }
}

template <class T> void pack_float_panel(const PackedView& w, uint8_t* panel, const uint8_t* source_row, int rows) {
  const size_t row_bytes = static_cast<size_t>(w.cols) * sizeof(T);
  for (int64_t k = 0; k < w.cols; k++)
    for (int r = 0; r < rows; r++) std::memcpy(panel + (k * kPanelRows + r) * sizeof(T), source_row + r * row_bytes + k * sizeof(T), sizeof(T));
}

}  // namespace

void pack(PackedWeight& weight, const void* source, int64_t p0, int64_t p1) {
  const PackedView& w = weight.view();
  const size_t row_bytes = source_row_bytes(w.format, w.cols);
  for (int64_t p = p0; p < p1; p++) {
    uint8_t* panel = weight.data() + static_cast<size_t>(p) * w.panel_bytes;
    const uint8_t* from = static_cast<const uint8_t*>(source) + static_cast<size_t>((p - p0) * kPanelRows) * row_bytes;
    const int rows = static_cast<int>(w.rows - p * kPanelRows < kPanelRows ? w.rows - p * kPanelRows : kPanelRows);
    const size_t used = w.scale_offset + static_cast<size_t>(w.cols / format_info(w.format).block) * format_info(w.format).scale_bytes;
    const size_t kept = rows == kPanelRows ? used : 0;  // missing rows and the padding are zeros
    std::memset(panel + kept, 0, w.panel_bytes - kept);
    if (w.format == Format::F32) pack_float_panel<float>(w, panel, from, rows);
    else if (!format_info(w.format).quantized) pack_float_panel<uint16_t>(w, panel, from, rows);
    else dispatch(w.format, [&]<Format F>() { pack_panel<F>(w, panel, from, row_bytes, rows); });
  }
}

}  // namespace gemmary
