// An exact top k of one row of logits that does not read every byte of the output head.
//
// The head is Q8_0: a code q = 16 h + l has a high half h in -8..7 and a low half l in 0..15. Copies of the high halves lie together
// (HighHalves), and a first pass over them alone bounds every logit from above: sum l x is at most 15 times the sum of x's positive
// inputs, whatever l is. Rows whose bound is below what k rows reach for certain cannot be among the k largest. The others are bounded
// more closely by the low halves of the inputs that matter most, and the panels that are left are computed by the ordinary kernel.
//
// With s and a the sums of a group's x and |x| (as quantized, outliers included) the bound of the first pass is
//   sum over groups of d (16 sum h x + 7.5 s + 7.5 a)      because l - 7.5 is in -7.5..7.5,
// and reading four inputs' l takes d (7.5 a + 7.5 s - sum l x) of those inputs away, which is never negative. All of it is computed in
// float32; head.cc adds to each group more than the roundings of the bound and of the exact kernel can amount to together.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "linear.h"

namespace gemmary {

// Copies of the high halves of a Q8_0 weight, panel after panel: for each group 4 vectors of nibbles (vector v in the low halves, v + 4
// in the high ones, as packed.h has them, 8 added), then for each group f16 d[16].
struct HighView {
  int64_t groups;
  size_t panel_bytes;
  const uint8_t* data;
};

// A group of the row's inputs for the first pass: a row's bound grows by d * (sum(code x) * scale + code[o] * outlier + constant). Without
// an outlier that is 0; o is its place in the group.
struct HeadGroup {
  float scale, outlier, constant;
  int32_t place;
};

// Four inputs of the row for a second look: a row's bound grows by d * (sum(l x) * scale + l[o] * outlier + constant), never above 0. o
// is one of the four.
struct HeadInputs {
  int32_t group, vector;
  float scale, outlier, constant;
  int32_t place;
};

struct HeadRow {
  const ActivationGroup* x;
  const HeadGroup* groups;
  const HeadInputs* inputs;  // those that matter most first
  int count;                 // of inputs
};

struct HeadKernels {
  // Upper bounds of the rows of panels [p0, p1): upper[16 p + r] and, for each panel, the largest of them.
  void (*bound)(const HighView& high, const HeadRow& row, int64_t p0, int64_t p1, float* upper, float* largest);
  // Asks memory for what refine reads of panel p.
  void (*fetch)(const PackedView& head, const HeadRow& row, int64_t p);
  // Whether a row of panel p may reach `threshold`: looks at the low halves of more and more inputs, as far as it needs.
  bool (*refine)(const PackedView& head, const HeadRow& row, int64_t p, float threshold, const float* upper);
};

// What one row needs, made anew for each row. Its memory stays.
class HeadPlan {
 public:
  // False where no finite bound can be promised: an input is not finite or too large, or all are (nearly) zero.
  bool prepare(const QuantizedActivations& row);
  HeadRow row(const ActivationGroup* x) const { return {x, groups_.data(), inputs_.data(), static_cast<int>(inputs_.size())}; }

 private:
  std::vector<HeadGroup> groups_;
  std::vector<HeadInputs> inputs_;
  std::vector<std::pair<double, HeadInputs>> order_;
};

class HighHalves {
 public:
  // Room for those of `head`. std::bad_alloc
  explicit HighHalves(const PackedView& head);
  // Copies panels [p0, p1); ranges may run in parallel. False if a scale is negative or not finite: the bounds do not hold then.
  bool copy(const PackedView& head, int64_t p0, int64_t p1);

  const HighView& view() const { return view_; }
  size_t bytes() const { return bytes_; }
  static bool possible(const PackedView& head) { return head.format == Format::Q8_0 && head.rows % 16 == 0; }

 private:
  struct Free {
    void operator()(uint8_t* p) const;
  };
  HighView view_{};
  size_t bytes_ = 0;
  std::unique_ptr<uint8_t, Free> storage_;
};

}  // namespace gemmary
