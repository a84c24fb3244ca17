// Source blocks to packed panels and back. Each format's block layout is ggml's; packed.h says where things go.
#include <bit>
#include <cstring>

#include "packed.h"

namespace gemmary {
namespace {

uint32_t word(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
float half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return f16_to_f32(h);
}

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

// ---- Sub-block scales and mins of super-blocks: both 6 bits in Q4_K and Q5_K, 4 in Q2_K; Q3_K's is 6 bits, Q6_K's 8, both signed.
struct SubScale { int scale, min; };
template <Format F> SubScale source_scale(const uint8_t* block, int j) {
  const uint8_t* s = block + source<F>().scales;
  if constexpr (F == Format::Q2_K) return {s[j] & 15, s[j] >> 4};
  if constexpr (F == Format::Q6_K) return {static_cast<int8_t>(s[j]), 0};
  if constexpr (F == Format::Q3_K) return {((j < 8 ? s[j] & 15 : s[j - 8] >> 4) | (s[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32, 0};
  if (j < 4) return {s[j] & 63, s[j + 4] & 63};
  return {(s[j + 4] & 15) | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4};
}
template <Format F> constexpr bool kSixBitPairs = F == Format::Q4_K || F == Format::Q5_K;
template <Format F> constexpr int kSubScalesAt = source<F>().m >= 0 ? 64 : 32;  // after d and, where there is one, dmin

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

template <Format F> SubScale packed_scale(const uint8_t* scales, int r, int j) {
  const uint8_t* sub = scales + kSubScalesAt<F> + r;
  if constexpr (kSixBitPairs<F>) return {sub[16 * j] & 63, sub[16 * j] >> 6 | (sub[128 + 16 * (j / 2)] >> (j % 2 * 4) & 15) << 2};
  if constexpr (F == Format::Q2_K) return {sub[16 * j] & 15, sub[16 * j] >> 4};
  return {static_cast<int8_t>(sub[16 * j]), 0};
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

template <Format F> int packed_code(const uint8_t* group, int r, int i) {
  const int v = i / 4, lane = 4 * r + i % 4;
  if constexpr (kBytes<F>) return static_cast<int8_t>(group[64 * v + lane]);
  int code = 0;
  if constexpr (kCodeBytes<F> > 0) code = group[64 * (v % 4) + lane] >> (v / 4 * 4) & 15;
  if constexpr (source<F>().two_bits >= 0) code |= (group[kCodeBytes<F> + 64 * (v / 4) + lane] >> (v % 4 * 2) & 3) << (kCodeBytes<F> ? 4 : 0);
  if constexpr (source<F>().one_bit >= 0) code |= (group[kOneBitAt<F> + lane] >> v & 1) << (kCodeBytes<F> ? 4 : 2);
  return code;
}

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

}  // namespace

void pack(PackedWeight& weight, const void* source, int64_t p0, int64_t p1) {
  const PackedView& w = weight.view();
  const size_t row_bytes = source_row_bytes(w.format, w.cols);
  for (int64_t p = p0; p < p1; p++) {
    uint8_t* panel = weight.data() + static_cast<size_t>(p) * w.panel_bytes;
    const uint8_t* from = static_cast<const uint8_t*>(source) + static_cast<size_t>(p * kPanelRows) * row_bytes;
    const int rows = static_cast<int>(w.rows - p * kPanelRows < kPanelRows ? w.rows - p * kPanelRows : kPanelRows);
    const size_t used = w.scale_offset + static_cast<size_t>(w.cols / format_info(w.format).block) * format_info(w.format).scale_bytes;
    const size_t kept = rows == kPanelRows ? used : 0;  // missing rows and the padding are zeros
    std::memset(panel + kept, 0, w.panel_bytes - kept);
    if (w.format == Format::F32) pack_float_panel<float>(w, panel, from, rows);
    else if (!format_info(w.format).quantized) pack_float_panel<uint16_t>(w, panel, from, rows);
    else dispatch(w.format, [&]<Format F>() { pack_panel<F>(w, panel, from, row_bytes, rows); });
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
