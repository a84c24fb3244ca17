// Running a program: each instruction is cut into tasks by the amount of work, and the pool runs the tasks.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>

#include "program.h"

namespace gemmary {
namespace {

constexpr int64_t kGrain = 16384;          // elements of an elementwise task
constexpr int64_t kStoreRows = 64;         // keys and values that a task writes
constexpr int64_t kLeastQueries = 24, kMostQueries = 96;  // query rows times heads that pass over the keys together: the more, …
constexpr int64_t kTasksPerAttention = 128;  // … the less is read, as long as there are about this many tasks
constexpr int64_t kFewQueries = 64;        // of a step that cuts each of its tasks into spans of the keys, …
constexpr int64_t kFewTasks = 16;          // … to have about this many
constexpr int64_t kRowsPerTask = 128;      // of a matrix product: their activations stay in the second cache
constexpr int64_t kTasksPerLinear = 16;    // wanted of a large one
constexpr int64_t kMinTaskBytes = 64 << 10, kMaxTaskBytes = 512 << 10;  // of weights
constexpr int64_t kMostCandidates = 8;      // with more candidates or fewer panels for each, bounding a head costs more than it saves
constexpr int64_t kPanelsPerCandidate = 16;  // (docs/output-head.md)
constexpr int64_t kTasksPerHead = 64;
constexpr int64_t kPanelsWorthAPause = 4096;  // a smaller head takes no time worth a thought
constexpr int kLongestPause = 64;           // steps

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
size_t align_up(size_t n) { return (n + 63) / 64 * 64; }

// The `count` panels with the highest bounds, of equals the first ones.
void highest_panels(const std::vector<float>& bounds, int64_t count, std::vector<int32_t>& chosen) {
  // At least `count` panels reach what the count-th highest of these blocks' highest reaches: few are left to compare.
  const int64_t panels = static_cast<int64_t>(bounds.size()), each = std::max<int64_t>(1, panels / (4 * count));
  std::vector<float> tops;
  for (int64_t p = 0; p < panels; p += each)
    tops.push_back(*std::max_element(bounds.begin() + p, bounds.begin() + std::min(panels, p + each)));
  std::nth_element(tops.begin(), tops.begin() + count - 1, tops.end(), std::greater<>());
  chosen.clear();
  for (int64_t p = 0; p < panels; p++)
    if (bounds[p] >= tops[count - 1]) chosen.push_back(static_cast<int32_t>(p));
  std::nth_element(chosen.begin(), chosen.begin() + count - 1, chosen.end(),
                   [&](int32_t a, int32_t b) { return bounds[a] != bounds[b] ? bounds[a] > bounds[b] : a < b; });
  chosen.resize(static_cast<size_t>(count));
}

}  // namespace

// Executes instructions for one step. Every loop over tasks is one parallel region.
class Executor {
 public:
  Executor(Program& program, const StepInputs& step)
      : program_(program), step_(step), pool_(program.runtime_->pool), kernels_(program.runtime_->kernels), step_kernels_(*kernels_.step) {}

  void operator()(const Embed& i) {
    const int64_t width = buffer(i.out).width;
    spread(rows(i.out), width, [&](int64_t begin, int64_t end) {
      embed_rows(i.table->view(), step_.tokens, begin, end, i.scale, data(i.out), static_cast<size_t>(width));
    });
  }

  void operator()(const Linear& i) {
    const int64_t count = rows(i.x), width = buffer(i.x).width;
    if (count == 0) return;
    Activations x{data(i.x), static_cast<size_t>(width), {}};
    int64_t bytes = 0;
    bool quantized = false;
    for (const Weight& weight : i.weights) {
      quantized = quantized || format_info(weight->view().format).quantized;
      bytes += weight->view().panels * static_cast<int64_t>(weight->view().panel_bytes);
    }
    AdapterStep& adapters = program_.adapter_step_;
    if (quantized) x.q = quantized_activations_at(program_.quantized_, count, width);
    adapters.plan(i.adapters, program_.projected_, kRowsPerTask);
    const int64_t each = std::max<int64_t>(1, kGrain / width), quantizing = quantized ? ceil_div(count, each) : 0;
    pool_.run(quantizing + adapters.tasks(), [&](int64_t task, int thread) {
      if (task < quantizing) kernels_.quantize_activations(x.x, x.ldx, x.q, task * each, std::min(count, (task + 1) * each));
      else adapters.project(task - quantizing, x, kernels_, scratch(thread));
    });
    if (i.weights.size() == 1 && i.weights[0]->high && i.biases[0].empty() && count == 1 && step_.candidates > 0 && largest_rows(i, x)) return;
    // A task is some panels of one weight for up to kRowsPerTask rows.
    const int64_t row_blocks = ceil_div(count, kRowsPerTask);
    const int64_t task_bytes = std::clamp(bytes * row_blocks / kTasksPerLinear, kMinTaskBytes, kMaxTaskBytes);
    const auto panels_each = [&](const PackedView& view) {
      return std::max<int64_t>(1, task_bytes / static_cast<int64_t>(view.panel_bytes));
    };
    int64_t tasks = 0;
    for (const Weight& weight : i.weights) tasks += ceil_div(weight->view().panels, panels_each(weight->view())) * row_blocks;
    pool_.run(tasks, [&](int64_t task, int thread) {
      for (size_t n = 0; n < i.weights.size(); n++) {
        const PackedView& view = i.weights[n]->view();
        const int64_t each = panels_each(view), own = ceil_div(view.panels, each) * row_blocks;
        if (task >= own) {
          task -= own;
          continue;
        }
        const int64_t t0 = task % row_blocks * kRowsPerTask, t1 = std::min(count, t0 + kRowsPerTask);
        const int64_t p0 = task / row_blocks * each, p1 = std::min(view.panels, p0 + each);
        kernels_.linear(view, x, t0, t1, p0, p1, data(i.out[n]), static_cast<size_t>(view.rows), scratch(thread));
        adapters.add(n, kernels_, t0, t1, p0, p1, data(i.out[n]), static_cast<size_t>(view.rows));
        if (const std::vector<float>& bias = i.biases[n]; !bias.empty()) {
          const int64_t first = p0 * kPanelRows, end = std::min(view.rows, p1 * kPanelRows);
          step_kernels_.add_bias(data(i.out[n]) + t0 * view.rows + first, static_cast<size_t>(view.rows), bias.data() + first, t1 - t0, end - first);
        }
        return;
      }
    });
  }

  void operator()(const RmsNorm& i) {
    const int64_t width = static_cast<int64_t>(i.gain.size()), count = rows(i.x) * (buffer(i.x).width / width);
    spread(count, width, [&](int64_t begin, int64_t end) {
      step_kernels_.rms_norm(data(i.x) + begin * width, i.gain.data(), data(i.out) + begin * width, end - begin, static_cast<int>(width),
                             i.eps);
    });
  }

  void operator()(const LayerNorm& i) {
    const int64_t width = buffer(i.x).width;
    spread(rows(i.x), width, [&](int64_t begin, int64_t end) {
      step_kernels_.layer_norm(data(i.x) + begin * width, i.gain.data(), i.shift.data(), data(i.out) + begin * width, end - begin,
                               static_cast<int>(width), i.eps);
    });
  }

  // Trigonometry from the C library, in this unit only: the same bits whichever kernels run.
  void operator()(const RopeAngles& i) {
    const int64_t half = static_cast<int64_t>(i.frequencies.size());
    spread(rows(i.out), 32 * half, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        float* row = data(i.out) + t * 2 * half;
        for (int64_t pair = 0; pair < half; pair++) {
          const float angle = static_cast<float>(step_.positions[t]) * i.frequencies[pair];
          row[pair] = std::cos(angle);
          row[half + pair] = std::sin(angle);
        }
      }
    });
  }

  void operator()(const Rope& i) {
    const int64_t width = buffer(i.x).width, head_dim = buffer(i.angles).width;
    spread(rows(i.x), width, [&](int64_t begin, int64_t end) {
      step_kernels_.rope(data(i.x) + begin * width, data(i.angles) + begin * head_dim, data(i.out) + begin * width, end - begin,
                         static_cast<int>(width / head_dim), static_cast<int>(head_dim));
    });
  }

  void operator()(const Attention& i) {
    store_keys(i);
    const int64_t stride = buffer(i.q).width, head_dim = stride / i.heads;
    const int32_t* visible = step_.visible[i.kind];
    const std::vector<Program::AttentionPiece>& pieces = program_.pieces_[i.kind];
    pool_.run(static_cast<int64_t>(pieces.size()), [&](int64_t task, int thread) {
      const Program::AttentionPiece& piece = pieces[task];
      const Program::AttentionBlock& block = program_.blocks_[piece.block];
      const int64_t offset = block.row * stride + block.head * head_dim;
      step_kernels_.attend({step_.caches[block.sequence]->head(i.layer, block.kv_head), data(i.q) + offset, data(i.out) + offset, stride,
                            visible + 2 * block.row, block.rows, block.heads, i.scale, i.softcap, piece.begin, piece.end,
                            piece.partials < 0 ? nullptr : program_.partials_ + piece.partials, piece.partial_stride,
                            static_cast<float*>(scratch(thread))});
    });
    const std::vector<Program::Merge>& merges = program_.merges_[i.kind];
    pool_.run(static_cast<int64_t>(merges.size()), [&](int64_t task, int) {
      const Program::Merge& merge = merges[task];
      const Program::AttentionBlock& block = program_.blocks_[merge.block];
      step_kernels_.merge_spans(program_.partials_ + merge.partials, merge.spans, static_cast<int>(head_dim),
                                data(i.out) + (block.row + merge.query / block.heads) * stride + (block.head + merge.query % block.heads) * head_dim);
    });
  }

  void operator()(const Gelu& i) {
    flat(i.out, [&](int64_t at, int64_t n) { step_kernels_.gelu(data(i.x) + at, data(i.out) + at, n); });
  }
  void operator()(const Geglu& i) {
    flat(i.out, [&](int64_t at, int64_t n) { step_kernels_.geglu(data(i.gate) + at, data(i.up) + at, data(i.out) + at, n); });
  }
  void operator()(const Add& i) {
    flat(i.out, [&](int64_t at, int64_t n) { step_kernels_.add(data(i.a) + at, data(i.b) + at, data(i.out) + at, n); });
  }
  void operator()(const Softcap& i) {
    flat(i.out, [&](int64_t at, int64_t n) { step_kernels_.softcap(data(i.x) + at, data(i.out) + at, n, i.cap); });
  }

  void operator()(const Place& i) {
    const int64_t width = buffer(i.x).width;
    const auto copy = [&](const float* from, float* to, int64_t count) { std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float)); };
    if (data(i.out) != data(i.x)) flat(i.out, [&](int64_t at, int64_t n) { copy(data(i.x) + at, data(i.out) + at, n); });
    spread(rows(i.values), width, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; p++) copy(data(i.values) + p * width, data(i.out) + step_.places[p] * width, width);
    });
  }

  void operator()(const PoolRows& i) {
    const int64_t width = buffer(i.x).width, each = i.count * width;
    spread(rows(i.out), each, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; g++) step_kernels_.mean_rows(data(i.x) + g * each, data(i.out) + g * width, i.count, static_cast<int>(width));
    });
  }

  void operator()(const Take& i) {
    const int64_t width = buffer(i.x).width;
    spread(rows(i.out), width, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        std::memcpy(data(i.out) + r * width, data(i.x) + step_.outputs[r] * width, static_cast<size_t>(width) * sizeof(float));
    });
  }

  void operator()(const MeanPool& i) {
    const int64_t width = buffer(i.x).width;
    pool_.run(rows(i.out), [&](int64_t s, int) {
      const int64_t begin = step_.sequences[2 * s], end = step_.sequences[2 * s + 1];
      step_kernels_.mean_rows(data(i.x) + begin * width, data(i.out) + s * width, end - begin, static_cast<int>(width));
    });
  }

  void operator()(const L2Normalize& i) {
    const int64_t width = buffer(i.x).width;
    spread(rows(i.x), width, [&](int64_t begin, int64_t end) {
      step_kernels_.l2_normalize(data(i.x) + begin * width, data(i.out) + begin * width, end - begin, static_cast<int>(width));
    });
  }

 private:
  const Buffer& buffer(int number) const { return program_.buffers_[number]; }
  int64_t rows(int number) const { return step_.rows[static_cast<int>(buffer(number).rows)]; }
  float* data(int number) const { return program_.addresses_[number]; }
  void* scratch(int thread) const { return program_.scratch_ + static_cast<size_t>(thread) * program_.scratch_stride_; }

  // The rows of a lone output that can be among its `candidates` largest, exactly as linear has them, and -inf for the others (head.h).
  // False if that cannot be told or would not pay: where many rows are nearly as likely, most panels would be computed after all. Then it
  // is not tried for a while, up to kLongestPause steps. Every decision rests on values that do not depend on the threads.
  bool largest_rows(const Linear& i, const Activations& x) {
    const PackedView& view = i.weights[0]->view();
    const int64_t panels = view.panels, wanted = step_.candidates;
    if (wanted > kMostCandidates || wanted * kPanelsPerCandidate > panels) return false;
    if (program_.head_pause_ > 0) {
      program_.head_pause_--;
      return false;
    }
    if (!program_.head_plan_.prepare(x.q)) return false;
    const HeadRow row = program_.head_plan_.row(x.q.data);
    std::vector<float>& largest = program_.head_largest_;
    largest.resize(static_cast<size_t>(panels));
    float* y = data(i.out[0]);
    const int64_t each = ceil_div(panels, kTasksPerHead);
    const auto exact = [&](int64_t p, int thread) {
      kernels_.linear(view, x, 0, 1, p, p + 1, y, static_cast<size_t>(view.rows), scratch(thread));
    };
    pool_.run(ceil_div(panels, each), [&](int64_t task, int) {
      kernels_.head->bound(i.weights[0]->high->view(), row, task * each, std::min(panels, (task + 1) * each), y, largest.data());
    });
    // The panels with the highest bounds are computed first. What k of their rows reach, the k largest reach.
    std::vector<int32_t>& first = program_.head_first_;
    highest_panels(largest, wanted, first);
    pool_.run(wanted, [&](int64_t task, int thread) { exact(first[task], thread); });
    std::vector<float>& values = program_.head_values_;
    values.clear();
    for (int32_t p : first) {
      values.insert(values.end(), y + 16 * p, y + 16 * p + 16);
      largest[p] = INFINITY;  // done
    }
    std::nth_element(values.begin(), values.begin() + wanted - 1, values.end(), std::greater<>());
    const float threshold = values[wanted - 1];
    if (panels >= kPanelsWorthAPause && 4 * std::count_if(largest.begin(), largest.end(), [&](float bound) { return bound >= threshold; }) > panels) {
      program_.head_pause_ = std::min(kLongestPause, 1 << std::min(program_.head_misses_++, 6));
      return false;
    }
    program_.head_misses_ = 0;
    pool_.run(ceil_div(panels, each), [&](int64_t task, int thread) {
      const int64_t end = std::min(panels, (task + 1) * each);
      // Two panels ahead of the one in work are being fetched: their lines are far apart.
      const auto next = [&](int64_t p) {
        while (p < end && (largest[p] < threshold || largest[p] == INFINITY)) p++;
        if (p < end) kernels_.head->fetch(view, row, p);
        return p;
      };
      int64_t soon = next(task * each), later = next(soon + 1);
      for (int64_t p = task * each; p < end; p++) {
        if (largest[p] == INFINITY) continue;
        bool may = false;
        if (p == soon) {
          soon = later, later = next(later + 1);
          may = kernels_.head->refine(view, row, p, threshold, y);
        }
        if (may) exact(p, thread);
        else std::fill_n(y + 16 * p, 16, -INFINITY);
      }
    });
    return true;
  }

  // body(begin, end) over `count` rows, about kGrain elements at a time.
  template <typename Body>
  void spread(int64_t count, int64_t width, Body body) {
    const int64_t each = std::max<int64_t>(1, kGrain / width);
    pool_.run(ceil_div(count, each), [&](int64_t task, int) { body(task * each, std::min(count, (task + 1) * each)); });
  }

  // body(offset, elements) over a whole buffer.
  template <typename Body>
  void flat(int number, Body body) {
    const int64_t count = rows(number) * buffer(number).width;
    pool_.run(ceil_div(count, kGrain), [&](int64_t task, int) { body(task * kGrain, std::min(kGrain, count - task * kGrain)); });
  }

  void store_keys(const Attention& i) {
    const int64_t stride = buffer(i.k).width, head_dim = stride / i.kv_heads, count = static_cast<int64_t>(program_.stores_.size());
    const auto store = [&](int64_t task, int) {
      const Program::StoreBlock& block = program_.stores_[task % count];
      const int head = static_cast<int>(task / count);
      const KvCache& cache = *step_.caches[block.sequence];
      const int64_t offset = block.row * stride + head * head_dim, row = block.row - step_.sequences[2 * block.sequence];
      step_kernels_.store_kv(cache.head(i.layer, head), data(i.k) + offset, data(i.v) + offset, stride, cache.length() + row, block.rows);
    };
    if (rows(i.k) * stride > kGrain) pool_.run(count * i.kv_heads, store);
    else for (int64_t task = 0; task < count * i.kv_heads; task++) store(task, 0);
  }

  Program& program_;
  const StepInputs& step_;
  Pool& pool_;
  const Kernels& kernels_;
  const StepKernels& step_kernels_;
};

void Program::place_buffers(const StepInputs& step) {
  size_t total = 0;
  for (size_t n = 0; n < slots_.size(); n++) {
    offsets_[n] = total;
    total += align_up(static_cast<size_t>(step.rows[static_cast<int>(slots_[n].rows)] * slots_[n].width) * sizeof(float));
  }
  std::byte* base = runtime_->buffers.reserve(total);
  for (size_t n = 0; n < buffers_.size(); n++) {
    const Buffer& buffer = buffers_[n];
    addresses_[n] = buffer.external ? step.externals[buffer.place].data : reinterpret_cast<float*>(base + offsets_[buffer.place]);
  }
}

// The rows of a key head go one after another, while its keys are in the second cache. Later rows see more of them, so they go first: the
// last tasks to finish are short.
void Program::plan_attention(const StepInputs& step) {
  blocks_.clear();
  stores_.clear();
  partial_floats_ = 0;
  if (heads_ == 0) return;
  const int group = heads_ / kv_heads_;
  const int64_t queries = std::clamp(step.rows[0] * heads_ / kTasksPerAttention, kLeastQueries, kMostQueries);
  const int64_t rows_each = std::max<int64_t>(1, queries / group);
  for (int64_t s = 0; s < step.rows[2]; s++) {
    const int64_t begin = step.sequences[2 * s], end = step.sequences[2 * s + 1];
    for (int kv_head = 0; kv_head < kv_heads_; kv_head++) {
      for (int64_t piece = ceil_div(end - begin, rows_each); piece-- > 0;) {
        const int64_t row = begin + piece * rows_each;
        blocks_.push_back({static_cast<int>(s), static_cast<int>(std::min(rows_each, end - row)), row, kv_head, kv_head * group, group});
      }
    }
    for (int64_t row = begin; row < end; row += kStoreRows)
      stores_.push_back({static_cast<int>(s), static_cast<int>(std::min(kStoreRows, end - row)), row});
  }
  for (int kind = 0; kind < kinds_; kind++) plan_pieces(step, kind, step.rows[0] * heads_ <= kFewQueries);
}

// A few queries of a long text are shared by cutting its keys. How they are cut cannot be seen in the results.
void Program::plan_pieces(const StepInputs& step, int kind, bool few) {
  std::vector<AttentionPiece>& pieces = pieces_[kind];
  std::vector<Merge>& merges = merges_[kind];
  pieces.clear();
  merges.clear();
  const int32_t* visible = step.visible[kind];
  const int64_t wanted = few ? ceil_div(kFewTasks, static_cast<int64_t>(blocks_.size())) : 1;
  const int64_t partial = ceil_div(head_dim_, 16) * 16 + kPartialExtra;
  int64_t floats = 0;  // the layers use the same memory in turn
  for (int number = 0; number < static_cast<int>(blocks_.size()); number++) {
    const AttentionBlock& block = blocks_[number];
    int32_t first = visible[2 * block.row], last = visible[2 * block.row + 1];
    for (int64_t t = block.row; t < block.row + block.rows; t++) {
      first = std::min(first, visible[2 * t]);
      last = std::max(last, visible[2 * t + 1]);
    }
    const int64_t begin = first / kAttentionSpan, spans = last / kAttentionSpan + 1 - begin, parts = std::min(wanted, spans);
    const int64_t stride = spans * partial;
    for (int64_t part = 0; part < parts; part++) {
      const int64_t from = spans * part / parts, to = spans * (part + 1) / parts;
      pieces.push_back({number, begin + from, begin + to, parts > 1 ? floats + from * partial : -1, stride});
    }
    if (parts == 1) continue;
    for (int query = 0; query < block.rows * block.heads; query++) merges.push_back({number, query, floats + query * stride, spans});
    floats += block.rows * block.heads * stride;
  }
  partial_floats_ = std::max(partial_floats_, floats);
}

void Program::reserve(const StepInputs& step) {
  size_t quantized = 0, projected = 0, scratch = kLinearScratchBytes;
  for (const Recorded& recorded : instructions_) {
    if (const Linear* linear = std::get_if<Linear>(&recorded.work)) {
      const Buffer& x = buffers_[linear->x];
      if (!adapter_step_.idle()) projected = std::max(projected, static_cast<size_t>(step.rows[0] * projected_width(linear->adapters)) * sizeof(float));
      for (const Weight& weight : linear->weights) {
        if (format_info(weight->view().format).quantized)
          quantized = std::max(quantized, quantized_activations_bytes(step.rows[static_cast<int>(x.rows)], x.width));
      }
    }
  }
  const int64_t width = ceil_div(head_dim_, 16) * 16;
  for (const AttentionBlock& block : blocks_)
    scratch = std::max(scratch, static_cast<size_t>(attention_scratch_floats(block.rows * block.heads, width)) * sizeof(float));
  quantized_ = runtime_->quantized.reserve(quantized);
  projected_ = reinterpret_cast<float*>(runtime_->projected.reserve(projected));
  scratch_stride_ = align_up(scratch);
  const size_t all = scratch_stride_ * static_cast<size_t>(runtime_->pool.threads());
  scratch_ = runtime_->scratch.reserve(all + static_cast<size_t>(partial_floats_) * sizeof(float));
  partials_ = reinterpret_cast<float*>(scratch_ + all);
}

void Program::run(const StepInputs& step) {
  const std::lock_guard lock(runtime_->busy);
  check(step);
  place_buffers(step);
  adapter_step_.begin(step.adapters, step.sequences, step.rows[2]);
  plan_attention(step);
  reserve(step);
  Executor executor(*this, step);
  for (Recorded& recorded : instructions_) {
    if (!profiling_) {
      std::visit(executor, recorded.work);
      continue;
    }
    const auto start = std::chrono::steady_clock::now();
    std::visit(executor, recorded.work);
    recorded.profiled.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    recorded.profiled.cost += cost(recorded.work, step);
  }
  if (heads_ == 0) return;
  for (int64_t s = 0; s < step.rows[2]; s++)
    step.caches[s]->set_length(step.caches[s]->length() + step.sequences[2 * s + 1] - step.sequences[2 * s]);
}

}  // namespace gemmary
