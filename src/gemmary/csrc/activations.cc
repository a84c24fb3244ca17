#include "activations.h"

namespace gemmary {

size_t quantized_activations_bytes(int64_t rows, int64_t cols) { return static_cast<size_t>(rows * (cols / kGroup)) * sizeof(ActivationGroup); }

QuantizedActivations quantized_activations_at(void* buffer, int64_t, int64_t cols) {
  return {cols / kGroup, static_cast<ActivationGroup*>(buffer)};
}

}  // namespace gemmary
