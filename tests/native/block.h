// A block of threads of a GPU on one thread of the host: each is a fiber that runs until it waits
// for others, in an order that the test chooses. What would hang a GPU, or be undefined, ends the
// program.
#pragma once

#include <algorithm>
#include <bitset>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#if defined(__GLIBC__) && !defined(__clang__)
#include <link.h>
#endif

#include "fibers.h"

namespace native {

inline std::function<void()> describe_failure;
[[noreturn]] inline void fail(const char* what) {
  std::printf("%s\n", what);
  if (describe_failure) describe_failure();
  std::fflush(stdout);
  std::_Exit(1);
}

/// Which of the threads that could go on does.
enum class Order { kForward, kBackward, kInterleaved, kRandom };

class Block {
 public:
  static constexpr int kThreads = 256, kLanes = 32, kWarps = kThreads / kLanes;

  int number = 0, blocks = 1;  // of the grid

  static Block& instance() {
    static Block block;
    return block;
  }

  int thread() const { return current_; }

  /// Runs the kernel in all threads, to the end.
  void run(const std::function<void()>& kernel, Order order) {
    poison_shared();
    kernel_ = &kernel, order_ = order;
    at_barrier_ = left_ = 0;
    arrange();
    make_all_runnable();
    while (left_ < kThreads) {
      if (runnable_.none()) release_barrier();
      current_ = thread_at_[first_runnable()];
      fibers_[current_].resume(host_);
    }
  }

  void barrier() {
    ++at_barrier_;
    wait(Wait::kBarrier);
  }

  /// Each lane of a warp leaves a value and waits for all others to leave theirs. A lane may be one
  /// shuffle ahead of others, which have yet to read: so there are two sets of values.
  double from_higher_lane(double value, int offset) {
    const int warp = current_ / kLanes, lane = current_ % kLanes, set = turns_[current_] ^= 1;
    double* const values = values_[warp][set];
    values[lane] = value;
    if (++arrived_[warp][set] < kLanes) {
      wait(Wait::kShuffle);
    } else {
      arrived_[warp][set] = 0;
      for (int other = warp * kLanes; other < (warp + 1) * kLanes; ++other) {
        if (other != current_) set_runnable(other);
      }
    }
    return values[lane + offset < kLanes ? lane + offset : lane];
  }

 private:
  int first_runnable() const {
    int position = 0;
    while (!runnable_[position]) ++position;
    return position;
  }

  enum class Wait : uint8_t { kNot, kBarrier, kShuffle, kLeft };
  // Stacks at multiples of a page would all use the same few lines of the caches.
  static constexpr size_t kStack = 64 * 1024 + 5 * 64;

  Block() : memory_(new (std::align_val_t{64}) char[kThreads * kStack]) {
    for (int t = 0; t < kThreads; ++t)
      fibers_[t].prepare(memory_ + t * kStack, kStack, &run_kernels);
  }
  ~Block() { ::operator delete[](memory_, std::align_val_t{64}); }

  /// Runs each kernel in turn; the code of a fiber never returns.
  static void run_kernels() {
    Block& block = instance();
    Fiber::entered(block.host_);
    for (;;) {
      (*block.kernel_)();
      ++block.left_;
      block.wait(Wait::kLeft);
    }
  }

  void wait(Wait what) {
    const int me = current_;
    waits_[me] = what;
    runnable_.reset(position_of_[me]);
    host_.resume(fibers_[me]);
  }

  void set_runnable(int t) {
    waits_[t] = Wait::kNot;
    runnable_.set(position_of_[t]);
  }
  void make_all_runnable() {
    std::fill_n(waits_, kThreads, Wait::kNot);
    runnable_.set();
  }

  void arrange() {
    std::iota(thread_at_, thread_at_ + kThreads, 0);
    if (order_ == Order::kBackward) std::reverse(thread_at_, thread_at_ + kThreads);
    if (order_ == Order::kRandom) std::shuffle(thread_at_, thread_at_ + kThreads, random_);
    if (order_ == Order::kInterleaved) {
      for (int k = 0; k < kThreads; ++k) thread_at_[k] = k % kWarps * kLanes + k / kWarps;
    }
    for (int k = 0; k < kThreads; ++k) position_of_[thread_at_[k]] = k;
  }

  void release_barrier() {
    if (std::count(waits_, waits_ + kThreads, Wait::kShuffle) > 0) {
      fail("a lane never arrived at the shuffle where others of its warp wait");
    }
    if (at_barrier_ < kThreads) fail("threads left the kernel while others wait at a barrier");
    at_barrier_ = 0;
    if (order_ == Order::kRandom) arrange();
    make_all_runnable();
  }

  /// Shared memory is what the program has of thread_local variables: filled with NaNs, unlike what
  /// any kernel would leave there.
  static void poison_shared() {
#if defined(__GLIBC__) && !defined(__clang__)
    static const dl_phdr_info program = [] {
      dl_phdr_info first;
      dl_iterate_phdr(
          [](dl_phdr_info* info, size_t, void* to) {
            std::memcpy(to, info, sizeof(*info));
            return 1;
          },
          &first);
      return first;
    }();
    for (int k = 0; k < program.dlpi_phnum; ++k) {
      const auto& header = program.dlpi_phdr[k];
      if (header.p_type == PT_TLS) std::memset(program.dlpi_tls_data, 0xff, header.p_memsz);
    }
#endif
  }

  char* const memory_;
  Fiber host_, fibers_[kThreads];
  const std::function<void()>* kernel_ = nullptr;
  Order order_ = Order::kForward;
  std::mt19937 random_{20240229};
  int current_ = 0, at_barrier_ = 0, left_ = 0;
  Wait waits_[kThreads] = {};
  int thread_at_[kThreads], position_of_[kThreads];
  std::bitset<kThreads> runnable_;  // by position
  double values_[kWarps][2][kLanes];
  int arrived_[kWarps][2] = {};
  int turns_[kThreads] = {};
};

/// The blocks of a grid, one after another.
struct Grid {
  int blocks;
  Order order;
  std::function<void()> between = nullptr;  // called after each block
  std::vector<int> only = {};               // those that run; empty: all

  void run(const std::function<void()>& kernel) const {
    Block& block = Block::instance();
    block.blocks = blocks;
    const int count = only.empty() ? blocks : static_cast<int>(only.size());
    for (int k = 0; k < count; ++k) {
      const int at = order == Order::kBackward ? count - 1 - k : k;
      block.number = only.empty() ? at : only[at];
      block.run(kernel, order);
      if (between) between();
    }
  }
};

}  // namespace native
