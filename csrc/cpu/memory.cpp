#include "cpu/memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <list>
#include <mutex>
#include <new>
#include <unordered_map>

namespace weighted_bce {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

struct Range {
  void* memory;
  int64_t bytes;
};

/// Maps memory from a huge page on, so that the kernel faults in 2 MiB at a time instead of 4 KiB;
/// what does not fill one at the end stays small pages.
Range map(int64_t bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  bytes = (bytes + page - 1) / page * page;
  const int64_t slack = bytes + kHugePage;
  void* whole = mmap(nullptr, slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole == MAP_FAILED) throw std::bad_alloc();
  char* const begin = static_cast<char*>(whole);
  const int64_t before =
      (kHugePage - static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin) % kHugePage)) %
      kHugePage;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + bytes, kHugePage - before);
#if defined(MADV_HUGEPAGE)
  madvise(begin + before, bytes, MADV_HUGEPAGE);
#endif
  return {begin + before, bytes};
}

struct Store {
  std::mutex mutex;
  std::unordered_map<void*, int64_t> sizes;  // of all memory handed out
  std::list<Range> kept;                     // the oldest first
  int64_t kept_bytes = 0;
};

/// The one store is never destroyed: tensors may outlive everything else in the process.
Store& store = *new Store;

/// A process may fork while another of its threads holds the mutex. That thread is not in the
/// child, where the mutex would stay locked. So the thread that forks holds it meanwhile.
[[maybe_unused]] const int fork_handlers = pthread_atfork(
    [] { store.mutex.lock(); }, [] { store.mutex.unlock(); }, [] { store.mutex.unlock(); });

/// Returns the smallest kept range that fits and is at most a quarter too large.
std::list<Range>::iterator best_fit(std::list<Range>& kept, int64_t bytes) {
  auto best = kept.end();
  for (auto it = kept.begin(); it != kept.end(); ++it) {
    const bool fits = it->bytes >= bytes && it->bytes <= bytes + bytes / 4 + kHugePage;
    if (fits && (best == kept.end() || it->bytes < best->bytes)) best = it;
  }
  return best;
}

}  // namespace

void* take(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(store.mutex);
  const auto found = best_fit(store.kept, bytes);
  Range range;
  if (found != store.kept.end()) {
    range = *found;
    store.kept_bytes -= range.bytes;
    store.kept.erase(found);
  } else {
    range = map(bytes);
  }
  store.sizes[range.memory] = range.bytes;
  return range.memory;
}

void give(void* memory) {
  const std::lock_guard<std::mutex> lock(store.mutex);
  const auto entry = store.sizes.find(memory);
  store.kept.push_back({memory, entry->second});
  store.kept_bytes += entry->second;
  store.sizes.erase(entry);
  while (store.kept_bytes > kKeptBytes) {
    munmap(store.kept.front().memory, store.kept.front().bytes);
    store.kept_bytes -= store.kept.front().bytes;
    store.kept.pop_front();
  }
}

int64_t kept_bytes() {
  const std::lock_guard<std::mutex> lock(store.mutex);
  return store.kept_bytes;
}

void release_kept() {
  const std::lock_guard<std::mutex> lock(store.mutex);
  for (const Range& range : store.kept) munmap(range.memory, range.bytes);
  store.kept.clear();
  store.kept_bytes = 0;
}

}  // namespace weighted_bce
