// Threads that sleep until there is work. The caller works too and waits for nobody who has not begun, so a machine
// that is busy elsewhere costs time in proportion, and not a barrier's (OpenMP's spinning made 0.3 ms 10 ms). Before they
// sleep, threads look for work for as long as waking one may take.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

#include "internal.h"

namespace lbk {
namespace {

constexpr int kMaxThreads = 256;
constexpr std::chrono::microseconds kLook(50);  // 100 and 200 gained nothing more in a network

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Until done(), or for a while.
template <class F>
void look(const F &done) {
  const auto end = std::chrono::steady_clock::now() + kLook;
  while (!done() && std::chrono::steady_clock::now() < end)
    for (int i = 0; i < 8 && !done(); ++i) pause();
}

struct Job {
  void (*task)(void *, int64_t);
  void *context;
  int64_t tasks;
  int seats;                   // helpers that may still join
  std::atomic<int> active{0};  // helpers at work; set under the pool's lock
  std::atomic<int64_t> next{0};

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(context, i);
  }
};

class Pool {
 public:
  void run(Job &job) {
    const int wanted = job.seats;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(wanted);
      jobs_.push_back(&job);
      waiting_ = jobs_.size();
    }
    for (int i = 0; i < wanted; ++i) wake_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    leave(job);
    if (job.active) {
      lock.unlock();
      look([&] { return job.active == 0; });
      lock.lock();
    }
    done_.wait(lock, [&] { return job.active == 0; });
  }

 private:
  void grow(int helpers) {
    try {
      for (; workers_ < std::min(helpers, kMaxThreads); ++workers_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error &) {
      // the system gives no more threads: those that are there do the work
    }
  }

  void leave(Job &job) {
    const auto found = std::find(jobs_.begin(), jobs_.end(), &job);
    if (found != jobs_.end()) jobs_.erase(found);
    waiting_ = jobs_.size();
  }

  void serve() {
    for (;;) {
      look([&] { return waiting_ != 0; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return !jobs_.empty(); });
      Job &job = *jobs_.front();
      if (--job.seats == 0) leave(job);
      ++job.active;
      lock.unlock();
      job.work();
      lock.lock();
      leave(job);  // nothing is left to begin
      if (--job.active == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Job *> jobs_;
  std::atomic<size_t> waiting_{0};  // jobs_.size(), to look at without the lock
  int workers_ = 0;
};

// Never destroyed: threads may sleep in it when the process ends. A child made by fork has none of the threads.
std::atomic<Pool *> pool{nullptr};

Pool &the_pool() {
  static const bool made = [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
    return true;
  }();
  (void)made;
  return *pool;
}

}  // namespace

void parallel(int64_t tasks, int threads, void (*task)(void *, int64_t), void *context) {
  Job job{task, context, tasks, static_cast<int>(std::min<int64_t>(threads, tasks)) - 1};
  if (job.seats <= 0) {
    job.work();
    return;
  }
  the_pool().run(job);
}

}  // namespace lbk
