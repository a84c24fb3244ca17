// The pool and the executor under a thread sanitizer: jobs of many sizes, and a program with attention, on more threads than processors.
#define GEMMARY_ISA_SCALAR
#include "attention_impl.h"

#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <stdexcept>

#include "program.h"

namespace gemmary {
// The executor's way to kernels, without the linear ones that this program does not have.
const Kernels kTest{.isa = Isa::Scalar, .name = "scalar", .step = &scalar::kStepKernels};
const Kernels& kernels_for(Isa) { return kTest; }
}  // namespace gemmary

using namespace gemmary;

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

// Plain, unsynchronised memory: the sanitizer sees it if one job's tasks are not over before the next begins.
void jobs(int threads) {
  Pool pool(threads);
  std::vector<int64_t> values(70000);
  int64_t expected = 0;
  for (int64_t count : {0, 1, 2, 3, 17, 64, 1000, 70000, 5, 1}) {
    for (int repeat = 0; repeat < (count > 1000 ? 1 : 40); repeat++) {
      pool.run(count, [&](int64_t task, int thread) {
        require(thread >= 0 && thread < threads, "thread number");
        values[task] += 1 + task % 3;
      });
      for (int64_t task = 0; task < count; task++) expected += 1 + task % 3;
    }
  }
  require(std::accumulate(values.begin(), values.end(), int64_t{0}) == expected, "each task runs once");
}

// x -> norm -> attention over two sequences' caches -> add, in two steps.
std::vector<float> program(int threads) {
  const int tokens = 40, heads = 4, kv_heads = 2, head_dim = 6, width = heads * head_dim, kv_width = kv_heads * head_dim;
  Program program(std::make_shared<Runtime>(threads, Isa::Scalar), {{Rows::tokens, width}, {Rows::tokens, head_dim}},
                  {{Rows::tokens, width, 0, true}, {Rows::tokens, kv_width, 1, true}, {Rows::tokens, width, 2, true},
                   {Rows::tokens, width, 0, false}, {Rows::tokens, head_dim, 1, false}},
                  1, 3);
  program.append(RmsNorm{0, std::vector<float>(head_dim, 1.5f), 1e-6f, 3}, "norm");
  program.append(RopeAngles{{1.0f, 0.5f, 0.25f}, 4}, "angles");
  program.append(Rope{3, 4, 3}, "rope");
  program.append(Attention{3, 1, 1, 3, 0, 0, heads, kv_heads, 0.4f, 2.0f}, "attention");
  program.append(Add{0, 3, 2}, "add");
  KvCache a({16 + tokens}, kv_heads, head_dim, 1000, KvType::int8, false), b({1000}, kv_heads, head_dim, 1000, KvType::float32, false);
  std::vector<float> x(tokens * width), kv(tokens * kv_width), y(tokens * width), all;
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i % 17) - 8;
  for (size_t i = 0; i < kv.size(); i++) kv[i] = static_cast<float>(i % 11) - 5;
  for (int step = 0; step < 4; step++) {
    const int split = 30, start_a = step * split, start_b = step * (tokens - split);
    std::vector<int32_t> ids(tokens), positions, visible, sequences = {0, split, split, tokens};
    for (int t = 0; t < tokens; t++) positions.push_back(t < split ? start_a + t : start_b + t - split);
    for (int position : positions) visible.insert(visible.end(), {position < 5 ? 0 : position - 5, position});
    StepInputs inputs;
    inputs.tokens = ids.data();
    inputs.positions = positions.data();
    inputs.sequences = sequences.data();
    inputs.visible = {visible.data()};
    inputs.rows = {tokens, 0, 2, 0, tokens};
    inputs.caches = {&a, &b};
    inputs.externals = {{x.data(), tokens, width}, {kv.data(), tokens, kv_width}, {y.data(), tokens, width}};
    program.run(inputs);
    all.insert(all.end(), y.begin(), y.end());
  }
  return all;
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 8}) jobs(threads);
  const std::vector<float> alone = program(1);
  for (int threads : {2, 4}) require(program(threads) == alone, "the same results on any number of threads");
  std::puts("no race");
}
