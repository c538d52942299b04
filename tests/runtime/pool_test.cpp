// The pool of threads by itself: callers at once, jobs behind each other and after pauses in which its threads fall asleep.
// Every task of a job is done once, before the job is over.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "internal.h"

namespace {

constexpr int kCallers = 3, kJobs = 2000;

struct Marks {
  std::vector<int> of;
};

void mark(void *context, int64_t task) { ++static_cast<Marks *>(context)->of[task]; }

void call(int caller) {
  for (int job = 0; job < kJobs; ++job) {
    Marks marks{std::vector<int>(1 + (7 * job + caller) % 23)};
    lbk::parallel(marks.of.size(), 1 + (job + caller) % 4, mark, &marks);
    for (const int times : marks.of)
      if (times != 1) {
        std::fprintf(stderr, "a task was done %d times\n", times);
        std::exit(1);
      }
    if (job % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
  }
}

}  // namespace

int main() {
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) callers.emplace_back(call, i);
  for (std::thread &caller : callers) caller.join();
  std::printf("%d jobs\n", kCallers * kJobs);
}
