#include "pool.h"

#include <algorithm>

#if defined(__linux__)
#include <sched.h>
#endif

namespace gemmary {
namespace {

constexpr uint64_t kMaxTasks = 0xffff;

uint64_t ticket_of(uint32_t job, uint64_t count) { return uint64_t{job} << 32 | count << 16; }

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

}  // namespace

int available_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// About 50 microseconds of spinning bridge the short serial pieces between two jobs of a step. With more threads than processors a
// spinning thread keeps a working one from running, so it hardly spins at all.
Pool::Pool(int threads) : threads_(std::max(1, threads)), spins_(threads_ <= available_processors() ? 2000 : 20) {
  workers_.reserve(threads_ - 1);
  try {
    for (int thread = 1; thread < threads_; thread++) workers_.emplace_back([this, thread] { work(thread); });
  } catch (...) {
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  stopping_.store(true, std::memory_order_release);
  jobs_.fetch_add(1, std::memory_order_release);
  jobs_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

bool Pool::run_one(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if ((ticket & kMaxTasks) >= (ticket >> 16 & kMaxTasks)) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire));
  const uint64_t total = ticket >> 16 & kMaxTasks;
  function_(context_, first_ + static_cast<int64_t>(ticket & kMaxTasks), thread);
  if (finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == total) finished_.notify_one();
  return true;
}

void Pool::work(int thread) {
  while (true) {
    const uint32_t seen = jobs_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_acquire)) return;
    while (run_one(thread)) {
    }
    int spins = spins_;
    while (spins > 0 && jobs_.load(std::memory_order_relaxed) == seen) {
      relax();
      spins--;
    }
    if (spins == 0) jobs_.wait(seen, std::memory_order_acquire);
  }
}

void Pool::run_erased(int64_t count, Function function, void* context) {
  if (threads_ == 1 || count == 1) {
    for (int64_t task = 0; task < count; task++) function(context, task, 0);
    return;
  }
  for (int64_t first = 0; first < count; first += kMaxTasks) {
    const uint32_t tasks = static_cast<uint32_t>(std::min<int64_t>(count - first, kMaxTasks));
    function_ = function;
    context_ = context;
    first_ = first;
    finished_.store(0, std::memory_order_relaxed);
    const uint32_t job = jobs_.load(std::memory_order_relaxed) + 1;
    ticket_.store(ticket_of(job, tasks), std::memory_order_release);
    jobs_.store(job, std::memory_order_release);
    jobs_.notify_all();
    while (run_one(0)) {
    }
    uint32_t done = finished_.load(std::memory_order_acquire);
    for (int spins = spins_; done != tasks && spins > 0; spins--) {
      relax();
      done = finished_.load(std::memory_order_acquire);
    }
    while (done != tasks) {
      finished_.wait(done, std::memory_order_acquire);
      done = finished_.load(std::memory_order_acquire);
    }
  }
}

}  // namespace gemmary
