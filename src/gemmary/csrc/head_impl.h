// Bounding the logits of one row, on the instruction set of the including unit; head.h says what is bounded.
#pragma once

#include "codec_impl.h"
#include "head.h"

namespace gemmary::GEMMARY_ISA {

using Halves = Dot<4>;  // high and low halves alike are 4-bit codes
static_assert(Halves::kOffset == 0 && Halves::kChunk == 8);
constexpr int kHeadPrefetch = 16384;  // how far ahead of the group in work
constexpr int kRefineSteps = 8;       // inputs read between two looks at the threshold

// Where panel p of the head has the codes of some inputs.
GEMMARY_INLINE const uint8_t* head_codes(const PackedView& head, int64_t p, const HeadInputs& inputs) {
  return head.data + static_cast<size_t>(p) * head.panel_bytes + 512 * inputs.group + 64 * inputs.vector;
}

// The bounds of a panel's rows after a look at the low halves of some inputs; d: the scales of the panel's groups.
GEMMARY_INLINE F32x16 refined(F32x16 bound, const uint8_t* codes, const uint8_t* d, const HeadRow& row, const HeadInputs& inputs) {
  const ActivationGroup& x = row.x[inputs.group];
  const Bytes64 low = Halves::prepare(shift_and<0>(load_bytes(codes), 15));
  F32x16 change = broadcast(inputs.constant);
  if (inputs.outlier != 0.0f) change = fma(to_f32(Halves::pick(low, static_cast<uint32_t>(inputs.place))), broadcast(inputs.outlier), change);
  change = fma(to_f32(Halves::total(Halves::first(low, broadcast_quad(x.codes + 4 * inputs.vector)))), broadcast(inputs.scale), change);
  return fma(change, load_f16(reinterpret_cast<const uint16_t*>(d + 32 * inputs.group)), bound);
}

template <int NV>
static GEMMARY_INLINE void bound_panels(const HighView& high, const HeadRow& row, int64_t p, float* upper, float* largest) {
  const uint8_t* panel = high.data + static_cast<size_t>(p) * high.panel_bytes;
  const size_t scales = static_cast<size_t>(high.groups) * 256;
  F32x16 acc[NV];
#pragma GCC unroll 4
  for (int n = 0; n < NV; n++) acc[n] = broadcast(1e-30f);  // more than underflow can take away
  for (int64_t g = 0; g < high.groups; g++) {
    const ActivationGroup& x = row.x[g];
    const HeadGroup& with = row.groups[g];
    Halves::Sum sum[NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++)
      for (int line = 0; line < 256; line += 64) __builtin_prefetch(panel + n * high.panel_bytes + 256 * g + kHeadPrefetch + line);
#pragma GCC unroll 8
    for (int step = 0; step < 8; step++) {
      const int v = step / 2 + step % 2 * 4;
      const Quad q = broadcast_quad(x.codes + 4 * v);
#pragma GCC unroll 4
      for (int n = 0; n < NV; n++) {
        const Bytes64 code = load_code<Format::Q4_0>(panel + n * high.panel_bytes + 256 * g, v);
        sum[n] = step == 0 ? Halves::first(code, q) : Halves::add(sum[n], code, q);
      }
    }
    const F32x16 scale = broadcast(with.scale), constant = broadcast(with.constant);
#pragma GCC unroll 4
    for (int n = 0; n < NV; n++) {
      const uint8_t* at = panel + n * high.panel_bytes;
      const F32x16 d = load_f16(reinterpret_cast<const uint16_t*>(at + scales + 32 * g));
      F32x16 rest = constant;
      if (with.outlier != 0.0f) {
        const Bytes64 codes = load_any_code<Format::Q4_0>(at + 256 * g, with.place / 4);
        rest = fma(to_f32(Halves::pick(codes, static_cast<uint32_t>(with.place % 4))), broadcast(with.outlier), constant);
      }
      acc[n] = fma(fma(to_f32(Halves::total(sum[n])), scale, rest), d, acc[n]);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < NV; n++) {
    store(upper + (p + n) * kLanes, acc[n]);
    largest[p + n] = reduce_max(acc[n]);
  }
}

static void bound_head(const HighView& high, const HeadRow& row, int64_t p0, int64_t p1, float* upper, float* largest) {
  int64_t p = p0;
  for (; p + 2 <= p1; p += 2) bound_panels<2>(high, row, p, upper, largest);
  if (p < p1) bound_panels<1>(high, row, p, upper, largest);
}

static void fetch_head(const PackedView& head, const HeadRow& row, int64_t p) {
  for (int n = 0; n < 2 * kRefineSteps && n < row.count; n++) {
    __builtin_prefetch(head_codes(head, p, row.inputs[n]));
    __builtin_prefetch(head.data + static_cast<size_t>(p) * head.panel_bytes + head.scale_offset + 32 * row.inputs[n].group);
  }
}

static bool refine_head(const PackedView& head, const HeadRow& row, int64_t p, float threshold, const float* upper) {
  const uint8_t* d = head.data + static_cast<size_t>(p) * head.panel_bytes + head.scale_offset;
  F32x16 bound = load(upper + p * kLanes);
  for (int n = 0; n < row.count; n++) {
    if (n % kRefineSteps == 0) {
      if (reduce_max(bound) < threshold) return false;
      for (int i = n + 2 * kRefineSteps; i < n + 3 * kRefineSteps && i < row.count; i++)
        __builtin_prefetch(head_codes(head, p, row.inputs[i]));
    }
    bound = refined(bound, head_codes(head, p, row.inputs[n]), d, row, row.inputs[n]);
  }
  return !(reduce_max(bound) < threshold);
}

static constexpr HeadKernels kHeadKernels{bound_head, fetch_head, refine_head};

}  // namespace gemmary::GEMMARY_ISA
