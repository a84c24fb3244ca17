#include "kernels.h"

#include <stdexcept>
#include <string>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace gemmary {
namespace {

struct Row {
  Isa isa;
  const Kernels* kernels;
  bool (*supported)();
};

bool always() { return true; }

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the system saves the wide registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
// For tests: GEMMARY_EMULATE_AVX512 runs those kernels without the instructions, GEMMARY_WITHOUT_AVX512 leaves them out.
#if defined(GEMMARY_EMULATE_AVX512)
bool has_avx512() { return has_avx2(); }
#elif !defined(GEMMARY_WITHOUT_AVX512)
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
#endif
#elif defined(__aarch64__)
#if defined(__linux__)
bool has_neon_dot() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#else
bool has_neon_dot() { return true; }  // every 64-bit Arm processor that macOS runs on has the dot product
#endif
#endif

// Best first.
const Row kRows[] = {
#if defined(__x86_64__)
#if !defined(GEMMARY_WITHOUT_AVX512)
    {Isa::Avx512, &kAvx512Kernels, has_avx512},
#endif
    {Isa::Avx2, &kAvx2Kernels, has_avx2},
#elif defined(__aarch64__)
    {Isa::Neon, &kNeonKernels, has_neon_dot},
#endif
    {Isa::Scalar, &kScalarKernels, always},
};

const Row* find(Isa isa) {
  for (const Row& row : kRows)
    if (row.isa == isa && row.supported()) return &row;
  return nullptr;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::Scalar: return "scalar";
    case Isa::Avx2: return "avx2";
    case Isa::Avx512: return "avx512";
    case Isa::Neon: return "neon";
  }
  return "unknown";
}

std::optional<Isa> parse_isa(std::string_view name) {
  for (Isa isa : {Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon})
    if (name == isa_name(isa)) return isa;
  return std::nullopt;
}

bool isa_available(Isa isa) { return find(isa) != nullptr; }

Isa best_isa() {
  for (const Row& row : kRows)
    if (row.supported()) return row.isa;
  return Isa::Scalar;
}

const Kernels& kernels_for(Isa isa) {
  if (const Row* row = find(isa)) return *row->kernels;
  throw std::invalid_argument(std::string("this machine cannot run the ") + isa_name(isa) + " kernels");
}

}  // namespace gemmary
