// What a low-rank adapter adds to a product (adapter.h): the tiles of the float product, begun at what is there already.
#pragma once

#include "linear_float_impl.h"

namespace gemmary::GEMMARY_ISA {

static void adapt(const PackedView& b, const float* gain, const float* h, size_t ldh, int64_t t0, int64_t t1, int64_t p0, int64_t p1, float* y,
                  size_t ldy) {
  constexpr int kRows = Tiles::kFloatRows, kSide = Tiles::kVectorPanels;
  const auto tile = [&]<int MR, int NV>(int64_t t, int64_t p) {
    const int64_t left = b.rows - (p + NV - 1) * kLanes;
    const Output o{y + static_cast<size_t>(t) * ldy + p * kLanes, ldy, static_cast<int>(left < kLanes ? left : kLanes)};
    float_tile<Format::F32, MR, NV>(b.data + static_cast<size_t>(p) * b.panel_bytes, b.panel_bytes, h + static_cast<size_t>(t) * ldh, ldh, b.cols, false, o);
  };
  int64_t t = t0;
  // b stays in the cache while a few rows of y are passed through.
  for (; t + kRows <= t1; t += kRows)
    for (int64_t p = p0; p < p1; p++) tile.template operator()<kRows, 1>(t, p);
  for (; t < t1; t++) {
    int64_t p = p0;
    for (; p + kSide <= p1; p += kSide) tile.template operator()<1, kSide>(t, p);
    for (; p < p1; p++) tile.template operator()<1, 1>(t, p);
  }
  if (!gain) return;
  const int64_t end = p1 * kLanes < b.rows ? p1 * kLanes : b.rows;
  for (int64_t t = t0; t < t1; t++)
    for (int64_t n = p0 * kLanes; n < end; n++) y[static_cast<size_t>(t) * ldy + n] *= gain[n];
}

}  // namespace gemmary::GEMMARY_ISA
