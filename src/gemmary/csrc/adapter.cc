#include "adapter.h"

#include <algorithm>

#include "kernels.h"

namespace gemmary {
namespace {

int64_t rank(const std::shared_ptr<const Lora>& lora) { return lora ? lora->b->view().cols : 0; }

// Where in a row of h the part of this weight begins: behind those of the weights before it.
int64_t offset(const Loras& loras, size_t weight, size_t adapter) {
  int64_t sum = 0;
  for (size_t n = 0; n < weight; n++) sum += rank(loras[n][adapter]);
  return sum;
}

}  // namespace

int64_t projected_width(const Loras& loras) {
  int64_t width = 0;
  for (size_t adapter = 0; !loras.empty() && adapter < loras[0].size(); adapter++) width = std::max(width, offset(loras, loras.size(), adapter));
  return width;
}

void AdapterStep::begin(const int32_t* adapters, const int32_t* sequences, int64_t count) {
  runs_.clear();
  for (int64_t s = 0; adapters && s < count; s++) {
    const int64_t begin = sequences[2 * s], end = sequences[2 * s + 1];
    if (adapters[s] == 0 || begin == end) continue;
    const size_t adapter = static_cast<size_t>(adapters[s] - 1);
    if (!runs_.empty() && runs_.back().adapter == adapter && runs_.back().end == begin) runs_.back().end = end;
    else runs_.push_back({adapter, begin, end});
  }
}

void AdapterStep::plan(const Loras& loras, float* h, int64_t rows_each) {
  tasks_.clear();
  loras_ = &loras;
  h_ = h;
  width_ = projected_width(loras);
  for (const Run& run : runs_)
    for (size_t n = 0; n < loras.size(); n++)
      for (int64_t row = run.begin; loras[n][run.adapter] && row < run.end; row += rows_each)
        tasks_.push_back({loras[n][run.adapter].get(), row, std::min(run.end, row + rows_each), h + offset(loras, n, run.adapter)});
}

void AdapterStep::project(int64_t task, const Activations& x, const Kernels& kernels, void* scratch) const {
  const auto [lora, begin, end, h] = tasks_[task];
  const PackedView& a = lora->a->view();
  kernels.linear(a, x, begin, end, 0, a.panels, h, static_cast<size_t>(width_), scratch);
  for (int64_t t = begin; t < end; t++)
    for (int64_t k = 0; k < a.rows; k++) h[t * width_ + k] *= lora->scale;
}

void AdapterStep::add(size_t weight, const Kernels& kernels, int64_t t0, int64_t t1, int64_t p0, int64_t p1, float* y, size_t ldy) const {
  if (loras_->empty()) return;
  for (const Run& run : runs_) {
    const Lora* lora = (*loras_)[weight][run.adapter].get();
    const int64_t begin = std::max(t0, run.begin), end = std::min(t1, run.end);
    if (!lora || begin >= end) continue;
    kernels.adapt(lora->b->view(), lora->gain.empty() ? nullptr : lora->gain.data(), h_ + offset(*loras_, weight, run.adapter),
                  static_cast<size_t>(width_), begin, end, p0, p1, y, ldy);
  }
}

}  // namespace gemmary
