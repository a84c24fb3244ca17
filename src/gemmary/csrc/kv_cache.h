// Keys and values of one sequence, for every layer.
//
// A layer keeps either the whole capacity or a ring of the latest positions (windowed layers). All of it is reserved at once but the
// system hands out pages only as positions are written, so a large capacity costs nothing until it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "step_kernels.h"

namespace gemmary {

class KvCache {
 public:
  // positions[l]: how many of the latest positions layer l keeps, rounded up to 16; at least `capacity` means all of them.
  // shared: all layers use the same memory, which serves encoders whose sequences lie wholly in one step.
  // Throws std::invalid_argument for impossible sizes and std::bad_alloc where memory is refused.
  KvCache(const std::vector<int64_t>& positions, int kv_heads, int head_dim, int64_t capacity, KvType type, bool shared);

  // What such a cache comes to hold when it is full, scales and padding among it.
  static double bytes_of(const std::vector<int64_t>& positions, int kv_heads, int head_dim, int64_t capacity, KvType type);

  KvHead head(int layer, int head) const;

  int layers() const { return static_cast<int>(layers_.size()); }
  int kv_heads() const { return kv_heads_; }
  int head_dim() const { return head_dim_; }
  int64_t capacity() const { return capacity_; }
  int64_t positions(int layer) const { return layers_[layer].blocks * 16; }
  size_t bytes() const { return bytes_; }

  int64_t length() const { return length_; }
  void set_length(int64_t length);
  // Forgets the tokens from `length` on, which must be at most the present one.
  void truncate(int64_t length) { length_ = length; }
  void reset();
  // The first position that a layer still holds: a ring has lost what was there before, by tokens that were truncated too.
  int64_t oldest(int layer) const { return layers_[layer].oldest; }
  // The same of all layers together.
  int64_t oldest() const;

  // Takes over the first `length` tokens of another cache, as far as its layers hold them, in place of all that was here.
  // Throws std::invalid_argument for more than there are or this one has room for, and for caches of different models.
  void copy(const KvCache& from, int64_t length);

 private:
  struct Layer {
    int64_t blocks;
    size_t offset;  // bytes to its keys; the values of all heads follow those, then the scales
    int64_t oldest = 0;
  };
  struct Free {
    void operator()(void* p) const;
  };

  std::vector<Layer> layers_;
  int kv_heads_;
  int head_dim_;
  int64_t capacity_;
  KvType type_;
  size_t bytes_ = 0;
  int64_t length_ = 0;
  std::unique_ptr<void, Free> memory_;
  char* base_ = nullptr;  // the first cache line boundary in memory_
};

}  // namespace gemmary
