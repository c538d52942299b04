// Threads that sleep until there is work. The caller works too and waits for nobody who has not begun, so a machine
// that is busy elsewhere costs time in proportion, and not a barrier's (OpenMP's spinning made 0.3 ms 10 ms).
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

#include "internal.h"

namespace lbk {
namespace {

constexpr int kMaxThreads = 256;

struct Job {
  void (*task)(void *, int64_t);
  void *context;
  int64_t tasks;
  int seats;       // helpers that may still join
  int active = 0;  // helpers at work
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
    }
    for (int i = 0; i < wanted; ++i) wake_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    leave(job);
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
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return !jobs_.empty(); });
      Job &job = *jobs_.front();
      if (--job.seats == 0) jobs_.pop_front();
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
