// The loops of probe.h on the instruction set of the including unit, which has defined `Tiles`.
#pragma once

#include "probe.h"
#include "simd.h"

namespace gemmary::GEMMARY_ISA {

// Each round takes the next of these operands: what does not change, the compiler would compute once for all rounds.
constexpr int64_t kProbeTurns = 4;
constexpr int kProbeInputs = 32;

// Four streams side by side: more lines are under way than one stream's prefetcher asks for.
static int32_t probe_read(const int32_t* data, int64_t count) {
  const int64_t stream = count / 4;
  I32x16 sum[4] = {broadcast_i32(0), broadcast_i32(0), broadcast_i32(0), broadcast_i32(0)};
  for (int64_t at = 0; at < stream; at += 4 * kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < 4; s++)
#pragma GCC unroll 4
      for (int n = 0; n < 4; n++) sum[n] = sum[n] + load_i32(data + s * stream + at + n * kLanes);
  }
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Sums that are already of 32 bits need no widening between rounds.
template <typename Sum> constexpr bool kProbeWide = false;
template <> constexpr bool kProbeWide<I32x16> = true;

static int32_t probe_dot(const void* operands, int64_t rounds) {
  using D = Dot<4>;
  constexpr int kRows = Tiles::kIntRows, kPanels = Tiles::kIntPanels, kVectors = kProbeInputs / 4;
  static_assert(kVectors <= D::kChunk);
  constexpr int64_t kCodes = 64 * kVectors * kPanels, kTurn = kCodes + kProbeInputs * kRows;
  static_assert(kProbeTurns * kTurn <= kProbeOperandBytes);
  typename D::Sum sum[kRows][kPanels] = {};
  I32x16 total = broadcast_i32(0);
  for (int64_t round = 0; round < rounds; round++) {
    const auto* codes = static_cast<const uint8_t*>(operands) + round % kProbeTurns * kTurn;
    const auto* x = reinterpret_cast<const int8_t*>(codes + kCodes);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) {
      Bytes64 w[kPanels];
#pragma GCC unroll 4
      for (int n = 0; n < kPanels; n++) w[n] = load_bytes(codes + 64 * (kPanels * v + n));
#pragma GCC unroll 16
      for (int i = 0; i < kRows; i++) {
        const Quad q = broadcast_quad(x + kProbeInputs * i + 4 * v);
#pragma GCC unroll 4
        for (int n = 0; n < kPanels; n++) sum[i][n] = v == 0 && !kProbeWide<typename D::Sum> ? D::first(w[n], q) : D::add(sum[i][n], w[n], q);
      }
    }
    if constexpr (!kProbeWide<typename D::Sum>) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; i++)
#pragma GCC unroll 4
        for (int n = 0; n < kPanels; n++) total = total + D::total(sum[i][n]);
    }
  }
  if constexpr (kProbeWide<typename D::Sum>)
    for (int i = 0; i < kRows; i++)
      for (int n = 0; n < kPanels; n++) total = total + D::total(sum[i][n]);
  return reduce_add(total);
}

static float probe_fma(const void* operands, int64_t rounds) {
  constexpr int kRows = Tiles::kFloatRows, kPanels = Tiles::kFloatPanels;
  constexpr int64_t kWeights = kLanes * kProbeInputs * kPanels, kTurn = kWeights + kProbeInputs * kRows;
  static_assert(kProbeTurns * kTurn * int64_t{sizeof(float)} <= kProbeOperandBytes);
  F32x16 sum[kRows][kPanels];
  for (int i = 0; i < kRows; i++)
    for (int n = 0; n < kPanels; n++) sum[i][n] = zero();
  for (int64_t round = 0; round < rounds; round++) {
    const float* weights = static_cast<const float*>(operands) + round % kProbeTurns * kTurn;
    const float* x = weights + kWeights;
#pragma GCC unroll 4
    for (int k = 0; k < kProbeInputs; k++) {
      F32x16 w[kPanels];
#pragma GCC unroll 4
      for (int n = 0; n < kPanels; n++) w[n] = load(weights + kLanes * (kPanels * k + n));
#pragma GCC unroll 16
      for (int i = 0; i < kRows; i++) {
        const F32x16 value = broadcast(x[kProbeInputs * i + k]);
#pragma GCC unroll 4
        for (int n = 0; n < kPanels; n++) sum[i][n] = fma(w[n], value, sum[i][n]);
      }
    }
  }
  F32x16 total = zero();
  for (int i = 0; i < kRows; i++)
    for (int n = 0; n < kPanels; n++) total = total + sum[i][n];
  return reduce_add(total);
}

static const Probe kProbe = {probe_read, probe_dot, probe_fma, int64_t{kProbeInputs} * kLanes * Tiles::kIntRows * Tiles::kIntPanels,
                             int64_t{kProbeInputs} * kLanes * Tiles::kFloatRows * Tiles::kFloatPanels};

}  // namespace gemmary::GEMMARY_ISA
