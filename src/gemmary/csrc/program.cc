// Recording a program and checking what it is asked to run. Everything that later indexes memory is checked here, once.
#include "program.h"

#include <algorithm>
#include <stdexcept>

namespace gemmary {
namespace {

constexpr int64_t kMaxRows = int64_t{1} << 20;
constexpr int64_t kMaxWidth = int64_t{1} << 24;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void require(bool holds, const char* message) {
  if (!holds) refuse(message);
}

// Checks one instruction against the buffers it names.
struct Checker {
  const std::vector<Buffer>& buffers;
  int kinds;

  const Buffer& at(int number) const {
    require(number >= 0 && number < static_cast<int>(buffers.size()), "an instruction names a buffer that does not exist");
    return buffers[number];
  }
  void same(int a, int b) const {
    require(at(a).rows == at(b).rows && at(a).width == at(b).width, "an instruction's operands differ in shape");
  }
  void rows(int number, Rows expected) const { require(at(number).rows == expected, "a buffer has rows of the wrong kind"); }
  void width(int number, int64_t expected) const { require(at(number).width == expected, "a buffer has the wrong width"); }
  // Quantized rows are whole groups: what is missing of the last one is zeros on both sides.
  void reads(int number, const PackedView& weight) const {
    const int64_t group = format_info(weight.format).quantized ? kGroup : 1;
    require((at(number).width + group - 1) / group * group == weight.cols, "a buffer has the wrong width");
  }

  void operator()(const Embed& i) const {
    require(i.table != nullptr, "a weight is missing");
    rows(i.out, Rows::tokens);
    width(i.out, i.table->view().cols);
  }
  void operator()(const Linear& i) const {
    require(!i.weights.empty() && i.weights.size() == i.out.size(), "a linear instruction needs one output for each weight");
    for (size_t n = 0; n < i.weights.size(); n++) {
      require(i.weights[n] != nullptr, "a weight is missing");
      reads(i.x, i.weights[n]->view());
      width(i.out[n], i.weights[n]->view().rows);
      rows(i.out[n], at(i.x).rows);
    }
    require(i.biases.size() == i.weights.size(), "a linear instruction has a bias, or none, for each weight");
    for (size_t n = 0; n < i.biases.size(); n++)
      require(i.biases[n].empty() || static_cast<int64_t>(i.biases[n].size()) == i.weights[n]->view().rows, "a bias does not fit its weight");
    if (i.adapters.empty()) return;
    rows(i.x, Rows::tokens);
    require(i.adapters.size() == i.weights.size(), "a linear instruction has adapters for each weight or for none");
    for (size_t n = 0; n < i.adapters.size(); n++) {
      require(i.adapters[n].size() == i.adapters[0].size(), "every weight has as many adapters");
      for (const std::shared_ptr<const Lora>& lora : i.adapters[n]) {
        if (!lora) continue;
        const PackedView &weight = i.weights[n]->view(), &a = lora->a->view(), &b = lora->b->view();
        require(a.cols == at(i.x).width && b.rows == weight.rows && a.rows == b.cols, "an adapter does not fit its weight");
        require(lora->gain.empty() || static_cast<int64_t>(lora->gain.size()) == weight.rows, "an adapter's gain does not fit its weight");
      }
    }
  }
  void operator()(const RmsNorm& i) const {
    same(i.x, i.out);
    require(!i.gain.empty() && at(i.x).width % static_cast<int64_t>(i.gain.size()) == 0, "a norm's weight does not divide its rows");
  }
  void operator()(const LayerNorm& i) const {
    same(i.x, i.out);
    for (const std::vector<float>* weight : {&i.gain, &i.shift}) width(i.x, static_cast<int64_t>(weight->size()));
  }
  void operator()(const RopeAngles& i) const {
    rows(i.out, Rows::tokens);
    width(i.out, 2 * static_cast<int64_t>(i.frequencies.size()));
  }
  void operator()(const Rope& i) const {
    same(i.x, i.out);
    rows(i.x, Rows::tokens);
    rows(i.angles, Rows::tokens);
    require(at(i.angles).width > 0 && at(i.x).width % at(i.angles).width == 0, "the rotation's angles do not divide its rows");
  }
  void operator()(const Attention& i) const {
    for (int number : {i.q, i.k, i.v, i.out}) rows(number, Rows::tokens);
    same(i.q, i.out);
    same(i.k, i.v);
    require(i.kv_heads > 0 && i.heads > 0 && i.heads % i.kv_heads == 0, "query heads do not divide into key heads");
    require(at(i.q).width % i.heads == 0 && at(i.k).width % i.kv_heads == 0 &&
                at(i.q).width / i.heads == at(i.k).width / i.kv_heads,
            "queries and keys differ in head_dim");
    require(i.layer >= 0 && i.kind >= 0 && i.kind < kinds, "an attention names a layer or a kind that does not exist");
  }
  void operator()(const Gelu& i) const { same(i.x, i.out); }
  void operator()(const Geglu& i) const {
    same(i.gate, i.up);
    same(i.gate, i.out);
  }
  void operator()(const Add& i) const {
    same(i.a, i.b);
    same(i.a, i.out);
  }
  void operator()(const Place& i) const {
    same(i.x, i.out);
    rows(i.x, Rows::tokens);
    rows(i.values, Rows::places);
    width(i.values, at(i.x).width);
  }
  void operator()(const PoolRows& i) const {
    rows(i.x, Rows::tokens);
    rows(i.out, Rows::groups);
    width(i.out, at(i.x).width);
    require(i.count > 0, "a group has at least one token");
  }
  void operator()(const Take& i) const {
    rows(i.x, Rows::tokens);
    rows(i.out, Rows::outputs);
    width(i.out, at(i.x).width);
  }
  void operator()(const Softcap& i) const {
    same(i.x, i.out);
    require(i.cap > 0, "a softcap must be positive");
  }
  void operator()(const MeanPool& i) const {
    rows(i.x, Rows::tokens);
    rows(i.out, Rows::sequences);
    width(i.out, at(i.x).width);
  }
  void operator()(const L2Normalize& i) const { same(i.x, i.out); }
};

}  // namespace

Program::Program(std::shared_ptr<Runtime> runtime, std::vector<Slot> slots, std::vector<Buffer> buffers, int kinds, int externals)
    : runtime_(std::move(runtime)), slots_(std::move(slots)), buffers_(std::move(buffers)), kinds_(kinds), externals_(externals) {
  for (const Slot& slot : slots_) require(slot.width > 0 && slot.width <= kMaxWidth, "a slot's width is out of range");
  for (const Buffer& buffer : buffers_) {
    require(buffer.width > 0 && buffer.width <= kMaxWidth, "a buffer's width is out of range");
    const int64_t places = buffer.external ? externals_ : static_cast<int64_t>(slots_.size());
    require(buffer.place >= 0 && buffer.place < places, "a buffer's place does not exist");
    if (buffer.external) continue;
    const Slot& slot = slots_[buffer.place];
    require(slot.rows == buffer.rows && slot.width >= buffer.width, "a buffer does not fit its slot");
  }
  addresses_.resize(buffers_.size());
  offsets_.resize(slots_.size());
  pieces_.resize(static_cast<size_t>(kinds_));
  merges_.resize(static_cast<size_t>(kinds_));
}

void Program::append(Instruction instruction, std::string label) {
  std::visit(Checker{buffers_, kinds_}, instruction);
  if (const Attention* attention = std::get_if<Attention>(&instruction)) {
    const int head_dim = static_cast<int>(buffers_[attention->q].width / attention->heads);
    require(heads_ == 0 || (heads_ == attention->heads && kv_heads_ == attention->kv_heads && head_dim_ == head_dim),
            "all attentions of a program have the same heads");
    heads_ = attention->heads;
    kv_heads_ = attention->kv_heads;
    head_dim_ = head_dim;
  }
  if (const PoolRows* pool = std::get_if<PoolRows>(&instruction)) {
    require(group_ == 1 || group_ == pool->count, "all groups of a program are of one size");
    group_ = pool->count;
  }
  if (const Linear* linear = std::get_if<Linear>(&instruction); linear && !linear->adapters.empty()) {
    require(adapters_ == 0 || adapters_ == linear->adapters[0].size(), "all products have the same adapters");
    adapters_ = linear->adapters[0].size();
  }
  instructions_.push_back({std::move(instruction), {std::move(label), 0, {}}});
}

void Program::check(const StepInputs& step) const {
  const auto [tokens, outputs, sequences, places, groups] = step.rows;
  require(tokens > 0, "a step needs at least one token");
  require(groups * group_ == tokens, "the step's tokens do not divide into groups");
  require(tokens <= kMaxRows && outputs <= kMaxRows && sequences <= kMaxRows && places <= kMaxRows, "a step takes at most 2^20 tokens: split it");
  require(static_cast<int>(step.visible.size()) == kinds_, "the step lacks the visible keys of some kind of layer");
  require(static_cast<int>(step.externals.size()) == externals_, "the step lacks an array");
  int64_t row = 0;
  for (int64_t s = 0; s < sequences; s++) {
    require(step.sequences[2 * s] == row && step.sequences[2 * s + 1] >= row, "the step's sequences are not consecutive rows");
    row = step.sequences[2 * s + 1];
  }
  require(row == tokens, "the step's sequences do not cover its tokens");
  for (int64_t s = 0; step.adapters && s < sequences; s++) {
    if (step.adapters[s] < 0 || static_cast<size_t>(step.adapters[s]) > adapters_)
      refuse("a sequence asks for adapter " + std::to_string(step.adapters[s]) + " and the model was loaded with " + std::to_string(adapters_));
  }
  for (int64_t r = 0; r < outputs; r++)
    require(step.outputs[r] >= 0 && step.outputs[r] < tokens, "an output row is not a row of the step");
  for (int64_t p = 0; p < places; p++)
    require(step.places[p] > (p ? step.places[p - 1] : -1) && step.places[p] < tokens, "places are not ascending rows of the step");
  for (const Buffer& buffer : buffers_) {
    if (!buffer.external) continue;
    const StepInputs::External& array = step.externals[buffer.place];
    require(array.rows == step.rows[static_cast<int>(buffer.rows)] && array.width == buffer.width, "an array has the wrong shape");
  }
  for (const Recorded& recorded : instructions_) {
    if (const Embed* embed = std::get_if<Embed>(&recorded.work)) {
      const int64_t size = embed->table->view().rows;
      for (int64_t t = 0; t < tokens; t++) {
        if (step.tokens[t] < 0 || step.tokens[t] >= size)
          refuse("token id " + std::to_string(step.tokens[t]) + " is outside the vocabulary of " + std::to_string(size));
      }
    }
    if (std::holds_alternative<MeanPool>(recorded.work)) {
      for (int64_t s = 0; s < sequences; s++)
        require(step.sequences[2 * s + 1] > step.sequences[2 * s], "an empty sequence has no mean");
    }
  }
  if (heads_ == 0) return;
  require(static_cast<int64_t>(step.caches.size()) == sequences, "the step needs one cache for each sequence");
  std::vector<const KvCache*> distinct(step.caches.begin(), step.caches.end());
  std::sort(distinct.begin(), distinct.end());
  require(std::adjacent_find(distinct.begin(), distinct.end()) == distinct.end(),
          "two sequences of a step share one cache: give each its own");
  for (int64_t s = 0; s < sequences; s++) check_cache(step, s);
}

void Program::check_cache(const StepInputs& step, int64_t sequence) const {
  const KvCache& cache = *step.caches[sequence];
  const int64_t begin = step.sequences[2 * sequence], end = step.sequences[2 * sequence + 1];
  require(cache.kv_heads() == kv_heads_ && cache.head_dim() == head_dim_, "a cache was made for another model");
  const int64_t after = cache.length() + end - begin;
  if (after > cache.capacity())
    refuse("the cache holds " + std::to_string(cache.capacity()) + " tokens and this step would make it " + std::to_string(after) +
           ": make a larger cache or send fewer tokens");
  for (int64_t t = begin; t < end; t++) {
    if (step.positions[t] != cache.length() + t - begin)
      refuse("the sequence's cache holds " + std::to_string(cache.length()) + " tokens, so the next position is not " +
             std::to_string(step.positions[t] - (t - begin)));
  }
  for (const Recorded& recorded : instructions_) {
    const Attention* attention = std::get_if<Attention>(&recorded.work);
    if (attention == nullptr) continue;
    require(attention->layer < cache.layers(), "a cache was made for another model");
    const int64_t oldest = std::max(cache.oldest(attention->layer), after - cache.positions(attention->layer));
    const int32_t* visible = step.visible[attention->kind];
    for (int64_t t = begin; t < end; t++) {
      const int32_t first = visible[2 * t], last = visible[2 * t + 1];
      require(first >= 0 && first <= last && last < after, "a token sees keys that do not exist");
      if (first < oldest)
        refuse("a chunk of " + std::to_string(end - begin) + " tokens overruns a windowed layer's cache: send at most " +
               std::to_string(std::max<int64_t>(1, end - begin - (oldest - first))) + " tokens of this sequence in one step");
    }
  }
}

void Program::set_profiling(bool on) {
  const std::lock_guard lock(runtime_->busy);
  profiling_ = on;
  for (Recorded& recorded : instructions_) recorded.profiled = {std::move(recorded.profiled.label), 0, {}};
}

std::vector<Profiled> Program::profile() const {
  const std::lock_guard lock(runtime_->busy);
  std::vector<Profiled> result;
  for (const Recorded& recorded : instructions_) result.push_back(recorded.profiled);
  return result;
}

}  // namespace gemmary
