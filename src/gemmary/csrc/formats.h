// The weight formats: float types and the GGUF block types, whose layouts are ggml's public ones (gguf's `quants.py` states them in numpy).
// Headers shared by all instruction sets hold declarations and plain data only: see simd.h for why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace gemmary {

enum class Format : uint8_t { F32, BF16, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K };
constexpr int kFormats = 13;

// Inputs in one quantization group: activations have one scale for 32 inputs, as has every weight format (K-quants at least that often).
constexpr int kGroup = 32;
// Output rows interleaved in one packed panel: the lanes of a vector.
constexpr int kPanelRows = 16;

struct FormatInfo {
  const char* name;     // GGUF's name: "Q4_K"
  int block;            // weights in a source block: 1, 32 or 256; a row must be a whole number of them
  int block_bytes;      // bytes of a source block
  int group_bytes;      // packed codes: bytes for 32 inputs (quantized) or 1 input (float) of a panel's 16 rows
  int scale_bytes;      // packed scales: bytes for one block of a panel's 16 rows; 0 for float formats
  bool quantized;       // multiplied by int8 activations; float formats by float32 ones
};

const FormatInfo& format_info(Format format);
std::optional<Format> parse_format(std::string_view name);  // "Q4_K", as GGUF writes it

// Bytes of a row of `cols` weights in the source layout. Throws std::invalid_argument if cols is not a whole number of blocks.
size_t source_row_bytes(Format format, int64_t cols);

float f16_to_f32(uint16_t half);    // exact
uint16_t f32_to_f16(float value);   // to nearest even; overflows to infinity

// Float weights [rows, cols] to source blocks, bit for bit as ggml's reference quantizers. Formats: F32, BF16, F16, Q8_0, Q4_0;
// others, and cols that are not whole blocks, throw std::invalid_argument. blocks holds rows * source_row_bytes(format, cols).
void quantize_rows_to(Format format, const float* weights, int64_t rows, int64_t cols, uint8_t* blocks);

}  // namespace gemmary
