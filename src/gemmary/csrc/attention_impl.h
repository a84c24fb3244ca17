// Attention over a sequence's cache, for the instruction set of the unit that includes this after simd.h.
//
// The sixteen keys of a block are the lanes of a score vector, so a score is one chain of fused multiply-adds over head_dim and no sum
// crosses lanes; an output is one chain over key positions. Softmax sums run by absolute position mod 16. Blocks are counted from
// position 0 and a masked key adds exactly zero, so what a row gives does not depend on the rows and chunks around it.
#pragma once

#include "simd.h"
#include "step_impl.h"
#include "step_kernels.h"

namespace gemmary::GEMMARY_ISA {

#if defined(GEMMARY_ISA_AVX512) || defined(GEMMARY_ISA_NEON)
constexpr int kQueryTile = 12;  // of 32 registers
#else
constexpr int kQueryTile = 6;  // 12 accumulators of 8 lanes, a vector of keys and a broadcast fit 16 registers
#endif
constexpr int kRun = 4;  // blocks whose keys or values are passed over at once

GEMMARY_INLINE F32x16 load_element(const float* p) { return load(p); }
GEMMARY_INLINE F32x16 load_element(const uint16_t* p) { return load_bf16(p); }

// Sixteen-wide columns of keys or values: element i of column c is the vector at data + i * row + c * column.
template <typename Element>
struct Columns {
  const Element* data;
  int64_t row, column;
};

// sums[j][16 c …] += over i < n: a[j][i] * b(i, c), one chain in the order of i, for kRows rows j and kColumns columns c.
template <int kRows, int kColumns, typename Element>
GEMMARY_INLINE void accumulate(const float* a, int64_t a_stride, const Columns<Element>& b, int64_t n, float* sums, int64_t stride) {
  F32x16 sum[kRows][kColumns];
#pragma GCC unroll 16
  for (int j = 0; j < kRows; j++)
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; c++) sum[j][c] = load(sums + j * stride + c * kLanes);
  for (int64_t i = 0; i < n; i++) {
    F32x16 v[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; c++) v[c] = load_element(b.data + i * b.row + c * b.column);
#pragma GCC unroll 16
    for (int j = 0; j < kRows; j++) {
      const F32x16 x = broadcast(a[j * a_stride + i]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; c++) sum[j][c] = fma(x, v[c], sum[j][c]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kRows; j++)
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; c++) store(sums + j * stride + c * kLanes, sum[j][c]);
}

// As many columns side by side as keep enough independent chains going for these few rows.
template <int kRows, int kColumns, typename Element>
GEMMARY_INLINE void accumulate_columns(const float* a, int64_t a_stride, Columns<Element> b, int64_t columns, int64_t n, float* sums,
                                       int64_t stride) {
  for (; columns >= kColumns; columns -= kColumns, b.data += kColumns * b.column, sums += kColumns * kLanes)
    accumulate<kRows, kColumns>(a, a_stride, b, n, sums, stride);
  for (; columns > 0; columns--, b.data += b.column, sums += kLanes) accumulate<kRows, 1>(a, a_stride, b, n, sums, stride);
}

template <typename Element>
static void accumulate_all(int rows, const float* a, int64_t a_stride, const Columns<Element>& b, int64_t columns, int64_t n, float* sums,
                           int64_t stride) {
  for (; rows >= kQueryTile; rows -= kQueryTile, a += kQueryTile * a_stride, sums += kQueryTile * stride)
    accumulate_columns<kQueryTile, 1>(a, a_stride, b, columns, n, sums, stride);
  for (; rows >= 4; rows -= 4, a += 4 * a_stride, sums += 4 * stride) accumulate_columns<4, 1>(a, a_stride, b, columns, n, sums, stride);
  for (; rows >= 2; rows -= 2, a += 2 * a_stride, sums += 2 * stride) accumulate_columns<2, 2>(a, a_stride, b, columns, n, sums, stride);
  if (rows) accumulate_columns<1, 4>(a, a_stride, b, columns, n, sums, stride);
}

// The same for bfloat16, widened once where several tiles of rows will read it. widened: n vectors.
static void accumulate_bf16(int rows, const float* a, int64_t a_stride, Columns<uint16_t> b, int64_t columns, int64_t n, float* widened,
                            float* sums, int64_t stride) {
  if (rows <= kQueryTile) return accumulate_all(rows, a, a_stride, b, columns, n, sums, stride);
  for (; columns > 0; columns--, b.data += b.column, sums += kLanes) {
    for (int64_t i = 0; i < n; i++) store(widened + i * kLanes, load_bf16(b.data + i * b.row));
    accumulate_all(rows, a, a_stride, Columns<float>{widened, kLanes, 0}, 1, n, sums, stride);
  }
}

static void multiply(int rows, const float* a, int64_t a_stride, const void* b, bool bf16, int64_t offset, int64_t row, int64_t column,
                     int64_t columns, int64_t n, float* widened, float* sums, int64_t stride) {
  if (bf16) accumulate_bf16(rows, a, a_stride, {static_cast<const uint16_t*>(b) + offset, row, column}, columns, n, widened, sums, stride);
  else accumulate_all(rows, a, a_stride, Columns<float>{static_cast<const float*>(b) + offset, row, column}, columns, n, sums, stride);
}

// How many blocks from `block` to `end` lie one after another in the ring, at most kRun.
GEMMARY_INLINE int64_t run_of(int64_t block, int64_t end, int64_t slot, int64_t blocks) {
  int64_t run = end - block < kRun ? end - block : kRun;
  return run < blocks - slot ? run : blocks - slot;
}

// Turns one query's scores into weights that are not yet divided by their sum, which it returns. Blocks base … end - 1 are held.
static float softmax(float* scores, int64_t base, int64_t end, int32_t first, int32_t last, float scale, float cap) {
  const int64_t from = first / kLanes, to = last / kLanes;
  static const int32_t kIota[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32x16 scales = broadcast(scale), caps = broadcast(cap), masked = broadcast(-__builtin_inff());
  F32x16 largest = masked;
  for (int64_t block = from; block <= to; block++) {
    float* at = scores + (block - base) * kLanes;
    F32x16 score = load(at) * scales;
    if (cap != 0.0f) score = caps * tanh(score / caps);
    if (block == from || block == to) {
      const I32x16 position = load_i32(kIota) + broadcast_i32(static_cast<int32_t>(block * kLanes));
      score = select(less(position, broadcast_i32(first)), masked, score);
      score = select(less(broadcast_i32(last), position), masked, score);
    }
    store(at, score);
    largest = max(largest, score);
  }
  const F32x16 top = broadcast(reduce_max(largest));
  F32x16 sum = zero();
  for (int64_t block = base; block < end; block++) {
    float* at = scores + (block - base) * kLanes;
    const F32x16 weight = block < from || block > to ? zero() : exp(load(at) - top);
    store(at, weight);
    sum = sum + weight;
  }
  return reduce_add(sum);
}

static void attend(const AttentionTask& task) {
  const KvHead& kv = task.kv;
  const int queries = task.rows * task.heads, head_dim = kv.head_dim, width = kv.value_stride;
  int32_t lowest = task.visible[0], highest = task.visible[1];
  for (int row = 1; row < task.rows; row++) {
    if (task.visible[2 * row] < lowest) lowest = task.visible[2 * row];
    if (task.visible[2 * row + 1] > highest) highest = task.visible[2 * row + 1];
  }
  const int64_t base = lowest / kLanes, end = highest / kLanes + 1, span = (end - base) * kLanes;
  float* const q = task.scratch;
  float* const sums = q + static_cast<int64_t>(queries) * head_dim;
  float* const out = sums + queries;
  float* const scores = out + static_cast<int64_t>(queries) * width;
  float* const widened = scores + queries * span;

  for (int j = 0; j < queries; j++)
    __builtin_memcpy(q + static_cast<int64_t>(j) * head_dim, task.q + j / task.heads * task.stride + j % task.heads * head_dim,
                     static_cast<size_t>(head_dim) * sizeof(float));
  for (int64_t i = 0; i < queries * span; i++) scores[i] = 0.0f;
  for (int64_t i = 0; i < static_cast<int64_t>(queries) * width; i++) out[i] = 0.0f;

  for (int64_t block = base, run; block < end; block += run) {
    const int64_t slot = block % kv.blocks, keys = static_cast<int64_t>(head_dim) * kLanes;
    run = run_of(block, end, slot, kv.blocks);
    multiply(queries, q, head_dim, kv.keys, kv.bf16, slot * keys, kLanes, keys, run, head_dim, widened,
             scores + (block - base) * kLanes, span);
  }

  for (int j = 0; j < queries; j++) {
    const int32_t* seen = task.visible + 2 * (j / task.heads);
    sums[j] = softmax(scores + j * span, base, end, seen[0], seen[1], task.scale, task.softcap);
  }

  for (int64_t block = base, run; block < end; block += run) {
    const int64_t slot = block % kv.blocks;
    run = run_of(block, end, slot, kv.blocks);
    multiply(queries, scores + (block - base) * kLanes, span, kv.values, kv.bf16, slot * kLanes * width, width, kLanes, width / kLanes,
             run * kLanes, widened, out, width);
  }

  for (int j = 0; j < queries; j++) {
    const F32x16 sum = broadcast(sums[j]);
    float* to = task.out + j / task.heads * task.stride + j % task.heads * head_dim;
    each_vector(head_dim, [&](int64_t i, int lanes) { store_up_to(to + i, load(out + static_cast<int64_t>(j) * width + i) / sum, lanes); });
  }
}

static void store_kv(const KvHead& kv, const float* k, const float* v, int64_t stride, int64_t start, int64_t rows) {
  const int head_dim = kv.head_dim;
  for (int64_t row = 0; row < rows; row++, k += stride, v += stride) {
    const int64_t block = (start + row) / kLanes % kv.blocks, lane = (start + row) % kLanes;
    const int64_t key = block * head_dim * kLanes + lane, value = (block * kLanes + lane) * kv.value_stride;
    if (kv.bf16) {
      uint16_t* keys = static_cast<uint16_t*>(kv.keys) + key;
      uint16_t* values = static_cast<uint16_t*>(kv.values) + value;
      each_vector(head_dim, [&](int64_t i, int lanes) {
        uint16_t rounded[kLanes];
        store_bf16(rounded, load_up_to(k + i, lanes));
        for (int j = 0; j < lanes; j++) keys[(i + j) * kLanes] = rounded[j];
        store_bf16(values + i, load_up_to(v + i, lanes));
      });
    } else {
      float* keys = static_cast<float*>(kv.keys) + key;
      float* values = static_cast<float*>(kv.values) + value;
      each_vector(head_dim, [&](int64_t i, int lanes) {
        for (int j = 0; j < lanes; j++) keys[(i + j) * kLanes] = k[i + j];
        store(values + i, load_up_to(v + i, lanes));
      });
    }
  }
}

static const StepKernels kStepKernels = {rms_norm, rope, geglu, add, softcap, mean_rows, l2_normalize, store_kv, attend};

}  // namespace gemmary::GEMMARY_ISA
