// Reads the header of a GGUF file (versions 2 and 3, little-endian) out of untrusted bytes.
//
// A pure function over the bytes of the file: it allocates in proportion to what it has verified, never to what the
// file claims; every offset and size is checked against the file before use, in arithmetic that cannot overflow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace gemmary {

enum class GgufType : uint32_t {
  u8 = 0, i8 = 1, u16 = 2, i16 = 3, u32 = 4, i32 = 5, f32 = 6, boolean = 7, string = 8, array = 9, u64 = 10, i64 = 11,
  f64 = 12,
};

// One value of the metadata. For an array, `type` is that of its items and `count` their number.
struct GgufValue {
  std::string_view key;
  GgufType type;
  bool is_array;
  uint64_t count;
  // The items in the file: `bytes` of them from `data` on. A string stands as its uint64 length and its characters.
  const uint8_t* data;
  uint64_t bytes;
};

struct GgufTensor {
  std::string_view name;
  const char* type;  // "Q4_K", …
  uint32_t dims;
  uint64_t shape[4];  // GGUF's order: the length of a row first
  uint64_t begin;     // in the file
  uint64_t bytes;
};

struct GgufHeader {
  std::vector<GgufValue> values;
  std::vector<GgufTensor> tensors;
};

// Bytes of one item of a number type; 0 for strings, arrays and unknown types.
uint64_t gguf_type_size(GgufType type);

// Fills `header`, whose views point into `data`. Returns nullptr, or a fixed message that says what is wrong.
const char* parse_gguf_header(const uint8_t* data, size_t size, GgufHeader& header) noexcept;

}  // namespace gemmary
