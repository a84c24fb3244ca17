// What the programs of one engine share: threads, kernels, and working memory that grows to the largest step seen and stays.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>

#include "kernels.h"
#include "pool.h"

namespace gemmary {

// 64-byte aligned memory without contents.
class Workspace {
 public:
  // At least `bytes`; what it held is lost when it grows. Throws std::bad_alloc.
  std::byte* reserve(size_t bytes);
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t bytes_ = 0;
};

struct Runtime {
  Runtime(int threads, Isa isa) : pool(threads), kernels(kernels_for(isa)) {}

  Pool pool;
  const Kernels& kernels;
  std::mutex busy;  // held by whoever uses the pool or the memory below
  Workspace buffers, quantized, projected, scratch;
  WeightArena weights;
};

}  // namespace gemmary
