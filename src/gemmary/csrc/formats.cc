#include "formats.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace gemmary {
namespace {

// Indexed by Format.
constexpr FormatInfo kInfo[kFormats] = {
    {"F32", 1, 4, 64, 0, false},         {"BF16", 1, 2, 32, 0, false},        {"F16", 1, 2, 32, 0, false},
    {"Q4_0", 32, 18, 256, 32, true},     {"Q4_1", 32, 20, 256, 64, true},     {"Q5_0", 32, 22, 320, 32, true},
    {"Q5_1", 32, 24, 320, 64, true},     {"Q8_0", 32, 34, 512, 32, true},     {"Q2_K", 256, 84, 128, 320, true},
    {"Q3_K", 256, 110, 192, 288, true},  {"Q4_K", 256, 144, 256, 256, true},  {"Q5_K", 256, 176, 320, 256, true},
    {"Q6_K", 256, 210, 384, 288, true},
};

uint16_t f32_to_bf16(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40);  // stay NaN
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

void store16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, 2); }

// ggml's Q8_0: scale = max|w| / 127, codes rounded half away from zero.
void quantize_q8_0(const float* w, uint8_t* block) {
  float largest = 0;
  for (int i = 0; i < 32; i++) largest = std::max(largest, std::fabs(w[i]));
  const float d = largest / 127, inverse = d != 0 ? 1 / d : 0;
  store16(block, f32_to_f16(d));
  for (int i = 0; i < 32; i++) block[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(std::round(w[i] * inverse)));
}

// ggml's Q4_0: the weight of largest magnitude (the first of equals) becomes code 0, that is -8.
void quantize_q4_0(const float* w, uint8_t* block) {
  float extreme = 0;
  for (int i = 0; i < 32; i++)
    if (std::fabs(w[i]) > std::fabs(extreme)) extreme = w[i];
  const float d = extreme / -8, inverse = d != 0 ? 1 / d : 0;
  store16(block, f32_to_f16(d));
  const auto code = [&](float v) { return std::min(15, static_cast<int>(v * inverse + 8.5f)); };
  for (int i = 0; i < 16; i++) block[2 + i] = static_cast<uint8_t>(code(w[i]) | code(w[i + 16]) << 4);
}

}  // namespace

const FormatInfo& format_info(Format format) { return kInfo[static_cast<int>(format)]; }

std::optional<Format> parse_format(std::string_view name) {
  for (int i = 0; i < kFormats; i++)
    if (name == kInfo[i].name) return static_cast<Format>(i);
  return std::nullopt;
}

size_t source_row_bytes(Format format, int64_t cols) {
  const FormatInfo& info = format_info(format);
  if (cols < 0 || cols % info.block != 0)
    throw std::invalid_argument(std::string(info.name) + " rows must be a multiple of " + std::to_string(info.block) + " weights, not " +
                                std::to_string(cols));
  return static_cast<size_t>(cols / info.block) * info.block_bytes;
}

float f16_to_f32(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 0) return std::copysign(static_cast<float>(mantissa) * 0x1p-24f, std::bit_cast<float>(sign));
  if (exponent < 31) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0u));
}

uint16_t f32_to_f16(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value), magnitude = u & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000);
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));  // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;                                                      // 65520 and up round to infinity
  if (magnitude < 0x38800000u)  // subnormal: adding 0.5 leaves the multiple of 2^-24, rounded to even, in the low bits
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u));
  return static_cast<uint16_t>(sign | (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13);
}

void quantize_rows_to(Format format, const float* weights, int64_t rows, int64_t cols, uint8_t* blocks) {
  const FormatInfo& info = format_info(format);
  const int64_t count = rows * static_cast<int64_t>(source_row_bytes(format, cols)) / info.block_bytes;
  for (int64_t i = 0; i < count; i++, weights += info.block, blocks += info.block_bytes) {
    switch (format) {
      case Format::F32: std::memcpy(blocks, weights, 4); break;
      case Format::BF16: store16(blocks, f32_to_bf16(*weights)); break;
      case Format::F16: store16(blocks, f32_to_f16(*weights)); break;
      case Format::Q8_0: quantize_q8_0(weights, blocks); break;
      case Format::Q4_0: quantize_q4_0(weights, blocks); break;
      default: throw std::invalid_argument(std::string("there is no quantizer to ") + info.name + "; use F32, BF16, F16, Q8_0 or Q4_0");
    }
  }
}

}  // namespace gemmary
