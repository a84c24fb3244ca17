// Which instruction set runs: chosen at run time from what the processor and the system support, or named by the caller.
#pragma once

#include <optional>
#include <string_view>

#include "adapter.h"
#include "dequantize.h"
#include "head.h"
#include "linear.h"
#include "probe.h"
#include "step_kernels.h"

namespace gemmary {

enum class Isa : uint8_t { Scalar, Avx2, Avx512, Neon };

struct Kernels {
  Isa isa;
  const char* name;
  QuantizeActivationsFunction* quantize_activations;
  LinearFunction* linear;
  AdaptFunction* adapt;
  const StepKernels* step;
  const HeadKernels* head;
  const Probe* probe;
  DequantizeFunction* dequantize;
};

const char* isa_name(Isa isa);                         // "scalar", "avx2", "avx512", "neon"
std::optional<Isa> parse_isa(std::string_view name);
bool isa_available(Isa isa);                           // built in, and this machine can run it
Isa best_isa();
const Kernels& kernels_for(Isa isa);                   // std::invalid_argument if it is not available

// Each is defined in its own translation unit, isa_<name>.cc; a build leaves out those its architecture cannot have.
extern const Kernels kScalarKernels, kAvx2Kernels, kAvx512Kernels, kNeonKernels;

}  // namespace gemmary
