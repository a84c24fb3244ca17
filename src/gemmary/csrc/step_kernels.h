// What one instruction set offers the step program beside its linear kernels. Only plain data here: this header is also compiled into
// the instruction sets' units, which must not share inline functions with the rest.
//
// Arrays are float32. Rows are dense unless a stride is given. An output may be the very array of an input, never part of one.
// Every sum over a row keeps 16 partial sums by index mod 16 and folds them in simd.h's fixed order, whatever else is computed.
#pragma once

#include <cstdint>

namespace gemmary {

// Where one key head's keys and values of one sequence live. Position p is in block (p / 16) mod blocks.
struct KvHead {
  void* keys;      // [blocks][head_dim][16]: the sixteen positions of a block side by side
  void* values;    // [blocks][16][value_stride]
  int64_t blocks;  // a ring; the whole capacity where the layer is not windowed
  int head_dim;
  int value_stride;  // head_dim rounded up to 16
  bool bf16;         // elements are bfloat16, rounded to nearest even; else float32
};

// Some rows (consecutive tokens of one sequence) of some query heads that share a key head.
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
  float* scratch;          // attention_scratch() floats
};

struct StepKernels {
  // y = x / sqrt(mean(x²) + eps) * gain for each row; gain is 1 + weight.
  void (*rms_norm)(const float* x, const float* gain, float* y, int64_t rows, int width, float eps);
  // Rotates the pairs (i, i + head_dim/2) of every head of every row; angles: [rows][head_dim], cosines then sines.
  void (*rope)(const float* x, const float* angles, float* y, int64_t rows, int heads, int head_dim);
  void (*geglu)(const float* gate, const float* up, float* y, int64_t n);
  void (*add)(const float* a, const float* b, float* y, int64_t n);
  void (*softcap)(const float* x, float* y, int64_t n, float cap);
  void (*mean_rows)(const float* x, float* y, int64_t rows, int width);
  void (*l2_normalize)(const float* x, float* y, int64_t rows, int width);
  // Writes `rows` keys and values (consecutive positions from `start`) of one head; both have `stride` floats a row.
  void (*store_kv)(const KvHead& kv, const float* k, const float* v, int64_t stride, int64_t start, int64_t rows);
  void (*attend)(const AttentionTask& task);
};

}  // namespace gemmary
