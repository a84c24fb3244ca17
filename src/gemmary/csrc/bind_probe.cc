// The machine's ceilings for Python: how long the loops of probe.h take on all threads of a runtime.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <chrono>
#include <numeric>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime.h"

namespace nb = nanobind;
using namespace gemmary;

namespace {

constexpr int64_t kPiece = 1 << 18;  // integers that a thread reads at a time: 1 MiB
constexpr int64_t kTasksPerThread = 4;

using Integers = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// body(task) -> number, as many times as `tasks` says. Returns the numbers' sum and the seconds that all of it took.
template <typename Number, typename Body>
std::pair<Number, double> timed(Runtime& runtime, int64_t tasks, Body body) {
  std::vector<Number> sums(static_cast<size_t>(tasks));
  const std::lock_guard lock(runtime.busy);
  const auto start = std::chrono::steady_clock::now();
  runtime.pool.run(tasks, [&](int64_t task, int) { sums[task] = body(task); });
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {std::accumulate(sums.begin(), sums.end(), Number{0}), seconds};
}

std::pair<uint32_t, double> time_read(Runtime& runtime, const Integers& data) {
  const int64_t count = static_cast<int64_t>(data.shape(0));
  if (count == 0 || count % kPiece != 0) throw std::invalid_argument("a probe reads whole MiB");
  const int32_t* from = data.data();
  nb::gil_scoped_release release;
  return timed<uint32_t>(runtime, count / kPiece, [&](int64_t task) {
    return static_cast<uint32_t>(runtime.kernels.probe->read(from + task * kPiece, kPiece));
  });
}

// Operands of ones for every loop.
template <typename Element>
std::vector<Element> ones() {
  return std::vector<Element>(kProbeOperandBytes / sizeof(Element), Element{1});
}

std::tuple<uint32_t, int64_t, double> time_dot(Runtime& runtime, int64_t rounds) {
  if (rounds < 1) throw std::invalid_argument("a probe needs at least one round");
  nb::gil_scoped_release release;
  const std::vector<int8_t> operands = ones<int8_t>();
  const int64_t tasks = kTasksPerThread * runtime.pool.threads();
  const auto [sum, seconds] = timed<uint32_t>(runtime, tasks, [&](int64_t) {
    return static_cast<uint32_t>(runtime.kernels.probe->dot(operands.data(), rounds));
  });
  return {sum, tasks * rounds * runtime.kernels.probe->dot_round, seconds};
}

std::tuple<double, int64_t, double> time_fma(Runtime& runtime, int64_t rounds) {
  if (rounds < 1) throw std::invalid_argument("a probe needs at least one round");
  nb::gil_scoped_release release;
  const std::vector<float> operands = ones<float>();
  const int64_t tasks = kTasksPerThread * runtime.pool.threads();
  const auto [sum, seconds] =
      timed<double>(runtime, tasks, [&](int64_t) { return double{runtime.kernels.probe->fma(operands.data(), rounds)}; });
  return {sum, tasks * rounds * runtime.kernels.probe->fma_round, seconds};
}

}  // namespace

void bind_probe(nb::module_& module) {
  module.def("probe_read", &time_read, nb::arg("runtime"), nb::arg("data").noconvert());
  module.def("probe_dot", &time_dot, nb::arg("runtime"), nb::arg("rounds"));
  module.def("probe_fma", &time_fma, nb::arg("runtime"), nb::arg("rounds"));
}
