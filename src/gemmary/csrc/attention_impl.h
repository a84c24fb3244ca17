// Attention over a sequence's cache, for the instruction set of the unit that includes this after simd.h.
//
// The sixteen keys of a block are the lanes of a score vector, so a score is one chain of fused multiply-adds over head_dim and no sum
// crosses lanes. Keys are taken in spans of absolute positions: within one, softmax sums run by position mod 16 and an output is one
// chain over the positions; spans are merged in ascending order. A masked key adds exactly zero and a span that a row does not see is
// not merged, so what a row gives does not depend on the rows, chunks and tasks around it.
#pragma once

#include "simd.h"
#include "step_impl.h"
#include "step_kernels.h"

namespace gemmary::GEMMARY_ISA {

// Register tiles: queries by columns of sixteen keys or elements. kChains: sums that must be going at once to hide a product's latency.
#if defined(GEMMARY_ISA_AVX512)
constexpr int kQueryTile = 12, kTileColumns = 2, kChains = 8;
#else
constexpr int kQueryTile = 6, kTileColumns = 1, kChains = 4;  // AVX2: 12 accumulators of 8 lanes, a vector of keys and a broadcast
#endif
constexpr int64_t kSpanBlocks = kAttentionSpan / kLanes;
constexpr int64_t kSkew = kLanes;     // floats between the queries' rows, whose lines would else fall on one another in the first cache
constexpr int64_t kScoreStride = kAttentionSpan + kSkew;
constexpr int64_t kPrefetch = 2048;  // bytes: keys and values that are read once come from memory

template <KvType kType> constexpr int kPerWord = kType == KvType::float32 ? 1 : kType == KvType::bfloat16 ? 2 : 4;

// Element kIndex of every word.
template <KvType kType, int kIndex>
GEMMARY_INLINE F32x16 widen(I32x16 words) {
  if constexpr (kType == KvType::float32) return from_bits(words);
  else if constexpr (kType == KvType::bfloat16 && kIndex == 0) return from_bits(shl<16>(words));
  else if constexpr (kType == KvType::bfloat16) return from_bits(words & broadcast_i32(static_cast<int32_t>(0xffff0000u)));
  else if constexpr (kIndex == 3) return to_f32(sar<24>(words));
  else return to_f32(sar<24>(shl<24 - 8 * kIndex>(words)));
}

// Columns of words: `run` pieces, `jump` words apart, of `n` vectors one after another (the last piece: `last`); the next column is
// `column` words on. scales: sixteen for each piece, the next column's `scale_column` on; only where pieces are groups with a scale.
struct Columns {
  const int32_t* data;
  int64_t n, last, run, jump, column;
  const float* scales;
  int64_t scale_column;
};

template <KvType kType, int kIndex, int kRows, int kColumns>
GEMMARY_INLINE void accumulate_element(const float* a, int64_t a_stride, const I32x16 (&words)[kColumns], F32x16 (&sum)[kRows][kColumns]) {
  if constexpr (kIndex < kPerWord<kType>) {
    F32x16 v[kColumns];
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; c++) v[c] = widen<kType, kIndex>(words[c]);
#pragma GCC unroll 16
    for (int j = 0; j < kRows; j++) {
      const F32x16 x = broadcast(a[j * a_stride + kIndex]);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; c++) sum[j][c] = fma(x, v[c], sum[j][c]);
    }
    accumulate_element<kType, kIndex + 1>(a, a_stride, words, sum);
  }
}

// sums[j][16 c …] += over i: a[j][i] * element i of column c, one chain in the order of i, for kRows rows j and kColumns columns c.
// kScaled: one chain for each piece, then sums += that * its scale.
template <KvType kType, bool kScaled, int kRows, int kColumns>
GEMMARY_INLINE void accumulate(const float* a, int64_t a_stride, const Columns& b, float* sums, int64_t stride) {
  F32x16 sum[kRows][kColumns];
#pragma GCC unroll 16
  for (int j = 0; j < kRows; j++)
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; c++) sum[j][c] = kScaled ? zero() : load(sums + j * stride + c * kLanes);
  const int32_t* piece = b.data;
  for (int64_t r = 0; r < b.run; r++, piece += b.jump) {
    const int32_t* at = piece;
    const int64_t n = r + 1 < b.run ? b.n : b.last;
    for (int64_t i = 0; i < n; i++, at += kLanes, a += kPerWord<kType>) {
      I32x16 words[kColumns];
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; c++) {
        words[c] = load_i32(at + c * b.column);
        if constexpr (kRows < kQueryTile) __builtin_prefetch(reinterpret_cast<const char*>(at + c * b.column) + kPrefetch);
      }
      accumulate_element<kType, 0>(a, a_stride, words, sum);
    }
    if constexpr (kScaled) {
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; c++) {
        const F32x16 scale = load(b.scales + r * kLanes + c * b.scale_column);
#pragma GCC unroll 16
        for (int j = 0; j < kRows; j++) {
          float* to = sums + j * stride + c * kLanes;
          store(to, fma(sum[j][c], scale, load(to)));
          sum[j][c] = zero();
        }
      }
    }
  }
  if constexpr (kScaled) return;
#pragma GCC unroll 16
  for (int j = 0; j < kRows; j++)
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; c++) store(sums + j * stride + c * kLanes, sum[j][c]);
}

// As many columns side by side as keep enough independent chains going for these few rows.
template <KvType kType, bool kScaled, int kRows, int kColumns>
GEMMARY_INLINE void accumulate_columns(const float* a, int64_t a_stride, Columns b, int64_t columns, float* sums, int64_t stride) {
  for (; columns >= kColumns; columns -= kColumns, b.data += kColumns * b.column, b.scales += kColumns * b.scale_column, sums += kColumns * kLanes)
    accumulate<kType, kScaled, kRows, kColumns>(a, a_stride, b, sums, stride);
  if constexpr (kColumns > 1)
    for (; columns > 0; columns--, b.data += b.column, b.scales += b.scale_column, sums += kLanes)
      accumulate<kType, kScaled, kRows, 1>(a, a_stride, b, sums, stride);
}

// Whole tiles of rows, all of them against some columns, which stay in the nearest cache meanwhile, before the next ones.
template <KvType kType, bool kScaled, int kColumns>
GEMMARY_INLINE void accumulate_tiles(int rows, const float* a, int64_t a_stride, Columns b, int64_t columns, float* sums, int64_t stride) {
  for (; columns >= kColumns; columns -= kColumns, b.data += kColumns * b.column, b.scales += kColumns * b.scale_column, sums += kColumns * kLanes)
    for (int j = 0; j < rows; j += kQueryTile)
      accumulate<kType, kScaled, kQueryTile, kColumns>(a + j * a_stride, a_stride, b, sums + j * stride, stride);
  if constexpr (kColumns > 1) accumulate_tiles<kType, kScaled, 1>(rows, a, a_stride, b, columns, sums, stride);
}

template <KvType kType, bool kScaled = false>
static void accumulate_all(int rows, const float* a, int64_t a_stride, const Columns& b, int64_t columns, float* sums, int64_t stride) {
  const int whole = rows / kQueryTile * kQueryTile;
  if (whole > 0) accumulate_tiles<kType, kScaled, kTileColumns>(whole, a, a_stride, b, columns, sums, stride);
  rows -= whole, a += whole * a_stride, sums += whole * stride;
  for (; rows >= 4; rows -= 4, a += 4 * a_stride, sums += 4 * stride)
    accumulate_columns<kType, kScaled, 4, kChains / 4>(a, a_stride, b, columns, sums, stride);
  for (; rows >= 2; rows -= 2, a += 2 * a_stride, sums += 2 * stride)
    accumulate_columns<kType, kScaled, 2, kChains / 2>(a, a_stride, b, columns, sums, stride);
  if (rows) accumulate_columns<kType, kScaled, 1, kChains>(a, a_stride, b, columns, sums, stride);
}

static void multiply(KvType type, int rows, const float* a, int64_t a_stride, const Columns& b, int64_t columns, float* sums, int64_t stride) {
  if (type == KvType::float32) accumulate_all<KvType::float32>(rows, a, a_stride, b, columns, sums, stride);
  else if (type == KvType::bfloat16) accumulate_all<KvType::bfloat16>(rows, a, a_stride, b, columns, sums, stride);
  else if (b.scale_column) accumulate_all<KvType::int8, true>(rows, a, a_stride, b, columns, sums, stride);
  else accumulate_all<KvType::int8>(rows, a, a_stride, b, columns, sums, stride);
}

// Consecutive blocks base … end - 1 of one span; rings may part them.
struct Blocks {
  int64_t base, end;
};

// Calls body(first block, its slot, number of blocks) for runs that lie one after another in the ring, at most `most` long.
template <typename Body>
GEMMARY_INLINE void each_run(const KvHead& kv, Blocks blocks, int64_t most, Body body) {
  for (int64_t block = blocks.base, run; block < blocks.end; block += run) {
    const int64_t slot = block % kv.blocks;
    run = blocks.end - block < most ? blocks.end - block : most;
    run = run < kv.blocks - slot ? run : kv.blocks - slot;
    body(block, slot, run);
  }
}

// Turns one query's scores of a span into weights for the values, e^(score - largest). Returns the largest score and the weights' sum;
// -inf and 0 where nothing from `first` to `last` is in the span.
struct Softmax {
  float largest, sum;
};
static Softmax softmax(const AttentionTask& task, float* scores, Blocks blocks, int32_t first, int32_t last) {
  const KvHead& kv = task.kv;
  const bool coded = kv.type == KvType::int8;
  const int64_t from = first / kLanes, to = last / kLanes;
  static const int32_t kIota[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32x16 scales = broadcast(task.scale), caps = broadcast(task.softcap), masked = broadcast(-__builtin_inff());
  F32x16 largest = masked;
  for (int64_t block = from > blocks.base ? from : blocks.base; block <= to && block < blocks.end; block++) {
    float* at = scores + (block - blocks.base) * kLanes;
    F32x16 score = load(at) * scales;
    if (task.softcap != 0.0f) score = caps * tanh(score / caps);
    if (block == from || block == to) {
      const I32x16 position = load_i32(kIota) + broadcast_i32(static_cast<int32_t>(block * kLanes));
      score = select(less(position, broadcast_i32(first)), masked, score);
      score = select(less(broadcast_i32(last), position), masked, score);
    }
    store(at, score);
    largest = max(largest, score);
  }
  const float top = reduce_max(largest);
  F32x16 sum = zero();
  for (int64_t block = blocks.base; block < blocks.end; block++) {
    float* at = scores + (block - blocks.base) * kLanes;
    F32x16 weight = block < from || block > to ? zero() : exp(load(at) - broadcast(top));
    sum = sum + weight;
    if (coded) weight = weight * load(kv.value_scales + block % kv.blocks * kLanes);
    store(at, weight);
  }
  return {top, reduce_add(sum)};
}

// What one span gives to each query: see kAttentionSpan. q: [queries][width + kSkew], zero past head_dim; scores: [queries][kScoreStride].
static void attend_span(const AttentionTask& task, const float* q, float* scores, int64_t span, float* partials, int64_t stride) {
  const KvHead& kv = task.kv;
  const int queries = task.rows * task.heads, width = kv.width, per_word = kv.type == KvType::float32 ? 1 : kv.type == KvType::bfloat16 ? 2 : 4;
  Blocks blocks = {(span + 1) * kSpanBlocks, 0};
  for (int row = 0; row < task.rows; row++) {
    const int64_t from = task.visible[2 * row] / kLanes, to = task.visible[2 * row + 1] / kLanes;
    if (from < blocks.base) blocks.base = from;
    if (to >= blocks.end) blocks.end = to + 1;
  }
  if (blocks.base < span * kSpanBlocks) blocks.base = span * kSpanBlocks;
  if (blocks.end > (span + 1) * kSpanBlocks) blocks.end = (span + 1) * kSpanBlocks;

  for (int j = 0; j < queries; j++) {
    for (int64_t i = 0; i < blocks.end - blocks.base; i++) store(scores + j * kScoreStride + i * kLanes, zero());
    for (int i = 0; i < width; i += kLanes) store(partials + j * stride + i, zero());
  }
  each_run(kv, blocks, kSpanBlocks, [&](int64_t block, int64_t slot, int64_t run) {
    const int64_t words = static_cast<int64_t>(kv.key_words) * kLanes;
    Columns keys = {kv.keys + slot * words, kv.key_words, kv.key_words, 1, 0, words, kv.key_scales, 0};
    if (kv.type == KvType::int8) {
      keys.n = kKeyGroup / per_word;
      keys.run = (kv.head_dim + kKeyGroup - 1) / kKeyGroup;
      keys.last = kv.key_words - (keys.run - 1) * keys.n;
      keys.jump = keys.n * kLanes;
      keys.scale_column = keys.run * kLanes;
      keys.scales += slot * keys.scale_column;
    }
    multiply(kv.type, queries, q, width + kSkew, keys, run, scores + (block - blocks.base) * kLanes, kScoreStride);
  });
  for (int j = 0; j < queries; j++) {
    const int32_t* seen = task.visible + 2 * (j / task.heads);
    const Softmax found = softmax(task, scores + j * kScoreStride, blocks, seen[0], seen[1]);
    partials[j * stride + width] = found.largest;
    partials[j * stride + width + 1] = found.sum;
  }
  // Few queries are done with a block sooner than memory brings the next: they read in the order of memory.
  each_run(kv, blocks, queries < kQueryTile ? 1 : kSpanBlocks, [&](int64_t block, int64_t slot, int64_t run) {
    const int64_t n = kLanes / per_word, column = n * kLanes, words = width / kLanes * column;
    multiply(kv.type, queries, scores + (block - blocks.base) * kLanes, kScoreStride,
             {kv.values + slot * words, n, n, run, words, column, kv.value_scales, 0}, width / kLanes, partials, stride);
  });
}

GEMMARY_INLINE float exp_of(float x) {
  float lanes[kLanes];
  store(lanes, exp(broadcast(x)));
  return lanes[0];
}

// Takes the next span's partial result of one query into that of the spans before it.
static void merge(float* total, const float* part, int width) {
  const float unseen = -__builtin_inff(), before = total[width], now = part[width];
  if (now == unseen) return;
  if (before == unseen) {
    __builtin_memcpy(total, part, static_cast<size_t>(width + 2) * sizeof(float));
    return;
  }
  const float largest = before > now ? before : now, keep = exp_of(before - largest), take = exp_of(now - largest);
  for (int i = 0; i < width; i += kLanes) store(total + i, fma(load(part + i), broadcast(take), load(total + i) * broadcast(keep)));
  total[width] = largest;
  total[width + 1] = __builtin_fmaf(part[width + 1], take, total[width + 1] * keep);
}

static void finish(const float* total, int width, int head_dim, float* out) {
  const F32x16 sum = broadcast(total[width + 1]);
  each_vector(head_dim, [&](int64_t i, int lanes) { store_up_to(out + i, load(total + i) / sum, lanes); });
}

static void merge_spans(float* partials, int64_t spans, int head_dim, float* out) {
  const int width = (head_dim + kLanes - 1) / kLanes * kLanes;
  for (int64_t span = 1; span < spans; span++) merge(partials, partials + span * (width + kPartialExtra), width);
  finish(partials, width, head_dim, out);
}

static void attend(const AttentionTask& task) {
  const int queries = task.rows * task.heads, head_dim = task.kv.head_dim, width = task.kv.width;
  const int64_t partial = width + kPartialExtra;
  float* const q = task.scratch;
  float* const scores = q + static_cast<int64_t>(queries) * (width + kSkew);
  float* const total = scores + queries * kScoreStride;
  float* const part = total + queries * partial;
  for (int j = 0; j < queries; j++) {
    const float* from = task.q + j / task.heads * task.stride + j % task.heads * head_dim;
    each_vector(head_dim, [&](int64_t i, int lanes) { store(q + static_cast<int64_t>(j) * (width + kSkew) + i, load_up_to(from + i, lanes)); });
  }
  if (task.partials != nullptr) {
    for (int64_t span = task.begin; span < task.end; span++)
      attend_span(task, q, scores, span, task.partials + (span - task.begin) * partial, task.partial_stride);
    return;
  }
  attend_span(task, q, scores, task.begin, total, partial);
  for (int64_t span = task.begin + 1; span < task.end; span++) {
    attend_span(task, q, scores, span, part, partial);
    for (int j = 0; j < queries; j++) merge(total + j * partial, part + j * partial, width);
  }
  for (int j = 0; j < queries; j++)
    finish(total + j * partial, width, head_dim, task.out + j / task.heads * task.stride + j % task.heads * head_dim);
}

// Sixteen numbers as elements of the cache; `inverse`: codes for one, int8 only.
GEMMARY_INLINE void encode(F32x16 x, F32x16, float* to) { store(to, x); }
GEMMARY_INLINE void encode(F32x16 x, F32x16, uint16_t* to) { store_bf16(to, x); }
GEMMARY_INLINE void encode(F32x16 x, F32x16 inverse, int8_t* to) { store_i8(to, to_i32(x * inverse)); }

// What the codes of these numbers are to be multiplied with: 127 stands for the largest. What is smaller than any real one is 0.
// Returns how many codes are one.
static float scale_for(const float* x, int64_t n, float* scale) {
  F32x16 largest = zero();
  each_vector(n, [&](int64_t i, int lanes) { largest = max(largest, abs(load_up_to(x + i, lanes))); });
  const float top = reduce_max(largest);
  *scale = top < 1e-30f ? 0.0f : top / 127.0f;
  return top < 1e-30f ? 0.0f : 1.0f / *scale;
}

template <typename Element>
static void store_rows(const KvHead& kv, const float* k, const float* v, int64_t stride, int64_t start, int64_t rows) {
  constexpr int kEach = 4 / sizeof(Element);
  for (int64_t row = 0; row < rows; row++, k += stride, v += stride) {
    const int64_t block = (start + row) / kLanes % kv.blocks, lane = (start + row) % kLanes;
    int32_t* key = kv.keys + block * kv.key_words * kLanes + lane;
    Element* value = reinterpret_cast<Element*>(kv.values) + block * kv.width * kLanes + lane / kEach * kLanes * kEach + lane % kEach;
    float inverse_k = 1.0f, inverse_v = 1.0f;
    if constexpr (sizeof(Element) == 1) inverse_v = scale_for(v, kv.head_dim, kv.value_scales + block * kLanes + lane);
    each_vector(kv.head_dim, [&](int64_t i, int lanes) {
      if constexpr (sizeof(Element) == 1) {
        const int64_t groups = (kv.head_dim + kKeyGroup - 1) / kKeyGroup, left = kv.head_dim - i;
        float* scale = kv.key_scales + (block * groups + i / kKeyGroup) * kLanes + lane;
        if (i % kKeyGroup == 0) inverse_k = scale_for(k + i, left < kKeyGroup ? left : kKeyGroup, scale);
      }
      Element sixteen[kLanes];
      encode(load_up_to(k + i, lanes), broadcast(inverse_k), sixteen);
      for (int j = 0; j < lanes; j += kEach) __builtin_memcpy(key + (i + j) / kEach * kLanes, sixteen + j, 4);
      encode(load_up_to(v + i, lanes), broadcast(inverse_v), sixteen);
      for (int j = 0; j < kLanes; j++) value[i * kLanes + j * kEach] = sixteen[j];
    });
  }
}

static void store_kv(const KvHead& kv, const float* k, const float* v, int64_t stride, int64_t start, int64_t rows) {
  if (kv.type == KvType::float32) store_rows<float>(kv, k, v, stride, start, rows);
  else if (kv.type == KvType::bfloat16) store_rows<uint16_t>(kv, k, v, stride, start, rows);
  else store_rows<int8_t>(kv, k, v, stride, start, rows);
}

static const StepKernels kStepKernels = {rms_norm, layer_norm, rope, gelu, geglu, add, add_bias, softcap, mean_rows, l2_normalize, store_kv, attend, merge_spans};

}  // namespace gemmary::GEMMARY_ISA
