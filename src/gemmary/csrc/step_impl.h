// The elementwise and row-wise kernels of a step, for the instruction set of the unit that includes this after simd.h.
#pragma once

#include "simd.h"
#include "step_kernels.h"

namespace gemmary::GEMMARY_ISA {

// Calls body(offset, lanes) for each sixteen of n elements; the last call may have fewer lanes.
template <typename Body>
GEMMARY_INLINE void each_vector(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, static_cast<int>(n - i));
}

GEMMARY_INLINE F32x16 load_up_to(const float* p, int lanes) { return lanes == kLanes ? load(p) : load_n(p, lanes); }
GEMMARY_INLINE void store_up_to(float* p, F32x16 v, int lanes) {
  if (lanes == kLanes) store(p, v);
  else store_n(p, v, lanes);
}

GEMMARY_INLINE float sum_of_squares(const float* x, int width) {
  F32x16 sum = zero();
  each_vector(width, [&](int64_t i, int lanes) {
    const F32x16 v = load_up_to(x + i, lanes);
    sum = fma(v, v, sum);
  });
  return reduce_add(sum);
}

static void rms_norm(const float* x, const float* gain, float* y, int64_t rows, int width, float eps) {
  for (int64_t row = 0; row < rows; row++, x += width, y += width) {
    const float mean_square = sum_of_squares(x, width) / static_cast<float>(width);
    const F32x16 inverse = broadcast(1.0f / __builtin_sqrtf(mean_square + eps));
    each_vector(width, [&](int64_t i, int lanes) {
      store_up_to(y + i, load_up_to(x + i, lanes) * inverse * load_up_to(gain + i, lanes), lanes);
    });
  }
}

static void layer_norm(const float* x, const float* gain, const float* shift, float* y, int64_t rows, int width, float eps) {
  for (int64_t row = 0; row < rows; row++, x += width, y += width) {
    F32x16 sum = zero();
    each_vector(width, [&](int64_t i, int lanes) { sum = sum + load_up_to(x + i, lanes); });
    const F32x16 mean = broadcast(reduce_add(sum) / static_cast<float>(width));
    each_vector(width, [&](int64_t i, int lanes) { store_up_to(y + i, load_up_to(x + i, lanes) - mean, lanes); });
    const float variance = sum_of_squares(y, width) / static_cast<float>(width);
    const F32x16 inverse = broadcast(1.0f / __builtin_sqrtf(variance + eps));
    each_vector(width, [&](int64_t i, int lanes) {
      store_up_to(y + i, fma(load_up_to(y + i, lanes) * inverse, load_up_to(gain + i, lanes), load_up_to(shift + i, lanes)), lanes);
    });
  }
}

static void rope(const float* x, const float* angles, float* y, int64_t rows, int heads, int head_dim) {
  const int half = head_dim / 2;
  for (int64_t row = 0; row < rows; row++, angles += head_dim) {
    for (int head = 0; head < heads; head++, x += head_dim, y += head_dim) {
      each_vector(half, [&](int64_t i, int lanes) {
        const F32x16 a = load_up_to(x + i, lanes), b = load_up_to(x + half + i, lanes);
        const F32x16 cosine = load_up_to(angles + i, lanes), sine = load_up_to(angles + half + i, lanes);
        store_up_to(y + i, fma(a, cosine, neg(b * sine)), lanes);
        store_up_to(y + half + i, fma(b, cosine, a * sine), lanes);
      });
    }
  }
}

GEMMARY_INLINE F32x16 gelu(F32x16 x) {
  const F32x16 cubic = broadcast(0.044715f), root = broadcast(0.7978845608f), half_x = broadcast(0.5f) * x;  // root: sqrt(2 / pi)
  return fma(half_x, tanh(root * fma(cubic * x * x, x, x)), half_x);
}

static void gelu(const float* x, float* y, int64_t n) {
  each_vector(n, [&](int64_t i, int lanes) { store_up_to(y + i, gelu(load_up_to(x + i, lanes)), lanes); });
}

static void geglu(const float* gate, const float* up, float* y, int64_t n) {
  each_vector(n, [&](int64_t i, int lanes) { store_up_to(y + i, gelu(load_up_to(gate + i, lanes)) * load_up_to(up + i, lanes), lanes); });
}

static void add(const float* a, const float* b, float* y, int64_t n) {
  each_vector(n, [&](int64_t i, int lanes) { store_up_to(y + i, load_up_to(a + i, lanes) + load_up_to(b + i, lanes), lanes); });
}

static void add_bias(float* y, size_t ldy, const float* bias, int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; row++, y += ldy) add(y, bias, y, n);
}

static void softcap(const float* x, float* y, int64_t n, float cap) {
  const F32x16 c = broadcast(cap);
  each_vector(n, [&](int64_t i, int lanes) { store_up_to(y + i, c * tanh(load_up_to(x + i, lanes) / c), lanes); });
}

static void mean_rows(const float* x, float* y, int64_t rows, int width) {
  const F32x16 count = broadcast(static_cast<float>(rows));
  each_vector(width, [&](int64_t i, int lanes) {
    F32x16 sum = zero();
    for (int64_t row = 0; row < rows; row++) sum = sum + load_up_to(x + row * width + i, lanes);
    store_up_to(y + i, sum / count, lanes);
  });
}

static void l2_normalize(const float* x, float* y, int64_t rows, int width) {
  for (int64_t row = 0; row < rows; row++, x += width, y += width) {
    const float length = __builtin_sqrtf(sum_of_squares(x, width));
    const F32x16 divisor = broadcast(length > 1e-12f ? length : 1e-12f);
    each_vector(width, [&](int64_t i, int lanes) { store_up_to(y + i, load_up_to(x + i, lanes) / divisor, lanes); });
  }
}

}  // namespace gemmary::GEMMARY_ISA
