#include "gguf_header.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace gemmary {
namespace {

constexpr uint64_t kMaxHeaderBytes = 16u << 20;
constexpr uint64_t kMaxValues = 1024;    // a real file has about 40
constexpr uint64_t kMaxTensors = 4096;   // the largest Gemma has 808
constexpr uint64_t kMaxKeyBytes = 256;
constexpr uint64_t kMaxNameBytes = 64;  // as ggml
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1u << 20;

struct Format {
  uint32_t id;
  const char* name;
  uint64_t weights;  // of a block; 0: known, but not read here
  uint64_t bytes;
  const char* refusal;
};

#define READ(id, name, weights, bytes) {id, name, weights, bytes, nullptr}
#define REFUSED(id, name) \
  {id, name, 0, 0, "its tensors are " name ", which is not read here: use Q8_0, Q4_0 or a K type"}
constexpr Format kFormats[] = {
    READ(0, "F32", 1, 4),        READ(1, "F16", 1, 2),        READ(2, "Q4_0", 32, 18),     READ(3, "Q4_1", 32, 20),
    READ(6, "Q5_0", 32, 22),     READ(7, "Q5_1", 32, 24),     READ(8, "Q8_0", 32, 34),     REFUSED(9, "Q8_1"),
    READ(10, "Q2_K", 256, 84),   READ(11, "Q3_K", 256, 110),  READ(12, "Q4_K", 256, 144),  READ(13, "Q5_K", 256, 176),
    READ(14, "Q6_K", 256, 210),  REFUSED(15, "Q8_K"),         REFUSED(16, "IQ2_XXS"),      REFUSED(17, "IQ2_XS"),
    REFUSED(18, "IQ3_XXS"),      REFUSED(19, "IQ1_S"),        REFUSED(20, "IQ4_NL"),       REFUSED(21, "IQ3_S"),
    REFUSED(22, "IQ2_S"),        REFUSED(23, "IQ4_XS"),       REFUSED(24, "I8"),           REFUSED(25, "I16"),
    REFUSED(26, "I32"),          REFUSED(27, "I64"),          REFUSED(28, "F64"),          REFUSED(29, "IQ1_M"),
    READ(30, "BF16", 1, 2),      REFUSED(34, "TQ1_0"),        REFUSED(35, "TQ2_0"),        REFUSED(39, "MXFP4"),
    REFUSED(40, "NVFP4"),
};
#undef READ
#undef REFUSED

constexpr const char* kTruncated = "it is truncated inside its header";

// Walks forward over the header. `left` is what the file and the header's limit still allow.
struct Cursor {
  const uint8_t* at;
  uint64_t left;

  bool skip(uint64_t bytes) {
    if (bytes > left) return false;
    at += bytes;
    left -= bytes;
    return true;
  }

  template <typename T>
  bool read(T& value) {
    const uint8_t* from = at;
    if (!skip(sizeof(T))) return false;
    std::memcpy(&value, from, sizeof(T));
    return true;
  }

  bool read_string(std::string_view& text) {
    uint64_t length = 0;
    if (!read(length)) return false;
    const char* from = reinterpret_cast<const char*>(at);
    if (!skip(length)) return false;
    text = {from, static_cast<size_t>(length)};
    return true;
  }
};

// Keys and names are printable ASCII, so that they can be shown and compared as they are.
bool is_plain(std::string_view text, uint64_t limit) {
  if (text.empty() || text.size() > limit) return false;
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

bool any_equal(std::vector<std::string_view>& names) {
  std::sort(names.begin(), names.end());
  return std::adjacent_find(names.begin(), names.end()) != names.end();
}

const char* read_items(Cursor& in, GgufValue& value) {
  value.data = in.at;
  if (value.type == GgufType::string) {
    for (uint64_t i = 0; i < value.count; ++i) {
      std::string_view text;
      if (!in.read_string(text)) return kTruncated;
    }
  } else {
    const uint64_t item = gguf_type_size(value.type);
    if (item == 0) return "its metadata has a value of an unknown type";
    if (value.count > in.left / item || !in.skip(value.count * item)) return kTruncated;
    if (value.type == GgufType::boolean) {
      const bool bad = std::any_of(value.data, in.at, [](uint8_t b) { return b > 1; });
      if (bad) return "its metadata has a truth value that is neither 0 nor 1";
    }
  }
  value.bytes = static_cast<uint64_t>(in.at - value.data);
  return nullptr;
}

const char* read_value(Cursor& in, GgufValue& value) {
  uint32_t type = 0;
  if (!in.read_string(value.key) || !in.read(type)) return kTruncated;
  if (!is_plain(value.key, kMaxKeyBytes)) return "a key of its metadata is not a short plain name";
  value.count = 1;
  value.is_array = type == static_cast<uint32_t>(GgufType::array);
  if (value.is_array) {
    if (!in.read(type) || !in.read(value.count)) return kTruncated;
    if (type == static_cast<uint32_t>(GgufType::array)) return "its metadata has an array of arrays";
  }
  value.type = static_cast<GgufType>(type);
  return read_items(in, value);
}

const Format* find_format(uint32_t id) {
  for (const Format& format : kFormats) {
    if (format.id == id) return &format;
  }
  return nullptr;
}

// Leaves `begin` relative to the data section.
const char* read_tensor(Cursor& in, uint64_t alignment, GgufTensor& tensor) {
  if (!in.read_string(tensor.name) || !in.read(tensor.dims)) return kTruncated;
  if (!is_plain(tensor.name, kMaxNameBytes)) return "the name of a tensor is not a short plain name";
  if (tensor.dims < 1 || tensor.dims > 4) return "a tensor has no dimensions, or more than four";
  uint64_t weights = 1;
  for (uint32_t i = 0; i < 4; ++i) {
    tensor.shape[i] = 1;
    if (i >= tensor.dims) continue;
    if (!in.read(tensor.shape[i])) return kTruncated;
    if (tensor.shape[i] == 0) return "a tensor is empty";
    if (__builtin_mul_overflow(weights, tensor.shape[i], &weights)) return "a tensor is larger than any file";
  }
  uint32_t id = 0;
  if (!in.read(id) || !in.read(tensor.begin)) return kTruncated;
  const Format* format = find_format(id);
  if (format == nullptr) return "its tensors are of a type that is not known";
  if (format->refusal != nullptr) return format->refusal;
  if (tensor.shape[0] % format->weights != 0) return "the rows of a tensor do not divide into blocks of its type";
  tensor.type = format->name;
  if (__builtin_mul_overflow(weights / format->weights, format->bytes, &tensor.bytes)) {
    return "a tensor is larger than any file";
  }
  if (tensor.begin % alignment != 0) return "a tensor does not begin at a multiple of the file's alignment";
  return nullptr;
}

const char* read_alignment(const std::vector<GgufValue>& values, uint64_t& alignment) {
  alignment = kDefaultAlignment;
  for (const GgufValue& value : values) {
    if (value.key != "general.alignment") continue;
    if (value.is_array || value.type != GgufType::u32) return "its alignment is not a number";
    uint32_t stored = 0;
    std::memcpy(&stored, value.data, sizeof(stored));
    const bool power_of_two = stored != 0 && (stored & (stored - 1)) == 0;
    if (!power_of_two || stored < 8 || stored > kMaxAlignment) return "its alignment is not a small power of two";
    alignment = stored;
  }
  return nullptr;
}

// The tensors fill the data section, in any order, with nothing between them but padding to the alignment.
const char* place_tensors(std::vector<GgufTensor>& tensors, uint64_t base, uint64_t size, uint64_t alignment) {
  const uint64_t room = base <= size ? size - base : 0;
  std::vector<const GgufTensor*> order;
  for (const GgufTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const GgufTensor* a, const GgufTensor* b) { return a->begin < b->begin; });
  uint64_t end = 0;
  for (const GgufTensor* tensor : order) {
    const uint64_t expected = (end + alignment - 1) / alignment * alignment;
    if (tensor->begin < expected) return "its tensors overlap";
    if (tensor->begin > expected) return "there is a hole between its tensors";
    if (tensor->begin > room || tensor->bytes > room - tensor->begin) return "it is truncated: its tensors do not fit";
    end = tensor->begin + tensor->bytes;
  }
  if (room - end >= alignment) return "something follows its last tensor";
  for (GgufTensor& tensor : tensors) tensor.begin += base;
  return nullptr;
}

const char* parse(const uint8_t* data, size_t size, GgufHeader& header) {
  Cursor in{data, std::min<uint64_t>(size, kMaxHeaderBytes)};
  uint32_t magic = 0, version = 0;
  uint64_t tensor_count = 0, value_count = 0;
  if (!in.read(magic) || magic != 0x46554747) return "it does not begin as a GGUF file";  // "GGUF"
  if (!in.read(version)) return kTruncated;
  if ((version & 0xffff) == 0 && version != 0) return "it is a big-endian GGUF file, which is not read here";
  if (version != 2 && version != 3) return "its GGUF version is neither 2 nor 3";
  if (!in.read(tensor_count) || !in.read(value_count)) return kTruncated;
  if (value_count > kMaxValues) return "its header claims too many metadata values";
  if (tensor_count > kMaxTensors) return "its header claims too many tensors";

  std::vector<std::string_view> names;
  for (uint64_t i = 0; i < value_count; ++i) {
    GgufValue value{};
    if (const char* error = read_value(in, value)) return error;
    header.values.push_back(value);
    names.push_back(value.key);
  }
  if (any_equal(names)) return "a key of its metadata stands twice";

  uint64_t alignment = 0;
  if (const char* error = read_alignment(header.values, alignment)) return error;
  names.clear();
  for (uint64_t i = 0; i < tensor_count; ++i) {
    GgufTensor tensor{};
    if (const char* error = read_tensor(in, alignment, tensor)) return error;
    header.tensors.push_back(tensor);
    names.push_back(tensor.name);
  }
  if (any_equal(names)) return "the name of a tensor stands twice";
  const uint64_t read = static_cast<uint64_t>(in.at - data);
  return place_tensors(header.tensors, (read + alignment - 1) / alignment * alignment, size, alignment);
}

}  // namespace

uint64_t gguf_type_size(GgufType type) {
  switch (type) {
    case GgufType::u8: case GgufType::i8: case GgufType::boolean: return 1;
    case GgufType::u16: case GgufType::i16: return 2;
    case GgufType::u32: case GgufType::i32: case GgufType::f32: return 4;
    case GgufType::u64: case GgufType::i64: case GgufType::f64: return 8;
    default: return 0;
  }
}

const char* parse_gguf_header(const uint8_t* data, size_t size, GgufHeader& header) noexcept {
  try {
    return parse(data, size, header);
  } catch (const std::bad_alloc&) {
    return "there is not enough memory to read its header";
  }
}

}  // namespace gemmary
