// What one instruction set can do at most, measured by loops that do nothing else: reading memory, and the multiply-adds that the matrix
// product is made of, on operands in the nearest cache and in the product's own register tiles. Only plain data here (see step_kernels.h).
//
// A loop returns a sum that follows from its operands, so a test can tell that it did the work that its time is taken for.
#pragma once

#include <cstdint>

namespace gemmary {

// Every operand is read from here; all ones for the sums that are stated below.
constexpr int64_t kProbeOperandBytes = 128 * 1024;

struct Probe {
  // The sum, mod 2^32, of `count` integers; count is a multiple of 256.
  int32_t (*read)(const int32_t* data, int64_t count);
  // Integer multiply-adds of 4-bit codes and int8 activations, summed in 32 bits; all lanes' sums, mod 2^32. Of ones: their number.
  int32_t (*dot)(const void* operands, int64_t rounds);
  // Fused float32 multiply-adds; all lanes' sums. Of ones: their number, exactly while it is below 2^24.
  float (*fma)(const void* operands, int64_t rounds);
  // Multiply-adds of one round.
  int64_t dot_round, fma_round;
};

}  // namespace gemmary
