#include "kv_cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace gemmary {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kMaxCapacity = int64_t{1} << 30;
constexpr double kMaxBytes = 1e15;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t blocks_of(int64_t positions, int64_t capacity) { return ceil_div(std::min(positions, capacity), 16); }

// Of one block of one head: sixteen positions.
struct BlockBytes {
  BlockBytes(int head_dim, KvType type)
      : key_words(static_cast<int>(ceil_div(head_dim, 4 / element(type)))), width(static_cast<int>(ceil_div(head_dim, 16) * 16)),
        keys(int64_t{64} * key_words), values(16 * width * element(type)),
        key_scales(type == KvType::int8 ? 64 * ceil_div(head_dim, kKeyGroup) : 0), value_scales(type == KvType::int8 ? 64 : 0) {}

  int64_t all() const { return keys + values + key_scales + value_scales; }

  int key_words, width;
  int64_t keys, values, key_scales, value_scales;

 private:
  static int64_t element(KvType type) { return type == KvType::float32 ? 4 : type == KvType::bfloat16 ? 2 : 1; }
};

}  // namespace

void KvCache::Free::operator()(void* p) const { std::free(p); }

KvCache::KvCache(const std::vector<int64_t>& positions, int kv_heads, int head_dim, int64_t capacity, KvType type, bool shared)
    : kv_heads_(kv_heads), head_dim_(head_dim), capacity_(capacity), type_(type) {
  if (kv_heads < 1 || kv_heads > 4096 || head_dim < 1 || head_dim > 65536 || positions.size() > 65536)
    throw std::invalid_argument("a cache needs 1 to 4096 key heads of 1 to 65536 elements, in at most 65536 layers");
  if (capacity < 1 || capacity > kMaxCapacity) throw std::invalid_argument("a cache holds between 1 and 2^30 tokens");
  for (int64_t kept : positions)
    if (kept < 1) throw std::invalid_argument("a layer's cache keeps at least one position");
  if (bytes_of(positions, kv_heads, head_dim, capacity, type) > kMaxBytes) throw std::bad_alloc();
  const BlockBytes block(head_dim, type);
  for (int64_t kept : positions) {
    const int64_t blocks = blocks_of(kept, capacity);
    const size_t bytes = static_cast<size_t>(blocks * block.all() * kv_heads);  // whole cache lines
    layers_.push_back({blocks, shared ? 0 : bytes_});
    bytes_ = shared ? std::max(bytes_, bytes) : bytes_ + bytes;
  }
  memory_.reset(std::calloc(bytes_ + kLine, 1));
  if (!memory_) throw std::bad_alloc();
  base_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory_.get()) + kLine - 1) / kLine * kLine);
}

double KvCache::bytes_of(const std::vector<int64_t>& positions, int kv_heads, int head_dim, int64_t capacity, KvType type) {
  double blocks = 0;
  for (int64_t kept : positions) blocks += static_cast<double>(blocks_of(kept, capacity));
  return blocks * static_cast<double>(BlockBytes(head_dim, type).all()) * kv_heads;
}

void KvCache::set_length(int64_t length) {
  length_ = length;
  for (Layer& layer : layers_) layer.oldest = std::max(layer.oldest, length - layer.blocks * 16);
}

void KvCache::reset() {
  length_ = 0;
  for (Layer& layer : layers_) layer.oldest = 0;
}

int64_t KvCache::oldest() const {
  int64_t found = 0;
  for (const Layer& layer : layers_) found = std::max(found, layer.oldest);
  return found;
}

void KvCache::copy(const KvCache& from, int64_t length) {
  if (from.layers() != layers() || from.kv_heads_ != kv_heads_ || from.head_dim_ != head_dim_ || from.type_ != type_)
    throw std::invalid_argument("a cache was made for another model");
  if (length < 0 || length > from.length_ || length > capacity_)
    throw std::invalid_argument("a cache takes over no more tokens than the other holds and it has room for");
  const BlockBytes block(head_dim_, type_);
  const int64_t end = ceil_div(length, 16);
  for (int l = 0; l < layers(); l++) {
    const int64_t here = layers_[l].blocks, there = from.layers_[l].blocks;
    const int64_t begin = std::max<int64_t>(0, end - std::min(here, there));
    for (int h = 0; h < kv_heads_; h++) {
      const KvHead target = head(l, h), source = from.head(l, h);
      const auto take = [&](auto* to, const auto* by, int64_t bytes) {
        for (int64_t b = begin; b < end && bytes > 0; b++)
          std::memcpy(reinterpret_cast<char*>(to) + b % here * bytes, reinterpret_cast<const char*>(by) + b % there * bytes, bytes);
      };
      take(target.keys, source.keys, block.keys);
      take(target.values, source.values, block.values);
      take(target.key_scales, source.key_scales, block.key_scales);
      take(target.value_scales, source.value_scales, block.value_scales);
    }
    layers_[l].oldest = std::max(begin * 16, from.layers_[l].oldest);
  }
  length_ = length;
}

KvHead KvCache::head(int layer, int head) const {
  const Layer& at = layers_[layer];
  const BlockBytes block(head_dim_, type_);
  char* next = base_ + at.offset;
  // This head's part of an array of all heads.
  const auto part = [&](int64_t bytes) {
    char* const found = next + at.blocks * bytes * head;
    next += at.blocks * bytes * kv_heads_;
    return found;
  };
  KvHead result{};
  result.keys = reinterpret_cast<int32_t*>(part(block.keys));
  result.values = reinterpret_cast<int32_t*>(part(block.values));
  result.key_scales = reinterpret_cast<float*>(part(block.key_scales));
  result.value_scales = reinterpret_cast<float*>(part(block.value_scales));
  result.blocks = at.blocks;
  result.head_dim = head_dim_;
  result.key_words = block.key_words;
  result.width = block.width;
  result.type = type_;
  return result;
}

}  // namespace gemmary
