// A recorded model: instructions on numbered buffers, run for any number of tokens without a word of Python.
//
// T tokens, R rows whose logits are wanted, S sequences, P rows from elsewhere (of pictures) and G groups of consecutive tokens are numbers
// of the run. A buffer is float32 [T or R or S or P or G, width]. It lives in a slot that buffers of other times share, or is an array that the caller brings (what the program
// is fed beside tokens, the results, the taps).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "kv_cache.h"
#include "runtime.h"

namespace gemmary {

enum class Rows : uint8_t { tokens, outputs, sequences, places, groups };

struct Slot {
  Rows rows;
  int64_t width;
};

struct Buffer {
  Rows rows;
  int64_t width;
  int64_t place;  // a slot's number, or that of an array of the caller
  bool external;
};

using Weight = std::shared_ptr<const PackedWeight>;

// The instructions, one for each op of ops/spec.py that computes. Numbers are buffers unless said otherwise.
struct Embed { Weight table; float scale; int out; };
struct Linear {  // several weights that read the same x
  int x;
  std::vector<Weight> weights;
  std::vector<int> out;
  Loras adapters;
  std::vector<std::vector<float>> biases;  // of each weight; empty where it has none
};
struct RmsNorm { int x; std::vector<float> gain; float eps; int out; };       // gain: 1 + weight, for each head of x where it is shorter
struct LayerNorm { int x; std::vector<float> gain, shift; float eps; int out; };
struct RopeAngles { std::vector<float> frequencies; int out; };
struct Rope { int x, angles, out; };
struct Attention {
  int q, k, v, out;
  int layer, kind;  // of the cache, and which of the run's `visible` arrays applies
  int heads, kv_heads;
  float scale, softcap;  // softcap 0: none
};
struct Gelu { int x, out; };
struct Geglu { int gate, up, out; };
struct Add { int a, b, out; };
struct Place { int x, values, out; };  // x, with the run's `places` replaced by the rows of values
struct PoolRows { int x; int64_t count; int out; };  // the mean of each `count` tokens, a group
struct Take { int x, out; };
struct Softcap { int x; float cap; int out; };
struct MeanPool { int x, out; };
struct L2Normalize { int x, out; };
using Instruction = std::variant<Embed, Linear, RmsNorm, LayerNorm, RopeAngles, Rope, Attention, Gelu, Geglu, Add, Place, PoolRows, Take, Softcap,
                                 MeanPool, L2Normalize>;

// One step's arrays. Everything is checked by Program::run before anything is computed.
struct StepInputs {
  const int32_t* tokens = nullptr;      // [T]
  const int32_t* positions = nullptr;   // [T]
  const int32_t* outputs = nullptr;     // [R]
  const int32_t* sequences = nullptr;   // [S][2]: first row, one past the last; together they are 0 … T in order
  std::vector<const int32_t*> visible;  // for each kind [T][2]
  const int32_t* places = nullptr;      // [P] rows of T, ascending
  std::array<int64_t, 5> rows{};        // T, R, S, P, G
  std::vector<KvCache*> caches;         // [S], or empty for a program without attention
  struct External {
    float* data;
    int64_t rows, width;
  };
  std::vector<External> externals;
  const int32_t* adapters = nullptr;    // [S] number of each sequence's adapter, 0: none; null: none for all
  int64_t candidates = 0;               // 0: every logit; k: a lone row may hold -inf where a logit is not among its k largest
};

// The least that an instruction has to do in a step: bytes moved, each operand once, and operations, two for a multiply-add.
struct Cost {
  int64_t weight_bytes = 0;      // as packed
  int64_t cache_bytes = 0;       // keys and values that any of the step's rows sees, and those it adds
  int64_t activation_bytes = 0;  // buffers read and written
  int64_t int8_operations = 0;   // of products of quantized weights and activations
  int64_t float_operations = 0;  // all others; a function such as the tangent counts as one

  Cost& operator+=(const Cost& other);
};

// What the profile says of one instruction, over all steps since it began.
struct Profiled {
  std::string label;
  double seconds = 0;
  Cost cost;
};

class Program {
 public:
  // Throws std::invalid_argument if a buffer does not fit its slot.
  Program(std::shared_ptr<Runtime> runtime, std::vector<Slot> slots, std::vector<Buffer> buffers, int kinds, int externals);

  // Appends an instruction; throws std::invalid_argument if its shapes disagree. `label` names it in the profile.
  void append(Instruction instruction, std::string label);

  // Tokens of a group; 1 where nothing is pooled.
  int64_t group() const { return group_; }

  // Runs a step and takes its keys into the caches. Throws std::invalid_argument, before anything has changed, if the inputs are not a
  // step of this program, and std::bad_alloc. Callers on several threads wait for one another.
  void run(const StepInputs& step);

  // Time and cost of each instruction since the last call that switched profiling on.
  void set_profiling(bool on);
  std::vector<Profiled> profile() const;

 private:
  friend class Executor;
  friend class Costing;
  struct Recorded {
    Instruction work;
    Profiled profiled;
  };
  // Query rows of one sequence and heads of one key head that are attended together.
  struct AttentionBlock {
    int sequence;
    int rows;
    int64_t row;
    int kv_head;
    int head, heads;
  };
  // Spans of keys that one task of a kind of layer takes such a block through; where they are not all, what they give goes to
  // `partials`, a number of floats, and is merged by a task for each query.
  struct AttentionPiece {
    int block;
    int64_t begin, end;
    int64_t partials;  // -1: none
    int64_t partial_stride;
  };
  struct Merge {
    int block, query;
    int64_t partials, spans;
  };
  struct StoreBlock {
    int sequence;
    int rows;
    int64_t row;
  };

  void check(const StepInputs& step) const;
  void check_cache(const StepInputs& step, int64_t sequence) const;
  void place_buffers(const StepInputs& step);
  void plan_attention(const StepInputs& step);
  void plan_pieces(const StepInputs& step, int kind, bool few);
  void reserve(const StepInputs& step);
  Cost cost(const Instruction& instruction, const StepInputs& step) const;

  std::shared_ptr<Runtime> runtime_;
  std::vector<Slot> slots_;
  std::vector<Buffer> buffers_;
  std::vector<Recorded> instructions_;
  int kinds_;
  int externals_;
  size_t adapters_ = 0;  // of every product that has any
  int64_t group_ = 1;
  int heads_ = 0, kv_heads_ = 0, head_dim_ = 0;  // of every attention; 0 without one
  bool profiling_ = false;

  // Filled by run, kept so that a step allocates nothing.
  std::vector<float*> addresses_;
  std::vector<size_t> offsets_;
  std::vector<AttentionBlock> blocks_;
  std::vector<std::vector<AttentionPiece>> pieces_;  // for each kind
  std::vector<std::vector<Merge>> merges_;
  std::vector<StoreBlock> stores_;
  std::byte* scratch_ = nullptr;  // scratch_stride_ bytes for each thread
  size_t scratch_stride_ = 0;
  float* partials_ = nullptr;  // partial_floats_ of them, shared by all threads
  int64_t partial_floats_ = 0;
  std::byte* quantized_ = nullptr;
  AdapterStep adapter_step_;
  float* projected_ = nullptr;
  HeadPlan head_plan_;
  std::vector<float> head_largest_, head_values_;  // the highest bound of each panel; logits of the panels computed first
  std::vector<int32_t> head_first_;
  int head_pause_ = 0, head_misses_ = 0;  // steps that will not try to bound the head; tries in a row that did not pay
};

}  // namespace gemmary
