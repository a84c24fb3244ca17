// Gives Python the header of a GGUF file as plain objects: numbers, bytes, numpy arrays.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstring>
#include <utility>

#include "gguf_header.h"

namespace nb = nanobind;

namespace {

using gemmary::GgufHeader;
using gemmary::GgufTensor;
using gemmary::GgufType;
using gemmary::GgufValue;

template <typename T>
nb::object to_array(const uint8_t* data, size_t count) {
  T* copy = new T[count];
  nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  if (count != 0) std::memcpy(copy, data, count * sizeof(T));
  const size_t shape[1] = {count};
  return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(copy, 1, shape, owner));
}

template <typename T>
nb::object to_number(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return nb::cast(value);
}

template <typename T>
nb::object to_object(const GgufValue& value) {
  return value.is_array ? to_array<T>(value.data, value.count) : to_number<T>(value.data);
}

// (all strings, one after another, as bytes; where each begins and the last ends, as int64 [count + 1]).
nb::object to_strings(const GgufValue& value) {
  int64_t* offsets = new int64_t[value.count + 1];
  nb::capsule owner(offsets, [](void* p) noexcept { delete[] static_cast<int64_t*>(p); });
  const size_t total = value.bytes - value.count * sizeof(uint64_t);
  nb::bytes blob(nullptr, total);
  char* out = PyBytes_AS_STRING(blob.ptr());
  const uint8_t* in = value.data;
  offsets[0] = 0;
  for (size_t i = 0; i < value.count; ++i) {
    uint64_t length;
    std::memcpy(&length, in, sizeof(length));
    std::memcpy(out + offsets[i], in + sizeof(length), length);
    in += sizeof(length) + length;
    offsets[i + 1] = offsets[i] + static_cast<int64_t>(length);
  }
  const size_t shape[1] = {value.count + 1};
  return nb::make_tuple(blob, nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>(offsets, 1, shape, owner));
}

nb::object to_python(const GgufValue& value) {
  switch (value.type) {
    case GgufType::u8: return to_object<uint8_t>(value);
    case GgufType::i8: return to_object<int8_t>(value);
    case GgufType::u16: return to_object<uint16_t>(value);
    case GgufType::i16: return to_object<int16_t>(value);
    case GgufType::u32: return to_object<uint32_t>(value);
    case GgufType::i32: return to_object<int32_t>(value);
    case GgufType::f32: return to_object<float>(value);
    case GgufType::u64: return to_object<uint64_t>(value);
    case GgufType::i64: return to_object<int64_t>(value);
    case GgufType::f64: return to_object<double>(value);
    case GgufType::boolean:
      return value.is_array ? to_array<uint8_t>(value.data, value.count) : nb::object(nb::bool_(value.data[0] != 0));
    default: break;
  }
  if (value.is_array) return to_strings(value);
  return nb::bytes(reinterpret_cast<const char*>(value.data) + sizeof(uint64_t), value.bytes - sizeof(uint64_t));
}

nb::tuple to_python(const GgufTensor& tensor) {
  nb::list shape;  // rows first, as everywhere in Python
  for (uint32_t i = tensor.dims; i-- > 0;) shape.append(tensor.shape[i]);
  return nb::make_tuple(nb::str(tensor.name.data(), tensor.name.size()), nb::str(tensor.type), nb::tuple(shape),
                        tensor.begin, tensor.bytes);
}

nb::tuple read_header(nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> file) {
  GgufHeader header;
  const char* error = nullptr;
  {
    nb::gil_scoped_release release;
    error = gemmary::parse_gguf_header(file.data(), file.size(), header);
  }
  if (error != nullptr) throw nb::value_error(error);
  nb::dict values;
  for (const GgufValue& value : header.values) {
    values[nb::str(value.key.data(), value.key.size())] = to_python(value);
  }
  nb::list tensors;
  for (const GgufTensor& tensor : header.tensors) tensors.append(to_python(tensor));
  return nb::make_tuple(values, tensors);
}

}  // namespace

void bind_gguf(nb::module_& module) {
  module.def("read_gguf_header", &read_header, nb::arg("file"),
             "The header of a GGUF file given whole as uint8 [bytes]: (metadata, tensors).\n\n"
             "Metadata maps a key to a number, a truth value, bytes (a string), a numpy array, or, for strings, "
             "(blob, offsets). A tensor is (name, type, shape with rows first, first byte in the file, bytes). "
             "Raises ValueError with one line that says what is wrong.");
}
