// The engine's threads: the caller and N - 1 workers, which claim the numbered tasks of one job at a time.
//
// A job is cut into tasks by its caller in a way that depends on the work alone, never on the number of threads, and no task reads
// what another task of the same job writes: which thread runs a task can then not be seen in the result.
// Workers spin briefly between jobs and then sleep. A job never waits for a worker that has not claimed one of its tasks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace gemmary {

class Pool {
 public:
  // `threads` counts the caller: Pool(1) starts none. Throws std::system_error where the system refuses a thread.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Calls body(task, thread) for task = 0 … count - 1, each once, on any thread in 0 … threads() - 1, and returns when all are done.
  // One caller at a time. `body` must not throw and must not call run.
  template <typename Body>
  void run(int64_t count, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_erased(count, [](void* context, int64_t task, int thread) { (*static_cast<Plain*>(context))(task, thread); },
               const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Function = void (*)(void* context, int64_t task, int thread);

  void run_erased(int64_t count, Function function, void* context);
  bool run_one(int thread);
  void work(int thread);
  void stop();

  // The open job: its number in the upper 32 bits, then how many tasks it has and how many are claimed, 16 bits each. A claim is a
  // compare-and-swap of the whole word, so it can only succeed while that very job is unfinished, and what it reads next is stable.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  Function function_ = nullptr;
  void* context_ = nullptr;
  int64_t first_ = 0;
  alignas(64) std::atomic<uint32_t> finished_{0};
  alignas(64) std::atomic<uint32_t> jobs_{0};  // what sleeping workers watch
  std::atomic<bool> stopping_{false};
  const int threads_;
  const int spins_;
  std::vector<std::thread> workers_;
};

// The processors that this process may use, at least 1: the default number of threads.
int available_processors();

}  // namespace gemmary
