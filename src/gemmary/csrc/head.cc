#include "head.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace gemmary {
namespace {

constexpr size_t kHighGroupBytes = 256;  // of a panel
constexpr size_t kScaleBytes = 32;

// Beyond these a sum could overflow float32, or lose its relative precision to underflow.
constexpr double kLargest = 1e28, kSmallest = 1e-20;

// With u = 2^-24: a group's terms, in the exact kernel and in the bound, are at most 400 d a (codes are at most 128, constants 130), each
// is rounded at most 8 times before it joins a sum, and a sum of n terms is rounded n times: groups and outliers, at most 2 * groups, in
// the kernel, groups in the first pass, and at most 8 * groups in the second look. 16 * groups + 64 roundings are more than all of them.
double slack(int64_t groups) { return static_cast<double>(16 * groups + 64) * 0x1p-24 * 400; }

// The value as a float that is not below it.
float up(double value) { return std::nextafterf(static_cast<float>(value), INFINITY); }

}  // namespace

bool HeadPlan::prepare(const QuantizedActivations& row) {
  const ActivationGroup* x = row.data;
  const int64_t groups = row.groups;
  const Outlier *next = row.outliers, *const end = next + row.ends[row.spans - 1];
  groups_.clear();
  order_.clear();
  double total = 0;
  for (int64_t g = 0; g < groups; g++) {
    const bool apart = next < end && next->input / kGroup == g;
    const double scale = x[g].scale, outlier = apart ? next->value : 0;
    const int place = apart ? next++->input % kGroup : 0;
    double group_sum = 0, group_size = 0;
    for (int v = 0; v < 8; v++) {
      int sum = 0, size = 0;
      for (int i = 0; i < 4; i++) {
        sum += x[g].codes[4 * v + i];
        size += std::abs(x[g].codes[4 * v + i]);
      }
      const double own = v == place / 4 ? outlier : 0, s = sum * scale + own, a = size * scale + std::abs(own);
      group_sum += s;
      group_size += a;
      order_.push_back({a, {static_cast<int32_t>(g), v, x[g].scale, static_cast<float>(own), up(-7.5 * (s + a)), place % 4}});
    }
    groups_.push_back({16 * x[g].scale, static_cast<float>(16 * outlier), up((7.5 - 128) * group_sum + (7.5 + slack(groups)) * group_size), place});
    total += group_size;
  }
  if (!(total >= kSmallest && total <= kLargest)) return false;
  const size_t kept = order_.size() / 2;  // after that the exact kernel costs no more
  const auto larger = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : std::pair(a.second.group, a.second.vector) < std::pair(b.second.group, b.second.vector);
  };
  std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(kept), order_.end(), larger);
  inputs_.clear();
  for (size_t n = 0; n < kept; n++) inputs_.push_back(order_[n].second);
  return true;
}

HighHalves::HighHalves(const PackedView& head) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const int64_t groups = head.cols / kGroup;
  view_ = {groups, (static_cast<size_t>(groups) * (kHighGroupBytes + kScaleBytes) + 63) / 64 * 64, nullptr};
  bytes_ = std::max<size_t>(64, view_.panel_bytes * static_cast<size_t>(head.panels));
  const size_t alignment = bytes_ >= 2 * kHugePage ? kHugePage : 64;
  storage_.reset(static_cast<uint8_t*>(std::aligned_alloc(alignment, (bytes_ + alignment - 1) / alignment * alignment)));
  if (storage_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (alignment == kHugePage) madvise(storage_.get(), bytes_, MADV_HUGEPAGE);
#endif
  view_.data = storage_.get();
}

void HighHalves::Free::operator()(uint8_t* p) const { std::free(p); }

bool HighHalves::copy(const PackedView& head, int64_t p0, int64_t p1) {
  const size_t codes = static_cast<size_t>(view_.groups) * kHighGroupBytes, scales = static_cast<size_t>(view_.groups) * kScaleBytes;
  bool good = true;
  for (int64_t p = p0; p < p1; p++) {
    const uint8_t* from = head.data + static_cast<size_t>(p) * head.panel_bytes;
    uint8_t* to = storage_.get() + static_cast<size_t>(p) * view_.panel_bytes;
    for (int64_t g = 0; g < view_.groups; g++) {
      const uint8_t *first = from + 512 * g, *second = first + 256;  // vectors 0 to 3, and 4 to 7
      for (size_t b = 0; b < kHighGroupBytes; b++)
        to[kHighGroupBytes * g + b] = static_cast<uint8_t>((first[b] ^ 0x80) >> 4 | ((second[b] ^ 0x80) & 0xf0));
    }
    std::memcpy(to + codes, from + head.scale_offset, scales);
    for (size_t at = 0; at < scales; at += 2) {
      uint16_t d;
      std::memcpy(&d, to + codes + at, 2);
      good = good && d < 0x7c00;
    }
  }
  return good;
}

}  // namespace gemmary
