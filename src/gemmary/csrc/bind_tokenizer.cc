// The pieces of SentencePiece's ModelProto, 262,144 small messages: a model's first token waits for them.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstring>
#include <memory>

namespace nb = nanobind;

namespace {

template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

uint8_t* put_varint(uint8_t* out, uint64_t value) {
  for (; value > 127; value >>= 7) *out++ = static_cast<uint8_t>(value | 128);
  *out++ = static_cast<uint8_t>(value);
  return out;
}
size_t varint_bytes(uint64_t value) { return value > 127 ? 1 + varint_bytes(value >> 7) : 1; }

// Field 1 of the model, again and again: {1: text, 2: score as float, 3: type}.
nb::bytes write_pieces(const nb::bytes& blob, const Vector<int64_t>& offsets, const Vector<float>& scores, const Vector<int32_t>& types) {
  const size_t count = scores.shape(0);
  if (offsets.shape(0) != count + 1 || types.shape(0) != count) throw nb::value_error("pieces, scores and types differ in number");
  const int64_t* const at = offsets.data();
  const auto body_bytes = [&](size_t i) {
    const uint64_t length = static_cast<uint64_t>(at[i + 1] - at[i]);
    return 1 + varint_bytes(length) + length + 7;
  };
  size_t total = 0;
  for (size_t i = 0; i < count; i++) {
    if (at[i] < 0 || at[i + 1] < at[i] || static_cast<size_t>(at[i + 1]) > blob.size()) throw nb::value_error("a piece lies outside the text");
    if (types.data()[i] < 0 || types.data()[i] > 127) throw nb::value_error("a piece has no such type");
    total += 1 + varint_bytes(body_bytes(i)) + body_bytes(i);
  }
  nb::bytes model(nullptr, total);
  uint8_t* out = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(model.ptr()));
  for (size_t i = 0; i < count; i++) {
    const size_t length = static_cast<size_t>(at[i + 1] - at[i]);
    *out++ = 1 << 3 | 2;
    out = put_varint(out, body_bytes(i));
    *out++ = 1 << 3 | 2;
    out = put_varint(out, length);
    std::memcpy(out, blob.c_str() + at[i], length);
    out += length;
    *out++ = 2 << 3 | 5;
    std::memcpy(out, scores.data() + i, 4);
    out += 4;
    *out++ = 3 << 3 | 0;
    *out++ = static_cast<uint8_t>(types.data()[i]);
  }
  return model;
}

// How many pieces shorter than 128 bytes a model begins with, and where what follows them begins (past the end if one is cut off).
nb::tuple skip_pieces(const nb::bytes& model) {
  const uint8_t* const data = reinterpret_cast<const uint8_t*>(model.c_str());
  size_t at = 0, count = 0;
  for (; at + 1 < model.size() && data[at] == (1 << 3 | 2) && data[at + 1] < 128; count++) at += 2 + data[at + 1];
  return nb::make_tuple(count, at);
}

}  // namespace

void bind_tokenizer(nb::module_& module) {
  module.def("write_sentencepiece_pieces", &write_pieces, nb::arg("blob"), nb::arg("offsets").noconvert(), nb::arg("scores").noconvert(),
             nb::arg("types").noconvert());
  module.def("skip_sentencepiece_pieces", &skip_pieces, nb::arg("model"));
}
