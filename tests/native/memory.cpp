// The memory of gradients under threads: no two hold the same, any thread may give it back, and
// what is kept stays within its limit.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "cpu/memory.h"

namespace {

using namespace weighted_bce;

constexpr int kThreads = 4, kSteps = 400;
constexpr int64_t kMiB = int64_t{1} << 20, kHugePage = 2 * kMiB;

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

struct Block {
  int64_t* memory = nullptr;
  int64_t bytes = 0, value = 0;

  Block() = default;
  Block(int64_t size, int64_t number)
      : memory(static_cast<int64_t*>(take(size))), bytes(size), value(number) {
    require(reinterpret_cast<uintptr_t>(memory) % kHugePage == 0, "aligned to huge pages");
    memory[0] = memory[bytes / 8 - 1] = value;
  }
  void give_back() const {
    if (memory == nullptr) return;
    require(memory[0] == value && memory[bytes / 8 - 1] == value, "held by one only");
    give(memory);
  }
};

/// Takes blocks and leaves them for whoever comes by next, as autograd's threads do.
void exchange(int thread, std::vector<std::atomic<Block*>>& shelf) {
  std::mt19937 random(thread);
  for (int step = 0; step < kSteps; ++step) {
    const int64_t bytes = kMiB + static_cast<int64_t>(random() % (4 * kMiB)) / 8 * 8;
    auto* const mine = new Block(bytes, thread * kSteps + step + 1);
    Block* const other = shelf[random() % shelf.size()].exchange(mine);
    if (other != nullptr) other->give_back();
    delete other;
    if (step % 100 == 0) release_kept();
    require(kept_bytes() <= kKeptBytes, "kept within the limit");
  }
}

void threads_share_nothing() {
  std::vector<std::atomic<Block*>> shelf(6);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back(exchange, t, std::ref(shelf));
  for (std::thread& thread : threads) thread.join();
  for (std::atomic<Block*>& place : shelf) {
    place.load()->give_back();
    delete place.load();
  }
  release_kept();
  require(kept_bytes() == 0, "nothing kept after release_kept");
}

void memory_is_reused() {
  void* const first = take(3 * kMiB);
  give(first);
  require(kept_bytes() == 3 * kMiB, "whole pages kept");
  void* const larger = take(64 * kMiB);
  require(larger != first && kept_bytes() == 3 * kMiB, "too small for a larger one");
  require(take(3 * kMiB) == first && kept_bytes() == 0, "the same memory again");
  give(larger);
  void* const small = take(kMiB);
  require(small != larger, "far too large for a smaller one");
  for (void* memory : {first, small}) give(memory);
  release_kept();
}

void the_oldest_goes_first() {
  const int64_t third = (kKeptBytes / 3 + kHugePage) / kHugePage * kHugePage;
  void* const blocks[] = {take(third), take(third), take(third)};
  for (void* memory : blocks) give(memory);
  require(kept_bytes() == 2 * third, "two of three fit");
  void* const again[] = {take(third), take(third)};
  require((again[0] == blocks[1] && again[1] == blocks[2]) ||
              (again[0] == blocks[2] && again[1] == blocks[1]),
          "the first given is dropped");
  for (void* memory : again) give(memory);
  release_kept();
}

void too_much_throws() {
  bool thrown = false;
  try {
    take(int64_t{1} << 60);
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  require(thrown, "bad_alloc for more than there is");
  give(take(kMiB));  // and all still works
  release_kept();
}

}  // namespace

int main() {
  memory_is_reused();
  the_oldest_goes_first();
  too_much_throws();
  threads_share_nothing();
}
