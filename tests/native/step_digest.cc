#include "step_digest.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "native_cases.h"

namespace gemmary {
namespace {

using Floats = std::vector<float>;  // of exactly the size that a kernel may touch, so that a sanitizer sees an overrun

Floats random_floats(int64_t count, uint64_t seed, float size = 1.0f) {
  Floats out(static_cast<size_t>(count));
  Random random(seed);
  for (float& value : out) value = size * random.uniform();
  return out;
}

struct Digest {
  uint64_t value = 14695981039346656037ull;
  bool same = true;  // of what must not differ
  void absorb(const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) value = (value ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211ull;
  }
  void absorb(const Floats& values) { absorb(values.data(), values.size() * sizeof(float)); }
};

void rows_and_elements(const StepKernels& kernels, Digest& digest) {
  for (int width : {1, 5, 16, 17, 40, 72, 256, 1152}) {
    const int64_t rows = 3, n = rows * width;
    const Floats x = random_floats(n, 10 + width, 4.0f), y = random_floats(n, 20 + width, 4.0f), gain = random_floats(width, 30 + width);
    const auto each = [&](int64_t size, const std::function<void(float*)>& body) {
      Floats out(static_cast<size_t>(size));
      body(out.data());
      digest.absorb(out);
    };
    each(n, [&](float* out) { kernels.rms_norm(x.data(), gain.data(), out, rows, width, 1e-6f); });
    each(n, [&](float* out) { kernels.layer_norm(x.data(), gain.data(), y.data(), out, rows, width, 1e-6f); });
    each(n, [&](float* out) { kernels.l2_normalize(x.data(), out, rows, width); });
    each(width, [&](float* out) { kernels.mean_rows(x.data(), out, rows, width); });
    each(n, [&](float* out) { kernels.add(x.data(), y.data(), out, n); });
    each(n, [&](float* out) { kernels.gelu(x.data(), out, n); });
    each(n, [&](float* out) { kernels.geglu(x.data(), y.data(), out, n); });
    each(n, [&](float* out) { kernels.softcap(x.data(), out, n, 1.5f); });
    each(n, [&](float* out) {
      std::copy(x.begin(), x.end(), out);
      kernels.add_bias(out + width / 2, static_cast<size_t>(width), gain.data() + width / 2, rows, width - width / 2);
    });
  }
  for (int head_dim : {2, 10, 34, 256}) {
    const int64_t rows = 3, heads = 2;
    Floats x = random_floats(rows * heads * head_dim, 40 + head_dim);
    const Floats angles = random_floats(rows * head_dim, 50 + head_dim);
    kernels.rope(x.data(), angles.data(), x.data(), rows, heads, head_dim);  // in place, as programs do
    digest.absorb(x);
  }
}

struct Shape {
  int head_dim, rows, heads, window;  // window 0: all keys; the rows then see each other whole, as a prefix does
  KvType type;
  float softcap;
};

// The last rows of a sequence of 300 tokens, over a ring that has wrapped or, without a window, over all of its keys, which are two
// spans: attended in one task, and in one for each span whose results are merged.
void attention(const StepKernels& kernels, const Shape& shape, Digest& digest) {
  const int length = 300, stride = shape.heads * shape.head_dim, width = (shape.head_dim + 15) / 16 * 16;
  const int per_word = shape.type == KvType::float32 ? 1 : shape.type == KvType::bfloat16 ? 2 : 4, key_words = (shape.head_dim + per_word - 1) / per_word;
  const int64_t blocks = shape.window ? 6 : 19;
  std::vector<int32_t> keys(static_cast<size_t>(blocks * key_words * 16)), values(static_cast<size_t>(blocks * width * 16 / per_word));
  Floats key_scales(static_cast<size_t>(blocks * ((shape.head_dim + kKeyGroup - 1) / kKeyGroup) * 16)), value_scales(static_cast<size_t>(blocks * 16));
  const KvHead kv = {keys.data(), values.data(), key_scales.data(), value_scales.data(), blocks, shape.head_dim, key_words, width, shape.type};
  const Floats k = random_floats(length * shape.head_dim, 60), v = random_floats(length * shape.head_dim, 61);
  for (int start = 0, rows = 37; start < length; start += rows) {
    rows = std::min(rows, length - start);
    kernels.store_kv(kv, k.data() + start * shape.head_dim, v.data() + start * shape.head_dim, shape.head_dim, start, rows);
  }
  std::vector<int32_t> visible;
  for (int position = length - shape.rows; position < length; position++) {
    visible.push_back(shape.window ? position - shape.window + 1 : 0);
    visible.push_back(shape.window ? position : length - 1);
  }
  const int64_t queries = shape.rows * shape.heads, begin = visible.front() / kAttentionSpan, end = visible.back() / kAttentionSpan + 1;
  const int64_t partial = width + kPartialExtra;
  const Floats q = random_floats(shape.rows * stride, 62, 3.0f);
  Floats out(q.size()), merged(q.size()), scratch(static_cast<size_t>(attention_scratch_floats(queries, width)));
  Floats partials(static_cast<size_t>(queries * (end - begin) * partial));
  AttentionTask task = {kv, q.data(), out.data(), stride, visible.data(), shape.rows, shape.heads, 0.3f, shape.softcap, begin, end,
                        nullptr, (end - begin) * partial, scratch.data()};
  kernels.attend(task);
  for (int64_t span = begin; span < end; span++) {
    task.begin = span;
    task.end = span + 1;
    task.partials = partials.data() + (span - begin) * partial;
    kernels.attend(task);
  }
  for (int64_t j = 0; j < queries; j++)
    kernels.merge_spans(partials.data() + j * task.partial_stride, end - begin, shape.head_dim,
                        merged.data() + j / shape.heads * stride + j % shape.heads * shape.head_dim);
  digest.same = digest.same && merged == out;
  digest.absorb(keys.data(), keys.size() * sizeof(int32_t));
  digest.absorb(values.data(), values.size() * sizeof(int32_t));
  digest.absorb(key_scales);
  digest.absorb(value_scales);
  digest.absorb(out);
}

}  // namespace

uint64_t step_digest(const StepKernels& kernels) {
  Digest digest;
  rows_and_elements(kernels, digest);
  for (KvType type : {KvType::float32, KvType::bfloat16, KvType::int8})
    for (int head_dim : {6, 16, 40, 72, 256})
      for (int rows : {1, 2, 3, 7, 13, 24})  // every tile of queries: 12, 6, 4, 2 and 1 of them
        for (int heads : {1, 3})
          for (int window : {0, 1, 60}) attention(kernels, {head_dim, rows, heads, window, type, rows % 2 ? 0.0f : 1.5f}, digest);
  return digest.same ? digest.value : 0;
}

}  // namespace gemmary
