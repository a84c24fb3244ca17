// Speed of the native linear kernels: matrix-vector products in GB/s of packed weights beside a plain read of the same
// memory, and matrix products in GOP/s (2 for a multiply-add). Build: see benchmarks/native_kernels.sh.   Run:
// native_kernels [threads=2] [isa=best] [rows of x=512] [format=all] Each number is the best of several runs of all
// threads together; "core" is one thread by its own processor time, which other work on the machine disturbs less.
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../tests/native/native_cases.h"
#include "kernels.h"

using namespace gemmary;

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double processor_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// The best wall time of `repeats` runs of work(thread) on all threads, started together; core: the least processor time
// of one of them.
struct Best {
  double wall = 1e9, core = 1e9;
};
Best best_of(int repeats, int threads, const std::function<void(int)>& work) {
  Best best;
  for (int r = 0; r < repeats; r++) {
    std::atomic<int> ready{0};
    std::vector<double> cores(threads), ends(threads), starts(threads);
    const auto run = [&](int t) {
      ready++;
      while (ready < threads) {}
      starts[t] = seconds();
      const double before = processor_seconds();
      work(t);
      cores[t] = processor_seconds() - before;
      ends[t] = seconds();
    };
    std::vector<std::thread> pool;
    for (int t = 1; t < threads; t++) pool.emplace_back(run, t);
    run(0);
    for (auto& thread : pool) thread.join();
    best.wall = std::min(best.wall,
                         *std::max_element(ends.begin(), ends.end()) - *std::min_element(starts.begin(), starts.end()));
    best.core = std::min(best.core, *std::min_element(cores.begin(), cores.end()));
  }
  return best;
}

uint64_t sink;
void read_all(const uint8_t* from, size_t bytes) {
  uint64_t s[8] = {};
  for (size_t i = 0; i + 64 <= bytes; i += 64)
    for (int j = 0; j < 8; j++) {
      uint64_t v;
      std::memcpy(&v, from + i + 8 * j, 8);
      s[j] ^= v;
    }
  for (uint64_t v : s) sink ^= v;
}

struct Buffer {
  explicit Buffer(size_t bytes) : data(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {}
  ~Buffer() { std::free(data); }
  Buffer(Buffer&& other) noexcept : data(std::exchange(other.data, nullptr)) {}
  uint8_t* data;
};

void measure(Format format, const Kernels& kernels, int threads, int64_t m) {
  constexpr int64_t kK = 2304, kN = 9216;  // Gemma 2 2B's gate: packed, 12 to 85 MB
  const FormatInfo& info = format_info(format);
  const auto source = random_source(format, kN, kK, 1);
  const int copies =
      static_cast<int>(std::max<size_t>(1, (size_t{256} << 20) / packed_bytes(format, kN, kK)));  // beyond the caches
  std::vector<PackedWeight> weights;
  double pack_seconds = 1e9;
  for (int i = 0; i < copies; i++) {
    weights.emplace_back(format, kN, kK);
    std::memset(weights.back().data(), 0, weights.back().bytes());
    const double t0 = seconds();
    pack(weights.back(), source.data(), 0, kN / 16);
    pack_seconds = std::min(pack_seconds, seconds() - t0);
  }
  const auto x = random_floats(m * kK, 2);
  std::vector<float> y(static_cast<size_t>(m * kN));
  Buffer buffer(quantized_activations_bytes(m, kK));
  Activations a{x.data(), kK, {}};
  double quantize_seconds = 0;
  if (info.quantized) {
    a.q = quantized_activations_at(buffer.data, m, kK);
    quantize_seconds = best_of(5, 1, [&](int) { kernels.quantize_activations(x.data(), kK, a.q, 0, m); }).core;
  }
  std::vector<Buffer> scratch;
  scratch.reserve(threads);
  for (int t = 0; t < threads; t++) scratch.emplace_back(size_t{kLinearScratchBytes});

  const int64_t panels = weights[0].view().panels;
  const auto from = [&](int t) { return panels * t / threads; };
  const double bytes = static_cast<double>(weights[0].bytes()) * copies;
  Best read, vector;
  for (int round = 0; round < 5; round++) {  // interleaved: a machine's read speed drifts
    const Best r = best_of(3, threads, [&](int t) {
      for (auto& w : weights)
        read_all(w.data() + w.view().panel_bytes * from(t), w.view().panel_bytes * (from(t + 1) - from(t)));
    });
    const Best v = best_of(3, threads, [&](int t) {
      for (auto& w : weights) kernels.linear(w.view(), a, 0, 1, from(t), from(t + 1), y.data(), kN, scratch[t].data);
    });
    read = {std::min(read.wall, r.wall), std::min(read.core, r.core)};
    vector = {std::min(vector.wall, v.wall), std::min(vector.core, v.core)};
  }
  const auto product = [&](int64_t rows) {
    return best_of(rows > 64 ? 3 : 6, threads, [&](int t) {
      kernels.linear(weights[0].view(), a, 0, rows, from(t), from(t + 1), y.data(), kN, scratch[t].data);
    });
  };
  const int64_t some = std::min<int64_t>(m, 8);
  const Best few = best_of(6, threads, [&](int t) {  // all copies, so that weights come from memory as they do in a model
    for (auto& w : weights) kernels.linear(w.view(), a, 0, some, from(t), from(t + 1), y.data(), kN, scratch[t].data);
  });
  const Best many = product(m);
  const double work = 2.0 * kN * kK;
  const double bits = 8 * static_cast<double>(weights[0].bytes()) / (kN * kK);
  std::printf(
      "%-5s %6.3f b/w  pack %5.2f GB/s  quantize x %5.2f GB/s | read %5.1f  M=1 %5.1f GB/s (%3.0f%%) core %5.1f | M=8 "
      "%5.0f GOP/s | M=%ld %5.0f GOP/s, core %4.0f\n",
      info.name, bits, static_cast<double>(source.size()) / pack_seconds / 1e9,
      quantize_seconds > 0 ? 4.0 * static_cast<double>(m * kK) / quantize_seconds / 1e9 : 0.0, bytes / read.wall / 1e9,
      bytes / vector.wall / 1e9, 100 * read.wall / vector.wall, bytes / threads / vector.core / 1e9,
      work * static_cast<double>(some) * copies / few.wall / 1e9, long(m),
      work * static_cast<double>(m) / many.wall / 1e9, work * static_cast<double>(m) / threads / many.core / 1e9);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const Isa isa = argc > 2 && std::string(argv[2]) != "best" ? parse_isa(argv[2]).value() : best_isa();
  const int64_t m = argc > 3 ? std::atol(argv[3]) : 512;
  std::printf("%s, %d threads\n", isa_name(isa), threads);
  for (int f = 0; f < kFormats; f++)
    if (argc <= 4 || argv[4] == std::string(format_info(static_cast<Format>(f)).name))
      measure(static_cast<Format>(f), kernels_for(isa), threads, m);
  return sink == 42 ? 1 : 0;
}
