#include "packed.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace gemmary {

size_t packed_bytes(Format format, int64_t rows, int64_t cols) {
  const FormatInfo& info = format_info(format);
  source_row_bytes(format, cols);  // refuses partial blocks
  if (rows < 0) throw std::invalid_argument("a weight cannot have " + std::to_string(rows) + " rows");
  const int64_t groups = info.quantized ? cols / kGroup : cols;
  const size_t panel = static_cast<size_t>(groups) * info.group_bytes + static_cast<size_t>(cols / info.block) * info.scale_bytes;
  return static_cast<size_t>((rows + kPanelRows - 1) / kPanelRows) * ((panel + 63) / 64 * 64);
}

PackedView packed_view(Format format, int64_t rows, int64_t cols, const void* storage) {
  if (reinterpret_cast<uintptr_t>(storage) % 64 != 0) throw std::invalid_argument("packed weights must be 64-byte aligned");
  const FormatInfo& info = format_info(format);
  const size_t panel_bytes = packed_bytes(format, kPanelRows, cols);
  packed_bytes(format, rows, cols);
  const int64_t groups = info.quantized ? cols / kGroup : cols;
  return {format, rows, cols, (rows + kPanelRows - 1) / kPanelRows, panel_bytes, static_cast<size_t>(groups) * info.group_bytes,
          static_cast<const uint8_t*>(storage)};
}

PackedWeight::PackedWeight(Format format, int64_t rows, int64_t cols) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = std::max<size_t>(packed_bytes(format, rows, cols), 64);
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
  storage_ = static_cast<uint8_t*>(std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment));
  if (storage_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (alignment == kHugePage) madvise(storage_, bytes, MADV_HUGEPAGE);  // advice: it does not matter here whether it is taken
#endif
  view_ = packed_view(format, rows, cols, storage_);
}

PackedWeight::PackedWeight(PackedWeight&& other) noexcept
    : high(std::move(other.high)), view_(std::exchange(other.view_, {})), storage_(std::exchange(other.storage_, nullptr)) {}

PackedWeight& PackedWeight::operator=(PackedWeight&& other) noexcept {
  std::swap(view_, other.view_);
  std::swap(storage_, other.storage_);
  std::swap(high, other.high);
  return *this;
}

PackedWeight::~PackedWeight() { std::free(storage_); }

size_t PackedWeight::bytes() const { return static_cast<size_t>(view_.panels) * view_.panel_bytes; }

}  // namespace gemmary
