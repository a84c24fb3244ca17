// Feeds mutated GGUF headers to the parser, under the address and undefined-behaviour sanitizers.
//
//   fuzz_gguf_header COUNT SEED_FILE...
//
// The mutations come from a fixed generator, so a run can be repeated. Each input is copied into a buffer of exactly
// its size. What the parser accepts is walked: every view must lie in the buffer, no two tensors may overlap. What it
// allocates may not exceed a fixed multiple of the file. Prints "ACCEPTED REFUSED"; aborts at the first violation.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <new>
#include <vector>

#include "../../src/gemmary/csrc/gguf_header.h"

static uint64_t g_allocated = 0;

void* operator new(size_t size) {
  g_allocated += size;
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace {

using Bytes = std::vector<uint8_t>;

struct Random {  // splitmix64
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return n == 0 ? 0 : next() % n; }
};

uint64_t extreme(Random& random, uint64_t size) {
  const uint64_t values[] = {0, 1, 2, 7, 8, 9, 13, 31, 255, 4096, 4097, 65535, size - 1, size, size + 1, 1u << 24,
                             0x7fffffff, 0x80000000, 0xffffffff, 1ull << 32, 1ull << 40, 1ull << 60, 1ull << 61,
                             (1ull << 63) - 1, 1ull << 63, ~0ull, ~0ull - 7, ~0ull - size, random.next()};
  return values[random.below(std::size(values))];
}

// One change. Three in four land in the header, which ends at `header`.
void mutate(Random& random, Bytes& data, size_t header) {
  if (data.empty()) return;
  const size_t reach = random.below(4) != 0 ? std::min(header, data.size()) : data.size();
  const size_t at = random.below(reach);
  const size_t left = data.size() - at;
  const uint64_t value = extreme(random, data.size());
  switch (random.below(9)) {
    case 0: data[at] ^= static_cast<uint8_t>(1u << random.below(8)); break;
    case 1: data[at] = static_cast<uint8_t>(random.next()); break;
    case 2: case 3: std::memcpy(&data[at], &value, std::min<size_t>(8, left)); break;
    case 4: std::memcpy(&data[at], &value, std::min<size_t>(4, left)); break;
    case 5: data.resize(at); break;
    case 6: data.insert(data.end(), random.below(200), static_cast<uint8_t>(random.next())); break;
    case 7: {  // one stretch over another: names that stand twice, values of other keys
      const size_t from = random.below(reach);
      const size_t length = random.below(std::min<size_t>(left, std::min<size_t>(data.size() - from, 64)));
      std::memmove(&data[at], &data[from], length);
      break;
    }
    default: data.erase(data.begin() + at, data.begin() + at + random.below(std::min<size_t>(left, 40))); break;
  }
}

[[noreturn]] void fail(const char* what, uint64_t run) {
  std::fprintf(stderr, "run %llu: %s\n", static_cast<unsigned long long>(run), what);
  std::abort();
}

void check(const gemmary::GgufHeader& header, const uint8_t* data, size_t size, uint64_t run) {
  const auto inside = [&](const void* p, uint64_t bytes) {
    const auto* q = static_cast<const uint8_t*>(p);
    return q >= data && q <= data + size && bytes <= static_cast<uint64_t>(data + size - q);
  };
  for (const auto& value : header.values) {
    if (!inside(value.key.data(), value.key.size()) || !inside(value.data, value.bytes)) fail("a value outside", run);
    if (value.type != gemmary::GgufType::string) {
      if (value.bytes != value.count * gemmary::gguf_type_size(value.type)) fail("a value of another size", run);
      continue;
    }
    const uint8_t* p = value.data;
    for (uint64_t i = 0; i < value.count; ++i) {
      uint64_t length = 0;
      if (!inside(p, 8)) fail("a string's length outside", run);
      std::memcpy(&length, p, 8);
      if (!inside(p + 8, length)) fail("a string outside", run);
      p += 8 + length;
    }
    if (p != value.data + value.bytes) fail("strings of another size", run);
  }
  std::vector<std::pair<uint64_t, uint64_t>> spans;
  for (const auto& tensor : header.tensors) {
    if (tensor.begin > size || tensor.bytes > size - tensor.begin) fail("a tensor outside", run);
    spans.emplace_back(tensor.begin, tensor.begin + tensor.bytes);
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i) {
    if (spans[i].first < spans[i - 1].second) fail("tensors overlap", run);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const uint64_t count = std::strtoull(argv[1], nullptr, 10);
  std::vector<Bytes> seeds;
  std::vector<size_t> headers;
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    gemmary::GgufHeader header;
    if (const char* error = gemmary::parse_gguf_header(seeds.back().data(), seeds.back().size(), header)) fail(error, 0);
    size_t first = seeds.back().size();
    for (const auto& tensor : header.tensors) first = std::min<size_t>(first, tensor.begin);
    headers.push_back(first);
  }
  uint64_t accepted = 0, refused = 0;
  for (uint64_t run = 0; run < count; ++run) {
    Random random{run * 0x2545f4914f6cdd1du + 1};
    const size_t which = random.below(seeds.size());
    Bytes data = seeds[which];
    for (uint64_t n = 1 + random.below(4); n > 0; --n) mutate(random, data, headers[which]);
    const std::unique_ptr<uint8_t[]> exact(new uint8_t[data.size()]);
    if (!data.empty()) std::memcpy(exact.get(), data.data(), data.size());

    gemmary::GgufHeader header;
    const uint64_t before = g_allocated;
    const char* error = gemmary::parse_gguf_header(exact.get(), data.size(), header);
    if (g_allocated - before > 16 * data.size() + 4096) fail("allocated out of proportion to the file", run);
    if (error == nullptr) {
      ++accepted;
      check(header, exact.get(), data.size(), run);
    } else {
      ++refused;
      if (std::strlen(error) == 0 || std::strlen(error) > 120) fail("a message that is no short line", run);
    }
  }
  std::printf("%llu %llu\n", static_cast<unsigned long long>(accepted), static_cast<unsigned long long>(refused));
}
