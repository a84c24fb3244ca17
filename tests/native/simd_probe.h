#pragma once

#include <cstdint>

constexpr int kProbes = 15;
constexpr const char* kProbeNames[kProbes] = {"exp", "tanh",   "round",  "sqrt",       "to_i32",
                                              "max", "min",    "select", "reduce_add", "reduce_max",
                                              "fma", "load_n", "bf16",   "f16",        "integers"};

// Applies operation `op` to n (a multiple of 16) floats.
void probe_scalar(int op, const float* in, float* out, int64_t n);
void probe_avx2(int op, const float* in, float* out, int64_t n);
void probe_avx512(int op, const float* in, float* out, int64_t n);
void probe_neon(int op, const float* in, float* out, int64_t n);
