// Deterministic inputs shared by the native tests and benchmarks: no libm, so they are the same on every machine.
#pragma once

#include <bit>
#include <cstring>
#include <vector>

#include "formats.h"

namespace gemmary {

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull) {}
  uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
  float uniform() { return static_cast<float>(static_cast<int32_t>(next() >> 32)) * 0x1p-31f; }  // [-1, 1]
};

// Random source rows; f16 scales are kept moderate (0.0005 .. 0.06 either sign), everything else is any bits at all.
// extreme: every code and sub-scale at the end of its range, to reach the bounds the kernels rely on.
inline std::vector<uint8_t> random_source(Format format, int64_t rows, int64_t cols, uint64_t seed,
                                          bool extreme = false) {
  const FormatInfo& info = format_info(format);
  const size_t row_bytes = source_row_bytes(format, cols);
  std::vector<uint8_t> out(static_cast<size_t>(rows) * row_bytes);
  Random random(seed);
  const auto put_half = [&](uint8_t* p) {
    const uint16_t h =
        f32_to_f16((random.uniform() + 1.0f) * 0.03f + 0.0005f) | (random.next() >> 60 == 0 ? 0x8000 : 0);
    std::memcpy(p, &h, 2);
  };
  if (!info.quantized) {
    for (size_t i = 0; i < out.size(); i += info.block_bytes) {
      const float v = random.uniform() * (random.next() % 16 == 0 ? 3.0f : 0.1f);
      quantize_rows_to(format, &v, 1, 1, out.data() + i);
    }
    return out;
  }
  for (uint8_t& b : out)
    b = extreme ? (format == Format::Q8_0 || (format == Format::Q6_K && random.next() % 2) ? 0x80 : 0xff)
                : static_cast<uint8_t>(random.next() >> 40);
  for (size_t i = 0; i < out.size(); i += info.block_bytes) {
    uint8_t* block = out.data() + i;
    switch (format) {
      case Format::Q4_1:
      case Format::Q5_1:
      case Format::Q4_K:
      case Format::Q5_K: put_half(block + 2); [[fallthrough]];
      case Format::Q4_0:
      case Format::Q5_0:
      case Format::Q8_0: put_half(block); break;
      case Format::Q2_K: put_half(block + 80), put_half(block + 82); break;
      case Format::Q3_K: put_half(block + 108); break;
      case Format::Q6_K: put_half(block + 208); break;
      default: break;
    }
  }
  return out;
}

inline std::vector<float> random_floats(int64_t n, uint64_t seed) {
  std::vector<float> out(static_cast<size_t>(n));
  Random random(seed);
  for (float& v : out) v = random.uniform() * (random.next() % 32 == 0 ? 8.0f : 1.0f);
  return out;
}

}  // namespace gemmary
