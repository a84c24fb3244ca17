// Packed rows as row-major floats, at the speed of memory: what is multiplied with where activations stay as they are (training).
#pragma once

#include "packed.h"

namespace gemmary {

// The values of rows [row, row + n), each ld elements after the one before it, bit for bit those of unpack_rows (packed.h): float32, or
// bfloat16 rounded from it to nearest even.
using DequantizeFunction = void(const PackedView& weight, int64_t row, int64_t n, void* out, size_t ld, bool bfloat16);

}  // namespace gemmary
