#include "activations.h"

namespace gemmary {
namespace {

// Where the three arrays lie in one buffer, and its size.
struct Layout {
  size_t outliers, ends, bytes;
};
size_t align_up(size_t n) { return (n + 63) / 64 * 64; }
int64_t groups_of(int64_t cols) { return (cols + kGroup - 1) / kGroup; }
int64_t spans_of(int64_t groups) { return (groups + kSpanGroups - 1) / kSpanGroups; }
Layout layout(int64_t rows, int64_t groups) {
  Layout at{};
  at.outliers = align_up(static_cast<size_t>(rows * groups) * sizeof(ActivationGroup));
  at.ends = at.outliers + align_up(static_cast<size_t>(rows * groups) * sizeof(Outlier));
  at.bytes = at.ends + align_up(static_cast<size_t>(rows * spans_of(groups)) * sizeof(int32_t));
  return at;
}

}  // namespace

size_t quantized_activations_bytes(int64_t rows, int64_t cols) { return layout(rows, groups_of(cols)).bytes; }

QuantizedActivations quantized_activations_at(void* buffer, int64_t rows, int64_t cols) {
  const int64_t groups = groups_of(cols);
  const Layout at = layout(rows, groups);
  auto* bytes = static_cast<char*>(buffer);
  return {cols, groups, spans_of(groups), reinterpret_cast<ActivationGroup*>(bytes), reinterpret_cast<Outlier*>(bytes + at.outliers),
          reinterpret_cast<int32_t*>(bytes + at.ends)};
}

}  // namespace gemmary
