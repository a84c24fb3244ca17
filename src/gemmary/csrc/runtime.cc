#include "runtime.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gemmary {

void Workspace::Free::operator()(std::byte* p) const { std::free(p); }

std::byte* Workspace::reserve(size_t bytes) {
  if (bytes <= bytes_) return memory_.get();
  constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kLine;
  const size_t size = (bytes + bytes / 4 + alignment - 1) / alignment * alignment;
  memory_.reset();
  bytes_ = 0;
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, size)));
  if (!memory_) throw std::bad_alloc();
  bytes_ = size;
#if defined(__linux__)
  if (alignment == kHugePage) madvise(memory_.get(), size, MADV_HUGEPAGE);  // a wish: refusal changes nothing
#endif
  return memory_.get();
}

}  // namespace gemmary
