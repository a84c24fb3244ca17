#include "activations.h"

namespace gemmary {
namespace {

size_t padded(int64_t bytes) { return (static_cast<size_t>(bytes) + 63) / 64 * 64; }

}  // namespace

size_t quantized_activations_bytes(int64_t rows, int64_t cols) {
  const int64_t groups = rows * (cols / kGroup);
  return padded(rows * cols) + 3 * padded(groups * 4) + padded(groups);
}

QuantizedActivations quantized_activations_at(void* buffer, int64_t rows, int64_t cols) {
  auto* codes = static_cast<int8_t*>(buffer);
  const size_t words = padded(rows * (cols / kGroup) * 4);
  int8_t* scales = codes + padded(rows * cols);
  int8_t* sums = scales + words;
  int8_t* outliers = sums + words;
  return {cols,
          codes,
          reinterpret_cast<float*>(scales),
          reinterpret_cast<int32_t*>(sums),
          reinterpret_cast<float*>(outliers),
          reinterpret_cast<uint8_t*>(outliers + words)};
}

}  // namespace gemmary
