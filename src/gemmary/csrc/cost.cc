// What each instruction has to move and compute in a step, from its shapes and the step's rows alone.
//
// An operand counts once however often a kernel comes back to it, so bytes over bandwidth and operations over peak are bounds that no
// kernel beats; activations are counted too, which a cache may hold.
#include <algorithm>

#include "program.h"

namespace gemmary {

Cost& Cost::operator+=(const Cost& other) {
  weight_bytes += other.weight_bytes;
  cache_bytes += other.cache_bytes;
  activation_bytes += other.activation_bytes;
  int8_operations += other.int8_operations;
  float_operations += other.float_operations;
  return *this;
}

class Costing {
 public:
  Costing(const Program& program, const StepInputs& step) : program_(program), step_(step) {}

  // A row lies interleaved with fifteen others, so a token reads its whole panel.
  Cost operator()(const Embed& i) const {
    Cost cost = elementwise({i.out}, i.out, 1);
    cost.weight_bytes = rows(i.out) * static_cast<int64_t>(i.table->view().panel_bytes);
    return cost;
  }

  Cost operator()(const Linear& i) const {
    Cost cost;
    if (rows(i.x) == 0) return cost;
    cost.activation_bytes = bytes(i.x);
    for (size_t n = 0; n < i.weights.size(); n++) {
      const PackedView& weight = i.weights[n]->view();
      cost.weight_bytes += static_cast<int64_t>(i.weights[n]->bytes());
      cost.activation_bytes += bytes(i.out[n]);
      cost.weight_bytes += static_cast<int64_t>(i.biases[n].size() * sizeof(float));
      cost.float_operations += rows(i.x) * static_cast<int64_t>(i.biases[n].size());
      (format_info(weight.format).quantized ? cost.int8_operations : cost.float_operations) += 2 * rows(i.x) * weight.rows * weight.cols;
    }
    for (const auto& adapters : i.adapters)
      for (size_t n = 0; n < adapters.size(); n++) add_adapter(cost, adapters[n].get(), static_cast<int>(n) + 1);
    return cost;
  }

  // Squares and their sum, the root's inverse, the gain.
  Cost operator()(const RmsNorm& i) const { return elementwise({i.x, i.out}, i.out, 4); }
  // Two sums, the difference, the square, the root's inverse, gain and shift.
  Cost operator()(const LayerNorm& i) const { return elementwise({i.x, i.out}, i.out, 7); }
  // A product, a sine and a cosine for each pair; every one of them is written as two elements.
  Cost operator()(const RopeAngles& i) const {
    Cost cost = elementwise({i.out}, i.out, 0);
    cost.float_operations = 3 * elements(i.out) / 2;
    return cost;
  }
  Cost operator()(const Rope& i) const { return elementwise({i.x, i.angles, i.out}, i.out, 3); }

  // The two products: queries by the keys they see, weights by their values. Keys that several rows of a sequence see are read once.
  Cost operator()(const Attention& i) const {
    Cost cost;
    for (int number : {i.q, i.k, i.v, i.out}) cost.activation_bytes += bytes(number);
    if (program_.heads_ == 0 || step_.caches.empty()) return cost;
    const int32_t* visible = step_.visible[i.kind];
    int64_t seen = 0, read = 0;
    for (int64_t s = 0; s < step_.rows[2]; s++) {
      const int64_t begin = step_.sequences[2 * s], end = step_.sequences[2 * s + 1];
      if (begin == end) continue;
      int32_t first = visible[2 * begin], last = visible[2 * begin + 1];
      for (int64_t t = begin; t < end; t++) {
        seen += visible[2 * t + 1] - visible[2 * t] + 1;
        first = std::min(first, visible[2 * t]);
        last = std::max(last, visible[2 * t + 1]);
      }
      read += last - first + 1;
    }
    const KvHead head = step_.caches[0]->head(i.layer, 0);
    const int64_t element = head.type == KvType::float32 ? 4 : head.type == KvType::bfloat16 ? 2 : 1, head_dim = head.head_dim;
    // A key has a scale for each of its groups, a value one.
    const int64_t scales = head.type == KvType::int8 ? 4 * ((head_dim + kKeyGroup - 1) / kKeyGroup + 1) : 0;
    cost.cache_bytes = (read + step_.rows[0]) * i.kv_heads * (2 * head_dim * element + scales);
    cost.float_operations = 4 * seen * program_.buffers_[i.q].width;
    return cost;
  }

  Cost operator()(const Gelu& i) const { return elementwise({i.x, i.out}, i.out, 9); }
  // The tanh form of GELU, ten operations as ops/spec.py writes it, the product with `up` among them.
  Cost operator()(const Geglu& i) const { return elementwise({i.gate, i.up, i.out}, i.out, 10); }
  Cost operator()(const Add& i) const { return elementwise({i.a, i.b, i.out}, i.out, 1); }
  Cost operator()(const Place& i) const { return elementwise({i.values, i.values}, i.out, 0); }
  Cost operator()(const PoolRows& i) const { return elementwise({i.x, i.out}, i.x, 1); }
  Cost operator()(const Take& i) const { return elementwise({i.out, i.out}, i.out, 0); }
  Cost operator()(const Softcap& i) const { return elementwise({i.x, i.out}, i.out, 3); }
  Cost operator()(const MeanPool& i) const { return elementwise({i.x, i.out}, i.x, 1); }
  Cost operator()(const L2Normalize& i) const { return elementwise({i.x, i.out}, i.out, 3); }

 private:
  int64_t rows(int number) const { return step_.rows[static_cast<int>(program_.buffers_[number].rows)]; }
  int64_t elements(int number) const { return rows(number) * program_.buffers_[number].width; }
  int64_t bytes(int number) const { return elements(number) * static_cast<int64_t>(sizeof(float)); }

  // Both of its matrices, where a row of the step has it.
  void add_adapter(Cost& cost, const Lora* lora, int number) const {
    int64_t count = 0;
    for (int64_t s = 0; lora && step_.adapters && s < step_.rows[2]; s++)
      if (step_.adapters[s] == number) count += step_.sequences[2 * s + 1] - step_.sequences[2 * s];
    if (count == 0) return;
    const PackedView &a = lora->a->view(), &b = lora->b->view();
    cost.weight_bytes += static_cast<int64_t>(lora->a->bytes() + lora->b->bytes());
    cost.float_operations += 2 * count * a.rows * (a.cols + b.rows);
  }

  // Buffers that are read or written, and so many operations for each element of `of`.
  Cost elementwise(std::initializer_list<int> touched, int of, int64_t operations) const {
    Cost cost;
    for (int number : touched) cost.activation_bytes += bytes(number);
    cost.float_operations = operations * elements(of);
    return cost;
  }

  const Program& program_;
  const StepInputs& step_;
};

Cost Program::cost(const Instruction& instruction, const StepInputs& step) const { return std::visit(Costing(*this, step), instruction); }

}  // namespace gemmary
