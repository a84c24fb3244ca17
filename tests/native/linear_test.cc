// Tests of the native linear kernels. Every instruction set that this machine can run is compared, bit for bit, with
// the plain twin; the plain twin is compared with double precision. Prints one digest of all results, which is the same
// on every architecture.
//   linear_test brief      the same on fewer shapes
//   linear_test            run everything; non-zero exit and a message at the first difference
//   linear_test unpack FORMAT ROWS COLS    < source blocks  > float32
//   linear_test quantize FORMAT ROWS COLS  < float32        > source blocks
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"
#include "native_cases.h"
#include "simd_probe.h"
#include "step_digest.h"

using namespace gemmary;

namespace {

uint64_t digest = 14695981039346656037ull;
long checks = 0;

void absorb(const void* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) digest = (digest ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211ull;
}

#define CHECK(condition, ...)                              \
  do {                                                     \
    checks++;                                              \
    if (!(condition)) {                                    \
      std::fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
      std::fprintf(stderr, __VA_ARGS__);                   \
      std::fputc('\n', stderr);                            \
      std::exit(1);                                        \
    }                                                      \
  } while (0)

std::vector<Isa> isas() {
  std::vector<Isa> out;
  for (Isa isa : {Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon})
    if (isa_available(isa)) out.push_back(isa);
  return out;
}

struct Aligned {  // 64-byte aligned bytes of exactly the size asked for, so that a sanitizer sees an overrun
  explicit Aligned(size_t bytes) : data(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {}
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  uint8_t* data;
};

constexpr float kUntouched = 12345.0f;

struct Case {
  Format format;
  int64_t n, k, m;
  bool extreme;
  std::string name() const {
    return std::string(format_info(format).name) + " N=" + std::to_string(n) + " K=" + std::to_string(k) +
           " M=" + std::to_string(m) + (extreme ? " extreme" : "");
  }
};

// Against double precision over the same quantized activations: each output is within the rounding of its chain of
// fmas.
void check_reference(const Case& c, const PackedView& w, const std::vector<double>& x, const float* y, size_t ldy) {
  const double steps =
      format_info(c.format).quantized ? 3.0 * static_cast<double>(c.k / 32) + 8 : static_cast<double>(c.k) + 1;
  std::vector<float> row(static_cast<size_t>(c.k));
  for (int64_t n = 0; n < c.n; n++) {
    unpack_rows(w, n, 1, row.data(), row.size());
    for (int64_t t = 0; t < c.m; t++) {
      double exact = 0, bound = 1e-30;
      for (int64_t k0 = 0; k0 < c.k; k0 += 32) {
        const int64_t end = std::min(c.k, k0 + 32);
        double largest = 0;
        for (int64_t k = k0; k < end; k++) largest = std::max(largest, std::fabs(static_cast<double>(row[k])));
        for (int64_t k = k0; k < end; k++) {
          exact += static_cast<double>(row[k]) * x[t * c.k + k];
          bound += 2 * largest * std::fabs(x[t * c.k + k]) * steps * 0x1p-24;
        }
      }
      const double got = y[t * ldy + n];
      CHECK(std::fabs(got - exact) <= bound, "%s: y[%ld, %ld] = %.9g, double precision says %.9g (bound %.3g)",
            c.name().c_str(), long(t), long(n), got, exact, bound);
    }
  }
}

// Row t of quantized activations as numbers.
std::vector<double> dequantized(const QuantizedActivations& q, int64_t t) {
  std::vector<double> row(static_cast<size_t>(q.groups * 32));
  for (size_t k = 0; k < row.size(); k++) {
    const ActivationGroup& group = q.data[t * q.groups + static_cast<int64_t>(k) / 32];
    row[k] = static_cast<double>(group.codes[k % 32]) * static_cast<double>(group.scale);
  }
  for (int32_t i = 0; i < q.ends[(t + 1) * q.spans - 1]; i++) {
    const Outlier& outlier = q.outliers[t * q.groups + i];
    row[outlier.input] = outlier.value;
  }
  return row;
}

void check_linear(const Case& c) {
  const auto source = random_source(c.format, c.n, c.k, 7 * c.n + c.k, c.extreme);
  PackedWeight weight(c.format, c.n, c.k);
  const PackedView& w = weight.view();
  const int64_t half = w.panels / 2;
  pack(weight, source.data(), 0, half);  // in two ranges, as two threads would
  pack(weight, source.data() + static_cast<size_t>(half * kPanelRows) * source_row_bytes(c.format, c.k), half, w.panels);
  std::vector<uint8_t> again(source.size());
  unpack(w, 0, c.n, again.data());
  CHECK(again == source, "%s [%ld, %ld]: unpacked is not the source", format_info(c.format).name, long(c.n), long(c.k));

  const size_t ldx = static_cast<size_t>(c.k) + 3, ldy = static_cast<size_t>(c.n) + 5;
  std::vector<float> storage = random_floats(1 + c.m * static_cast<int64_t>(ldx), c.m + c.k);
  if (c.extreme)
    for (float& v : storage) v = v < 0 ? -2.5f : 2.5f;                                     // every code is 127 or -127
  float* x = storage.data() + 1;                                                           // misaligned
  for (int64_t k = 0; k < std::min<int64_t>(c.k, 32); k++) x[(c.m - 1) * ldx + k] = 0.0f;  // a group of zeros

  Aligned scratch(kLinearScratchBytes);
  std::vector<float> expected;
  for (Isa isa : isas()) {
    const Kernels& kernels = kernels_for(isa);
    Aligned buffer(quantized_activations_bytes(c.m, c.k) + 64);
    Activations a{x, ldx, {}};
    if (format_info(c.format).quantized) {
      a.q = quantized_activations_at(buffer.data, c.m, c.k);
      kernels.quantize_activations(x, ldx, a.q, 0, c.m / 2);
      kernels.quantize_activations(x, ldx, a.q, c.m / 2, c.m);
    }
    std::vector<float> y(static_cast<size_t>(c.m) * ldy, kUntouched);
    kernels.linear(w, a, 0, c.m, 0, w.panels, y.data(), ldy, scratch.data);
    for (int64_t t = 0; t < c.m; t++)
      for (size_t i = c.n; i < ldy; i++)
        CHECK(y[t * ldy + i] == kUntouched, "%s on %s wrote beyond its rows", c.name().c_str(), kernels.name);
    if (isa == Isa::Scalar) {
      expected = y;
      absorb(y.data(), y.size() * 4);
      std::vector<double> exact_x;
      for (int64_t t = 0; t < c.m; t++) {
        const std::vector<double> row =
            a.q.data ? dequantized(a.q, t) : std::vector<double>(x + t * ldx, x + t * ldx + c.k);
        exact_x.insert(exact_x.end(), row.begin(), row.end());
      }
      check_reference(c, w, exact_x, y.data(), ldy);
    }
    const auto same = [&](const std::vector<float>& other, const char* what) {
      for (size_t i = 0; i < y.size(); i++)
        CHECK(std::bit_cast<uint32_t>(other[i]) == std::bit_cast<uint32_t>(expected[i]),
              "%s on %s, %s: y[%zu, %zu] = %.9g, not %.9g", c.name().c_str(), kernels.name, what, i / ldy, i % ldy,
              other[i], expected[i]);
    };
    same(y, "whole");
    std::vector<float> split(y.size(), kUntouched);
    for (int64_t t = 0; t < c.m; t++) kernels.linear(w, a, t, t + 1, 0, w.panels, split.data(), ldy, scratch.data);
    same(split, "row by row");
    split.assign(y.size(), kUntouched);
    const int64_t t_cut = c.m / 3 + 1 <= c.m ? c.m / 3 + 1 : c.m, p_cut = (w.panels + 1) / 2;
    for (auto [p0, p1] : {std::pair{p_cut, w.panels}, std::pair{int64_t{0}, p_cut}})
      for (auto [t0, t1] : {std::pair{t_cut, c.m}, std::pair{int64_t{0}, t_cut}})
        if (t0 < t1 && p0 < p1) kernels.linear(w, a, t0, t1, p0, p1, split.data(), ldy, scratch.data);
    same(split, "in four tiles");
  }
}

void check_all_linear(bool brief) {
  for (int f = 0; f < kFormats; f++) {  // brief: for sanitizers, which are slow
    const Format format = static_cast<Format>(f);
    const FormatInfo& info = format_info(format);
    std::vector<int64_t> ks{256, 1280};  // the last crosses a block boundary
    if (info.block == 32) ks = {32, 96, 1056};
    if (info.block == 1) ks = {1, 7, 515};
    for (int64_t m = 1; m <= 9; m += brief ? 4 : 1) check_linear({format, 50, ks[m % ks.size()], m, false});
    for (int64_t n : {1, 16, 17, 81})
      if (!brief) check_linear({format, n, ks.back(), 13, false});
    if (info.quantized) check_linear({format, 49, ks[1], 6, true});
  }
}

// A row that is not whole groups gives what it gives with zeros after it, and nothing beyond it is read.
void check_partial_activations() {
  constexpr int64_t kRows = 3;
  for (int64_t cols : {1, 15, 16, 17, 31, 33, 80, 1100}) {
    const int64_t whole = (cols + 31) / 32 * 32;
    std::vector<float> x(static_cast<size_t>(kRows * cols)), filled(static_cast<size_t>(kRows * whole));
    Random random(static_cast<uint64_t>(cols));
    for (int64_t i = 0; i < kRows * cols; i++) x[i] = filled[i / cols * whole + i % cols] = random.uniform();
    for (Isa isa : isas()) {
      const size_t bytes = quantized_activations_bytes(kRows, cols);
      Aligned some(bytes), all(bytes);
      std::memset(some.data, 0, bytes);
      std::memset(all.data, 0, bytes);
      kernels_for(isa).quantize_activations(x.data(), static_cast<size_t>(cols), quantized_activations_at(some.data, kRows, cols), 0, kRows);
      kernels_for(isa).quantize_activations(filled.data(), static_cast<size_t>(whole), quantized_activations_at(all.data, kRows, whole), 0, kRows);
      CHECK(bytes == quantized_activations_bytes(kRows, whole) && std::memcmp(some.data, all.data, bytes) == 0, "%ld columns on %s", long(cols),
            isa_name(isa));
    }
  }
}

void check_activations() {
  constexpr int64_t kRows = 40, kCols = 96, kGroups = kCols / 32;
  std::vector<float> x(kRows * kCols);
  Random random(3);
  for (size_t i = 0; i < x.size(); i++) {
    const uint32_t any = static_cast<uint32_t>(random.next() >> 32);
    x[i] = i < x.size() / 2 ? random.uniform() * 4
                            : std::bit_cast<float>(i % 96 < 32   ? any & 0x800000ff
                                                   : i % 96 < 64 ? any & 0xfeffffff
                                                                 : any);  // subnormal; finite; anything
  }
  int found = 0;
  std::vector<uint8_t> expected;
  for (Isa isa : isas()) {
    const size_t bytes = quantized_activations_bytes(kRows, kCols);
    Aligned buffer(bytes);
    std::memset(buffer.data, 0, bytes);
    const QuantizedActivations q = quantized_activations_at(buffer.data, kRows, kCols);
    kernels_for(isa).quantize_activations(x.data(), kCols, q, 0, kRows);
    int32_t outliers = 0;
    for (int64_t g = 0; g < kRows * kGroups; g++) {
      ActivationGroup& got = q.data[g];
      int sums[2] = {0, 0};
      for (int i = 0; i < 32; i++) sums[i / 16] += got.codes[i];
      CHECK(static_cast<int16_t>(got.sums) == sums[0] && got.sums >> 16 == sums[1], "sums of group %ld on %s", long(g),
            isa_name(isa));
      const float* group = &x[g * 32];
      int place = 0;
      float second = 0;
      bool nan = false;
      for (int i = 0; i < 32; i++) nan |= std::isnan(group[i]);
      for (int i = 1; i < 32; i++) place = std::fabs(group[i]) > std::fabs(group[place]) ? i : place;
      for (int i = 0; i < 32; i++)
        if (i != place) second = std::fmax(second, std::fabs(group[i]));
      const float largest = std::fabs(group[place]);
      const bool apart = !nan && second + second < largest;
      if (g % kGroups == 0) outliers = 0;
      if (apart) {
        const Outlier& outlier = q.outliers[g / kGroups * kGroups + outliers++];
        CHECK(outlier.input == g % kGroups * 32 + place && got.codes[place] == 0 &&
                  std::bit_cast<uint32_t>(outlier.value) == std::bit_cast<uint32_t>(group[place]),
              "outlier of group %ld on %s", long(g), isa_name(isa));
        found++;
      }
      CHECK(q.ends[g / kGroups] >= outliers, "outliers of group %ld on %s", long(g), isa_name(isa));
      if (g % kGroups == kGroups - 1)
        CHECK(q.ends[g / kGroups] == outliers, "outliers of the row of group %ld on %s", long(g), isa_name(isa));
      CHECK(nan ? std::isnan(got.scale) : got.scale == (apart ? second : largest) / 127, "scale of group %ld on %s",
            long(g), isa_name(isa));
      for (int i = 0; i < 32 && g < kRows * kGroups / 2; i++) {
        const int code =
            got.scale == 0 || (apart && i == place) ? 0 : static_cast<int>(std::nearbyint(group[i] / got.scale));
        CHECK(got.codes[i] == code, "code of group %ld on %s", long(g), isa_name(isa));
      }
      if (std::isnan(got.scale)) got.scale = 0;  // which NaN it is may differ
    }
    if (expected.empty()) expected.assign(buffer.data, buffer.data + bytes);
    CHECK(std::memcmp(expected.data(), buffer.data, bytes) == 0, "activations on %s", isa_name(isa));
  }
  CHECK(found > 10, "too few outliers to test: %d", found);
  absorb(expected.data(), expected.size());
}

using Probe = void(int, const float*, float*, int64_t);
Probe* probe_for(Isa isa) {
  switch (isa) {
    case Isa::Scalar: return probe_scalar;
#if defined(__x86_64__)
    case Isa::Avx2: return probe_avx2;
#if !defined(GEMMARY_WITHOUT_AVX512)
    case Isa::Avx512: return probe_avx512;
#endif
#elif defined(__aarch64__)
    case Isa::Neon: return probe_neon;
#endif
    default: return nullptr;
  }
}

void check_probes() {
  std::vector<float> in;
  for (uint32_t u = 0; in.size() < 16 * 4096; u += 65521)
    in.push_back(std::bit_cast<float>(u));  // every exponent, both signs
  Random random(11);
  while (in.size() < 16 * 6000) in.push_back(random.uniform() * 100);
  for (int i = 0; i < 4; i++)
    for (float v : {0.0f, -0.0f, 1.0f, -1.0f, 88.72f, 88.73f, -87.4f, -103.9f, -104.0f, -200.0f, 200.0f, 0.625f,
                    INFINITY, -INFINITY, NAN, 0.5f})
      in.push_back(v);
  for (int op = 0; op < kProbes; op++) {
    std::vector<float> expected;
    for (Isa isa : isas()) {
      std::vector<float> out(in.size());
      probe_for(isa)(op, in.data(), out.data(), static_cast<int64_t>(in.size()));
      for (float& v : out)
        if (std::isnan(v)) v = NAN;  // payload and sign may differ
      if (expected.empty()) expected = out;
      for (size_t i = 0; i < out.size(); i++)
        CHECK(std::bit_cast<uint32_t>(out[i]) == std::bit_cast<uint32_t>(expected[i]),
              "%s on %s: f(%.9g) = %.9g, not %.9g", kProbeNames[op], isa_name(isa), in[i], out[i], expected[i]);
    }
    absorb(expected.data(), expected.size() * 4);
    if (op > 1) continue;
    for (size_t i = 0; i < in.size(); i++) {
      const double exact = op == 0 ? std::exp(static_cast<double>(in[i])) : std::tanh(static_cast<double>(in[i]));
      const float nearest = static_cast<float>(exact);
      if (!std::isfinite(nearest) || nearest == 0) {
        CHECK(std::isnan(nearest) ? std::isnan(expected[i]) : expected[i] == nearest, "%s(%.9g) = %.9g",
              kProbeNames[op], in[i], expected[i]);
        continue;
      }
      const double ulp =
          std::fabs(static_cast<double>(std::nextafter(nearest, INFINITY)) - static_cast<double>(nearest));
      CHECK(std::fabs(static_cast<double>(expected[i]) - exact) <= 2 * ulp, "%s(%.9g) = %.9g, %.9g", kProbeNames[op],
            in[i], expected[i], exact);
    }
  }
}

// Binary input and output for the tests that compare with Python's gguf.
int convert(const std::string& mode, Format format, int64_t rows, int64_t cols) {
  std::vector<uint8_t> blocks(static_cast<size_t>(rows) * source_row_bytes(format, cols));
  std::vector<float> values(static_cast<size_t>(rows * cols));
  const auto read = [](void* p, size_t bytes) { return std::fread(p, 1, bytes, stdin) == bytes; };
  if (mode == "unpack") {
    if (!read(blocks.data(), blocks.size())) return 2;
    PackedWeight weight(format, rows, cols);
    pack(weight, blocks.data(), 0, weight.view().panels);
    unpack_rows(weight.view(), 0, rows, values.data(), static_cast<size_t>(cols));
    return std::fwrite(values.data(), 4, values.size(), stdout) == values.size() ? 0 : 2;
  }
  if (!read(values.data(), values.size() * 4)) return 2;
  quantize_rows_to(format, values.data(), rows, cols, blocks.data());
  return std::fwrite(blocks.data(), 1, blocks.size(), stdout) == blocks.size() ? 0 : 2;
}

void check_step() {
  const uint64_t plain = step_digest(*kernels_for(Isa::Scalar).step);
  CHECK(plain != 0, "attention shows how its keys were cut");
  for (Isa isa : isas()) CHECK(step_digest(*kernels_for(isa).step) == plain, "the step kernels of %s differ from the plain ones", isa_name(isa));
  absorb(&plain, sizeof plain);
}

// What an adapter adds, by its definition, in every cut of its rows and panels.
void check_adapt() {
  constexpr int64_t kRows = 11, kOutputs = 53, kStride = 57;
  for (const int64_t rank : {1, 3, 16, 33}) {
    for (const bool gained : {false, true}) {
      Random random(static_cast<uint64_t>(2 * rank + gained));
      std::vector<float> b(kOutputs * rank), gain(kOutputs), h(kRows * (rank + 2)), before(kRows * kStride);
      for (std::vector<float>* v : {&b, &gain, &h, &before})
        for (float& x : *v) x = random.uniform();
      PackedWeight weight(Format::F32, kOutputs, rank);
      pack(weight, b.data(), 0, weight.view().panels);
      std::vector<float> expected = before;
      for (int64_t t = 0; t < kRows; t++) {
        for (int64_t n = 0; n < kOutputs; n++) {
          float& y = expected[t * kStride + n];
          for (int64_t k = 0; k < rank; k++) y = std::fma(b[n * rank + k], h[t * (rank + 2) + k], y);
          if (gained) y *= gain[n];
        }
      }
      for (Isa isa : isas()) {
        for (const auto [rows, panels] : {std::pair<int64_t, int64_t>{kRows, 4}, {1, 4}, {7, 1}}) {
          std::vector<float> y = before;
          for (int64_t t = 0; t < kRows; t += rows)
            for (int64_t p = 0; p < 4; p += panels)
              kernels_for(isa).adapt(weight.view(), gained ? gain.data() : nullptr, h.data(), static_cast<size_t>(rank + 2), t,
                                     std::min(kRows, t + rows), p, p + panels, y.data(), kStride);
          CHECK(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) == 0, "adapt on %s, rank %ld", isa_name(isa), static_cast<long>(rank));
        }
      }
      absorb(expected.data(), expected.size() * sizeof(float));
    }
  }
}

}  // namespace

// The loops that measure a machine's peaks, on operands of ones: all that they claim to multiply arrives in their sums.
void check_ceilings() {
  const std::vector<int8_t> bytes(kProbeOperandBytes, 1);
  const std::vector<float> floats(kProbeOperandBytes / sizeof(float), 1.0f);
  std::vector<int32_t> numbers(1024);
  int32_t sum = 0;
  for (size_t i = 0; i < numbers.size(); i++) sum += numbers[i] = static_cast<int32_t>(i * i);
  for (Isa isa : isas()) {
    const auto& probe = *kernels_for(isa).probe;
    CHECK(probe.read(numbers.data(), 1024) == sum, "read on %s", isa_name(isa));
    for (int64_t rounds : {1, 9}) {
      CHECK(probe.dot(bytes.data(), rounds) == rounds * probe.dot_round, "dot on %s", isa_name(isa));
      CHECK(probe.fma(floats.data(), rounds) == static_cast<float>(rounds * probe.fma_round), "fma on %s", isa_name(isa));
    }
  }
}

int main(int argc, char** argv) {
  if (argc == 5) return convert(argv[1], parse_format(argv[2]).value(), std::atol(argv[3]), std::atol(argv[4]));
  check_probes();
  check_activations();
  check_partial_activations();
  check_step();
  check_ceilings();
  check_adapt();
  check_all_linear(argc == 2 && argv[1] == std::string("brief"));
  for (Isa isa : isas()) std::printf("%s ", isa_name(isa));
  std::printf("digest %016llx checks %ld\n", static_cast<unsigned long long>(digest), checks);
  return 0;
}
