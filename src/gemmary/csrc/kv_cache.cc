#include "kv_cache.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace gemmary {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kMaxCapacity = int64_t{1} << 30;
constexpr double kMaxBytes = 1e15;

int64_t blocks_of(int64_t positions) { return (positions + 15) / 16; }

}  // namespace

void KvCache::Free::operator()(void* p) const { std::free(p); }

KvCache::KvCache(const std::vector<int64_t>& positions, int kv_heads, int head_dim, int64_t capacity, bool bf16, bool shared)
    : kv_heads_(kv_heads), head_dim_(head_dim), value_stride_(0), capacity_(capacity), bf16_(bf16) {
  if (kv_heads < 1 || kv_heads > 4096 || head_dim < 1 || head_dim > 65536 || positions.size() > 65536)
    throw std::invalid_argument("a cache needs 1 to 4096 key heads of 1 to 65536 elements, in at most 65536 layers");
  if (capacity < 1 || capacity > kMaxCapacity) throw std::invalid_argument("a cache holds between 1 and 2^30 tokens");
  value_stride_ = (head_dim + 15) / 16 * 16;
  const int64_t block_bytes = int64_t{16} * (head_dim + value_stride_) * (bf16 ? 2 : 4);
  double total = 0;
  for (int64_t kept : positions) {
    if (kept < 1) throw std::invalid_argument("a layer's cache keeps at least one position");
    const int64_t blocks = blocks_of(std::min(kept, capacity));
    const double size = static_cast<double>(blocks) * block_bytes * kv_heads;
    total = shared ? std::max(total, size) : total + size;
    if (total > kMaxBytes) throw std::bad_alloc();
    layers_.push_back({blocks, shared ? 0 : bytes_});
    const size_t bytes = static_cast<size_t>(blocks * block_bytes * kv_heads + kLine - 1) / kLine * kLine;
    bytes_ = shared ? std::max(bytes_, bytes) : bytes_ + bytes;
  }
  memory_.reset(std::calloc(bytes_ + kLine, 1));
  if (!memory_) throw std::bad_alloc();
  base_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory_.get()) + kLine - 1) / kLine * kLine);
}

KvHead KvCache::head(int layer, int head) const {
  const Layer& at = layers_[layer];
  const int64_t element = bf16_ ? 2 : 4;
  char* const keys = base_ + at.offset;
  char* const values = keys + at.blocks * 16 * head_dim_ * kv_heads_ * element;
  return {keys + at.blocks * 16 * head_dim_ * head * element,
          values + at.blocks * 16 * value_stride_ * head * element,
          at.blocks,
          head_dim_,
          value_stride_,
          bf16_};
}

}  // namespace gemmary
