// What one instruction set offers the step program beside its linear kernels. Only plain data here: this header is also compiled into
// the instruction sets' units, which must not share inline functions with the rest.
//
// Arrays are float32. Rows are dense unless a stride is given. An output may be the very array of an input, never part of one.
// Every sum over a row keeps 16 partial sums by index mod 16 and folds them in simd.h's fixed order, whatever else is computed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemmary {

// Elements of an int8 key with one scale. Gemma's keys have channels that dwarf the rest: with one scale for the whole key the starter's
// mean KL is ten times as large. Values need no groups.
constexpr int64_t kKeyGroup = 32;

enum class KvType : uint8_t { float32, bfloat16, int8 };

// Where one key head's keys and values of one sequence live. Position p is in block (p / 16) mod blocks. Memory is 32-bit words of E
// elements, E = 1, 2 or 4 by the type, so that widening is a shift or a mask; sixteen words side by side fill a vector.
struct KvHead {
  int32_t* keys;        // [blocks][key_words][16]: word i of lane j is elements E i … of the block's key j; past head_dim they are 0
  int32_t* values;      // [blocks][width / 16][16 / E][16]: word i of lane j in column c is element 16 c + j of values E i …
  float* key_scales;    // int8 only: [blocks][ceil(head_dim / kKeyGroup)][16], what a code of a group of the key is multiplied with
  float* value_scales;  // int8 only: [blocks][16], of the whole value
  int64_t blocks;       // a ring; the whole capacity where the layer is not windowed
  int head_dim;
  int key_words;        // ceil(head_dim / E)
  int width;            // head_dim rounded up to 16
  KvType type;          // bfloat16 and int8 are rounded to nearest even
};

// Attention goes through the keys in spans of this many absolute positions. A span gives a query a partial result: the outputs, not yet
// divided by the sum of their weights [width], the largest score (-inf: the query sees nothing of the span), and that sum.
constexpr int64_t kAttentionSpan = 256;
constexpr int64_t kPartialExtra = 16;  // floats after the outputs

// Some rows (consecutive tokens of one sequence) of some query heads that share a key head, and spans that they attend to.
struct AttentionTask {
  KvHead kv;
  const float* q;          // head h of row t at q + t * stride + h * head_dim; `out` likewise
  float* out;
  int64_t stride;
  const int32_t* visible;  // [rows][2]: first and last key position
  int rows;
  int heads;
  float scale;
  float softcap;           // 0: none
  int64_t begin, end;      // spans; all that any row sees where `partials` is null
  float* partials;         // null: write `out`. Else what span `begin` gives to the first query; then the next span's
  int64_t partial_stride;  // floats from one query's to the next one's; queries are [rows][heads]
  float* scratch;          // attention_scratch_floats(rows * heads, kv.width)
};

constexpr int64_t attention_scratch_floats(int64_t queries, int64_t width) {
  return queries * (kAttentionSpan + 3 * width + 4 * kPartialExtra);  // queries, scores, two partial results, sixteen floats more of each
}

struct StepKernels {
  // y = x / sqrt(mean(x²) + eps) * gain for each row; gain is 1 + weight.
  void (*rms_norm)(const float* x, const float* gain, float* y, int64_t rows, int width, float eps);
  // y = (x - mean(x)) / sqrt(variance(x) + eps) * gain + shift for each row.
  void (*layer_norm)(const float* x, const float* gain, const float* shift, float* y, int64_t rows, int width, float eps);
  // Rotates the pairs (i, i + head_dim/2) of every head of every row; angles: [rows][head_dim], cosines then sines.
  void (*rope)(const float* x, const float* angles, float* y, int64_t rows, int heads, int head_dim);
  void (*gelu)(const float* x, float* y, int64_t n);
  void (*geglu)(const float* gate, const float* up, float* y, int64_t n);
  void (*add)(const float* a, const float* b, float* y, int64_t n);
  // y[row * ldy + i] += bias[i] for i < n.
  void (*add_bias)(float* y, size_t ldy, const float* bias, int64_t rows, int64_t n);
  void (*softcap)(const float* x, float* y, int64_t n, float cap);
  void (*mean_rows)(const float* x, float* y, int64_t rows, int width);
  void (*l2_normalize)(const float* x, float* y, int64_t rows, int width);
  // Writes `rows` keys and values (consecutive positions from `start`) of one head; both have `stride` floats a row.
  void (*store_kv)(const KvHead& kv, const float* k, const float* v, int64_t stride, int64_t start, int64_t rows);
  void (*attend)(const AttentionTask& task);
  // One query's output from its partial results of `spans` spans in order; the first of them is overwritten.
  void (*merge_spans)(float* partials, int64_t spans, int head_dim, float* out);
};

}  // namespace gemmary
