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

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kArenaBlock = 16 * kHugePage;

size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

std::shared_ptr<uint8_t> allocate_aligned(size_t alignment, size_t bytes) {
  const size_t rounded = round_up(std::max<size_t>(bytes, 1), alignment);
  uint8_t* memory = static_cast<uint8_t*>(std::aligned_alloc(alignment, rounded));
  if (memory == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);  // advice: it does not matter here whether it is taken
#endif
  return std::shared_ptr<uint8_t>(memory, [](uint8_t* p) { std::free(p); });
}

}  // namespace

std::shared_ptr<uint8_t> WeightArena::allocate(size_t bytes) {
  bytes = round_up(bytes, 64);
  if (bytes >= kArenaBlock / 2) return allocate_aligned(kHugePage, bytes);
  if (block_ == nullptr || used_ + bytes > kArenaBlock) {
    block_ = allocate_aligned(kHugePage, kArenaBlock);
    used_ = 0;
  }
  used_ += bytes;
  return std::shared_ptr<uint8_t>(block_, block_.get() + used_ - bytes);
}

PackedWeight::PackedWeight(Format format, int64_t rows, int64_t cols)
    : storage_(allocate_aligned(64, packed_bytes(format, rows, cols))), view_(packed_view(format, rows, cols, storage_.get())) {}

PackedWeight::PackedWeight(Format format, int64_t rows, int64_t cols, WeightArena& arena)
    : storage_(arena.allocate(packed_bytes(format, rows, cols))), view_(packed_view(format, rows, cols, storage_.get())) {}

PackedWeight::PackedWeight(Format format, int64_t rows, int64_t cols, std::shared_ptr<const void> owner, const void* storage)
    : owner_(std::move(owner)), view_(packed_view(format, rows, cols, storage)) {}

size_t PackedWeight::bytes() const { return static_cast<size_t>(view_.panels) * view_.panel_bytes; }

}  // namespace gemmary
