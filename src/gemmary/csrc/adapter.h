// Low-rank adapters on a matrix product: several at once, each for rows of its own. A row of an adapter has, with y0 as linear.h says,
//   h[k] = scale * (sum over i of a[k, i] * x[i])             a chain of fused multiply-adds over i, then a product
//   y[n] = (y0[n] + sum over k of b[n, k] * h[k]) * gain[n]   one chain over k that begins at y0; then, where there is a gain, a product
// so its bits do not depend on what else is in the step, and a row without an adapter keeps those of y0. A bias is added after that.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "activations.h"
#include "packed.h"

namespace gemmary {

struct Kernels;

struct Lora {
  std::shared_ptr<const PackedWeight> a, b;  // [rank, inputs], [outputs, rank], F32
  float scale;
  std::vector<float> gain;                   // [outputs] of DoRA, else empty
};

// For each weight of a product what each adapter of the model adds to it; null where it adds nothing.
using Loras = std::vector<std::vector<std::shared_ptr<const Lora>>>;

// y[t * ldy + n] for t in [t0, t1) and the rows n of panels [p0, p1) of b, from h[t * ldh + k]; t and n are absolute. gain may be null.
using AdaptFunction = void(const PackedView& b, const float* gain, const float* h, size_t ldh, int64_t t0, int64_t t1, int64_t p0, int64_t p1,
                           float* y, size_t ldy);

// Elements of h that a row needs at most.
int64_t projected_width(const Loras& loras);

// The adapters' part of a step, product after product.
class AdapterStep {
 public:
  // Which rows have which adapter: adapters[s] of sequence s, 0 for none (null: none at all), sequences as in StepInputs.
  void begin(const int32_t* adapters, const int32_t* sequences, int64_t count);
  bool idle() const { return runs_.empty(); }

  // The next product. h is room for projected_width(loras) elements of each row of the step; a task takes at most rows_each rows.
  void plan(const Loras& loras, float* h, int64_t rows_each);
  int64_t tasks() const { return static_cast<int64_t>(tasks_.size()); }
  void project(int64_t task, const Activations& x, const Kernels& kernels, void* scratch) const;
  // Once all tasks are done and these rows and panels of y, the product with weight number `weight`, are y0.
  void add(size_t weight, const Kernels& kernels, int64_t t0, int64_t t1, int64_t p0, int64_t p1, float* y, size_t ldy) const;

 private:
  struct Run {
    size_t adapter;
    int64_t begin, end;
  };
  struct Task {
    const Lora* lora;
    int64_t begin, end;
    float* h;
  };

  std::vector<Run> runs_;
  std::vector<Task> tasks_;
  const Loras* loras_ = nullptr;
  float* h_ = nullptr;
  int64_t width_ = 0;
};

}  // namespace gemmary
