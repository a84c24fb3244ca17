// The native engine for Python: plain arrays in and out, shapes and dtypes checked here, nothing of a step left to Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <tuple>

#include "program.h"

namespace nb = nanobind;
using namespace gemmary;

namespace {

using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pairs = nb::ndarray<const int32_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;

Rows rows_named(const std::string& name) {
  if (name == "T") return Rows::tokens;
  if (name == "R") return Rows::outputs;
  if (name == "S") return Rows::sequences;
  if (name == "P") return Rows::places;
  if (name == "G") return Rows::groups;
  throw std::invalid_argument("rows are T, R, S, P or G, not " + name);
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512})
    if (isa_available(isa)) names.emplace_back(isa_name(isa));
  return names;
}

std::shared_ptr<Runtime> make_runtime(int threads, const std::optional<std::string>& isa) {
  if (threads < 0 || threads > 1024) throw std::invalid_argument("threads must be between 1 and 1024");
  Isa chosen = best_isa();
  if (isa) {
    const std::optional<Isa> parsed = parse_isa(*isa);
    if (!parsed || !isa_available(*parsed)) {
      std::string names;
      for (const std::string& name : available_isas()) names += (names.empty() ? "" : ", ") + name;
      throw std::invalid_argument("this machine has no instruction set called " + *isa + ": choose one of " + names);
    }
    chosen = *parsed;
  }
  return std::make_shared<Runtime>(threads == 0 ? available_processors() : threads, chosen);
}

KvType kv_type_named(const std::string& name) {
  if (name == "float32") return KvType::float32;
  if (name == "bfloat16") return KvType::bfloat16;
  if (name == "int8") return KvType::int8;
  throw std::invalid_argument("keys and values are float32, bfloat16 or int8, not " + name);
}

Format format_named(const std::string& name) {
  const std::optional<Format> format = parse_format(name);
  if (!format) throw std::invalid_argument("the native engine does not know the weight format " + name);
  return *format;
}

size_t panels_bytes(const std::string& name, int64_t rows, int64_t cols) {
  if (rows < 1 || cols < 1) throw std::invalid_argument("a weight needs rows and columns");
  return packed_bytes(format_named(name), rows, cols);
}

std::shared_ptr<PackedWeight> make_weight(Runtime& runtime, const std::string& name, int64_t rows, int64_t cols) {
  panels_bytes(name, rows, cols);
  const std::lock_guard lock(runtime.busy);
  return std::make_shared<PackedWeight>(format_named(name), rows, cols, runtime.weights);
}

void pack_rows(PackedWeight& weight, Runtime& runtime, int64_t row, const Bytes& data) {
  const PackedView& w = weight.view();
  const size_t row_bytes = source_row_bytes(w.format, w.cols);
  const int64_t rows = static_cast<int64_t>(data.nbytes() / row_bytes), first = row / kPanelRows;
  if (weight.data() == nullptr) throw std::invalid_argument("these panels are somebody else's");
  if (row < 0 || rows < 1 || row + rows > w.rows || data.nbytes() % row_bytes != 0 || row % kPanelRows != 0 ||
      (rows % kPanelRows != 0 && row + rows != w.rows))
    throw std::invalid_argument("a weight's bytes do not match its shape");
  const uint8_t* source = data.data();
  nb::gil_scoped_release release;
  const int64_t panels = (rows + kPanelRows - 1) / kPanelRows, each = 16;
  const std::lock_guard lock(runtime.busy);
  runtime.pool.run((panels + each - 1) / each, [&](int64_t task, int) {
    pack(weight, source + task * each * kPanelRows * row_bytes, first + task * each, first + std::min(panels, (task + 1) * each));
  });
}

// Fills `out` [rows, cols] with the values of as many rows from `row` on: float32, or the bits of bfloat16.
template <class T>
void dequantize_rows(const PackedWeight& weight, Runtime& runtime, int64_t row, const nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>& out) {
  const PackedView& w = weight.view();
  const int64_t rows = static_cast<int64_t>(out.shape(0));
  if (static_cast<int64_t>(out.shape(1)) != w.cols || row < 0 || row + rows > w.rows)
    throw std::invalid_argument("a weight has no such rows, or the array for them another width");
  T* const to = out.data();
  nb::gil_scoped_release release;
  const int64_t first = row / kPanelRows, panels = (row + rows + kPanelRows - 1) / kPanelRows - first;
  const std::lock_guard lock(runtime.busy);
  runtime.pool.run(rows == 0 ? 0 : panels, [&](int64_t task, int) {
    const int64_t begin = std::max(row, (first + task) * kPanelRows), end = std::min(row + rows, (first + task + 1) * kPanelRows);
    runtime.kernels.dequantize(w, begin, end - begin, to + (begin - row) * w.cols, static_cast<size_t>(w.cols), sizeof(T) == 2);
  });
}

PackedView view_of(const std::string& name, int64_t rows, int64_t cols, const Bytes& panels) {
  if (panels.nbytes() != panels_bytes(name, rows, cols)) throw std::invalid_argument("a weight's panels do not match its shape");
  return packed_view(format_named(name), rows, cols, panels.data());
}

std::shared_ptr<PackedWeight> borrow_panels(const std::string& name, int64_t rows, int64_t cols, const Bytes& panels) {
  const PackedView view = view_of(name, rows, cols, panels);
  return std::make_shared<PackedWeight>(view.format, rows, cols, std::make_shared<Bytes>(panels), view.data);
}

using Indices = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Array = nb::ndarray<nb::numpy, uint8_t>;
Array unpack_to_source(const std::string& name, int64_t rows, int64_t cols, const Bytes& panels, const Indices& index) {
  const PackedView view = view_of(name, rows, cols, panels);
  const size_t shape[2] = {index.shape(0), source_row_bytes(view.format, cols)};
  for (size_t i = 0; i < shape[0]; i++)
    if (index.data()[i] < 0 || index.data()[i] >= rows) throw std::invalid_argument("a weight has no such row");
  auto memory = std::make_unique<uint8_t[]>(shape[0] * shape[1]);
  {
    nb::gil_scoped_release release;
    for (size_t i = 0; i < shape[0]; i++) unpack(view, index.data()[i], 1, memory.get() + i * shape[1]);
  }
  uint8_t* const source = memory.release();
  return Array(source, 2, shape, nb::capsule(source, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); }));
}

// What lets a step compute this head's largest logits only (head.h). False, and nothing has changed, where the weight does not allow it.
bool add_high_halves(PackedWeight& weight, Runtime& runtime) {
  if (!HighHalves::possible(weight.view())) return false;
  nb::gil_scoped_release release;
  auto high = std::make_shared<HighHalves>(weight.view());
  const int64_t panels = weight.view().panels, each = 16;
  std::atomic<bool> good = true;
  const std::lock_guard lock(runtime.busy);
  runtime.pool.run((panels + each - 1) / each, [&](int64_t task, int) {
    if (!high->copy(weight.view(), task * each, std::min(panels, (task + 1) * each))) good = false;
  });
  if (good) weight.high = std::move(high);
  return good;
}

using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
std::shared_ptr<Lora> make_lora(Weight a, Weight b, float scale, const std::optional<Vector>& gain) {
  if (!a || !b || a->view().format != Format::F32 || b->view().format != Format::F32)
    throw std::invalid_argument("an adapter is two float32 matrices");
  Lora lora{std::move(a), std::move(b), scale, {}};
  if (gain) lora.gain.assign(gain->data(), gain->data() + gain->shape(0));
  return std::make_shared<Lora>(std::move(lora));
}

void run(Program& program, const Ints& tokens, const Ints& positions, const std::vector<Pairs>& visible, const Ints& outputs,
         const Pairs& sequences, const std::vector<KvCache*>& caches, const std::vector<Floats>& externals, int64_t candidates,
         const std::optional<Ints>& adapters, const std::optional<Ints>& places) {
  StepInputs step;
  if (candidates < 0) throw std::invalid_argument("a step cannot be asked for fewer than no candidates");
  step.candidates = candidates;
  step.tokens = tokens.data();
  step.positions = positions.data();
  step.outputs = outputs.data();
  step.sequences = sequences.data();
  step.rows = {static_cast<int64_t>(tokens.shape(0)), static_cast<int64_t>(outputs.shape(0)), static_cast<int64_t>(sequences.shape(0)),
               places ? static_cast<int64_t>(places->shape(0)) : 0, static_cast<int64_t>(tokens.shape(0)) / program.group()};
  if (places) step.places = places->data();
  if (positions.shape(0) != tokens.shape(0)) throw std::invalid_argument("tokens and positions differ in number");
  if (adapters) {
    if (adapters->shape(0) != sequences.shape(0)) throw std::invalid_argument("a step has an adapter's number for each sequence");
    step.adapters = adapters->data();
  }
  for (const Pairs& pairs : visible) {
    if (pairs.shape(0) != tokens.shape(0)) throw std::invalid_argument("tokens and visible keys differ in number");
    step.visible.push_back(pairs.data());
  }
  for (KvCache* cache : caches) {
    if (cache == nullptr) throw std::invalid_argument("a sequence has no cache");
    step.caches.push_back(cache);
  }
  for (const Floats& array : externals)
    step.externals.push_back({array.data(), static_cast<int64_t>(array.shape(0)), static_cast<int64_t>(array.shape(1))});
  nb::gil_scoped_release release;
  program.run(step);
}

Program make_program(std::shared_ptr<Runtime> runtime, const std::vector<std::pair<std::string, int64_t>>& slots,
                     const std::vector<std::tuple<std::string, int64_t, int64_t, bool>>& buffers, int kinds, int externals) {
  std::vector<Slot> slot_list;
  for (const auto& [rows, width] : slots) slot_list.push_back({rows_named(rows), width});
  std::vector<Buffer> buffer_list;
  for (const auto& [rows, width, place, external] : buffers) buffer_list.push_back({rows_named(rows), width, place, external});
  if (kinds < 0 || externals < 0) throw std::invalid_argument("a program has no negative number of inputs");
  return Program(std::move(runtime), std::move(slot_list), std::move(buffer_list), kinds, externals);
}

std::vector<float> floats_of(const Vector& weight) { return {weight.data(), weight.data() + weight.shape(0)}; }
std::vector<float> gain_of(const Vector& weight) {
  std::vector<float> gain = floats_of(weight);
  for (float& value : gain) value += 1.0f;
  return gain;
}

}  // namespace

void bind_native(nb::module_& module) {
  module.attr("PACKED_VERSION") = kPackedVersion;
  module.def("packed_bytes", &panels_bytes, nb::arg("format"), nb::arg("rows"), nb::arg("cols"));
  module.def("unpack", &unpack_to_source, nb::arg("format"), nb::arg("rows"), nb::arg("cols"), nb::arg("panels").noconvert(),
             nb::arg("index").noconvert());
  module.def("available_processors", &available_processors);
  module.def("available_isas", &available_isas);

  nb::class_<Runtime>(module, "Runtime", "Threads, kernels and working memory of one engine.")
      .def(nb::new_(&make_runtime), nb::arg("threads"), nb::arg("isa").none())
      .def_prop_ro("threads", [](const Runtime& r) { return r.pool.threads(); })
      .def_prop_ro("working_bytes",
                   [](const Runtime& r) { return r.buffers.bytes() + r.quantized.bytes() + r.projected.bytes() + r.scratch.bytes(); })
      .def_prop_ro("isa", [](const Runtime& r) { return std::string(r.kernels.name); });

  nb::class_<PackedWeight>(module, "PackedWeight", "A matrix as the kernels read it.")
      .def(nb::new_(&make_weight), nb::arg("runtime"), nb::arg("format"), nb::arg("rows"), nb::arg("cols"))
      .def_static("borrow", &borrow_panels, nb::arg("format"), nb::arg("rows"), nb::arg("cols"), nb::arg("panels").noconvert())
      .def("pack", &pack_rows, nb::arg("runtime"), nb::arg("row"), nb::arg("data").noconvert())
      .def("dequantize", &dequantize_rows<float>, nb::arg("runtime"), nb::arg("row"), nb::arg("out").noconvert())
      .def("dequantize", &dequantize_rows<uint16_t>, nb::arg("runtime"), nb::arg("row"), nb::arg("out").noconvert())
      .def_prop_ro("panels", [](const PackedWeight& w) {
        return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(w.view().data, {w.bytes()}, nb::find(w));
      })
      .def_prop_ro("rows", [](const PackedWeight& w) { return w.view().rows; })
      .def_prop_ro("cols", [](const PackedWeight& w) { return w.view().cols; })
      .def_prop_ro("nbytes", &PackedWeight::bytes)
      .def("add_high_halves", &add_high_halves, nb::arg("runtime"))
      .def_prop_ro("high_nbytes", [](const PackedWeight& w) { return w.high ? w.high->bytes() : size_t{0}; });

  nb::class_<Lora>(module, "Lora", "A low-rank adapter of one matrix.")
      .def(nb::new_(&make_lora), nb::arg("a"), nb::arg("b"), nb::arg("scale"), nb::arg("gain").none())
      .def_prop_ro("nbytes", [](const Lora& l) { return l.a->bytes() + l.b->bytes() + l.gain.size() * sizeof(float); });

  nb::class_<KvCache>(module, "KvCache", "Keys and values of one sequence.")
      .def("__init__",
           [](KvCache* self, const std::vector<int64_t>& positions, int kv_heads, int head_dim, int64_t capacity, const std::string& dtype,
              bool shared) { new (self) KvCache(positions, kv_heads, head_dim, capacity, kv_type_named(dtype), shared); },
           nb::arg("positions"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("capacity"), nb::arg("dtype"), nb::arg("shared"))
      .def_static("bytes_of",
                  [](const std::vector<int64_t>& positions, int kv_heads, int head_dim, int64_t capacity, const std::string& dtype) {
                    return static_cast<int64_t>(KvCache::bytes_of(positions, kv_heads, head_dim, capacity, kv_type_named(dtype)));
                  },
                  nb::arg("positions"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("capacity"), nb::arg("dtype"))
      .def_prop_ro("length", &KvCache::length)
      .def_prop_ro("capacity", &KvCache::capacity)
      .def_prop_ro("nbytes", &KvCache::bytes)
      .def("reset", &KvCache::reset)
      .def("truncate", [](KvCache& cache, int64_t length) {
        if (length < 0 || length > cache.length()) throw std::invalid_argument("a cache can only be cut to fewer tokens than it holds");
        cache.truncate(length);
      }, nb::arg("length"))
      .def_prop_ro("oldest", nb::overload_cast<>(&KvCache::oldest, nb::const_))
      .def("copy", &KvCache::copy, nb::arg("other"), nb::arg("length"), nb::call_guard<nb::gil_scoped_release>());

  using Numbers = std::vector<int>;
  nb::class_<Program>(module, "Program", "A recorded model.")
      .def(nb::new_([](std::shared_ptr<Runtime> runtime, const std::vector<std::pair<std::string, int64_t>>& slots,
                       const std::vector<std::tuple<std::string, int64_t, int64_t, bool>>& buffers, int kinds, int externals) {
             return std::make_shared<Program>(make_program(std::move(runtime), slots, buffers, kinds, externals));
           }),
           nb::arg("runtime"), nb::arg("slots"), nb::arg("buffers"), nb::arg("kinds"), nb::arg("externals"))
      .def("embed", [](Program& p, std::string label, int out, Weight table, float scale) {
        p.append(Embed{std::move(table), scale, out}, std::move(label));
      })
      .def("linear", [](Program& p, std::string label, Numbers out, int x, std::vector<Weight> weights, Loras adapters,
                        const std::vector<std::optional<Vector>>& biases) {
        Linear linear{x, std::move(weights), std::move(out), std::move(adapters), {}};
        for (const std::optional<Vector>& bias : biases) linear.biases.push_back(bias ? floats_of(*bias) : std::vector<float>());
        p.append(std::move(linear), std::move(label));
      })
      .def("rms_norm", [](Program& p, std::string label, int out, int x, const Vector& weight, float eps) {
        p.append(RmsNorm{x, gain_of(weight), eps, out}, std::move(label));
      })
      .def("layer_norm", [](Program& p, std::string label, int out, int x, const Vector& gain, const Vector& shift, float eps) {
        p.append(LayerNorm{x, floats_of(gain), floats_of(shift), eps, out}, std::move(label));
      })
      .def("rope_angles", [](Program& p, std::string label, int out, std::vector<float> frequencies) {
        p.append(RopeAngles{std::move(frequencies), out}, std::move(label));
      })
      .def("rope", [](Program& p, std::string label, int out, int x, int angles) { p.append(Rope{x, angles, out}, std::move(label)); })
      .def("attention", [](Program& p, std::string label, int out, int q, int k, int v, int layer, int kind, int heads, int kv_heads,
                           float scale, float softcap) {
        p.append(Attention{q, k, v, out, layer, kind, heads, kv_heads, scale, softcap}, std::move(label));
      })
      .def("gelu", [](Program& p, std::string label, int out, int x) { p.append(Gelu{x, out}, std::move(label)); })
      .def("geglu", [](Program& p, std::string label, int out, int gate, int up) { p.append(Geglu{gate, up, out}, std::move(label)); })
      .def("add", [](Program& p, std::string label, int out, int a, int b) { p.append(Add{a, b, out}, std::move(label)); })
      .def("place", [](Program& p, std::string label, int out, int x, int values) { p.append(Place{x, values, out}, std::move(label)); })
      .def("pool", [](Program& p, std::string label, int out, int x, int64_t count) { p.append(PoolRows{x, count, out}, std::move(label)); })
      .def("take", [](Program& p, std::string label, int out, int x) { p.append(Take{x, out}, std::move(label)); })
      .def("softcap", [](Program& p, std::string label, int out, int x, float cap) {
        p.append(Softcap{x, cap, out}, std::move(label));
      })
      .def("mean_pool", [](Program& p, std::string label, int out, int x) { p.append(MeanPool{x, out}, std::move(label)); })
      .def("l2_normalize", [](Program& p, std::string label, int out, int x) { p.append(L2Normalize{x, out}, std::move(label)); })
      .def("run", &run, nb::arg("tokens").noconvert(), nb::arg("positions").noconvert(), nb::arg("visible").noconvert(),
           nb::arg("outputs").noconvert(), nb::arg("sequences").noconvert(), nb::arg("caches"), nb::arg("externals").noconvert(),
           nb::arg("candidates") = 0, nb::arg("adapters").noconvert().none() = nb::none(),
           nb::arg("places").noconvert().none() = nb::none())
      .def("set_profiling", &Program::set_profiling)
      .def("profile", [](const Program& p) {
        std::vector<std::tuple<std::string, double, int64_t, int64_t, int64_t, int64_t, int64_t>> rows;
        for (const auto& [label, seconds, cost] : p.profile())
          rows.emplace_back(label, seconds, cost.weight_bytes, cost.cache_bytes, cost.activation_bytes, cost.int8_operations,
                            cost.float_operations);
        return rows;
      });
}
