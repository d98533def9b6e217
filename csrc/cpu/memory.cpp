#include "cpu/memory.h"

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

/// Returns the one store, which is never destroyed: tensors may outlive everything else in the
/// process.
Store& store() {
  static Store* const instance = new Store;
  return *instance;
}

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
  Store& s = store();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const auto found = best_fit(s.kept, bytes);
  Range range;
  if (found != s.kept.end()) {
    range = *found;
    s.kept_bytes -= range.bytes;
    s.kept.erase(found);
  } else {
    range = map(bytes);
  }
  s.sizes[range.memory] = range.bytes;
  return range.memory;
}

void give(void* memory) {
  Store& s = store();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const auto entry = s.sizes.find(memory);
  s.kept.push_back({memory, entry->second});
  s.kept_bytes += entry->second;
  s.sizes.erase(entry);
  while (s.kept_bytes > kKeptBytes) {
    munmap(s.kept.front().memory, s.kept.front().bytes);
    s.kept_bytes -= s.kept.front().bytes;
    s.kept.pop_front();
  }
}

int64_t kept_bytes() {
  Store& s = store();
  const std::lock_guard<std::mutex> lock(s.mutex);
  return s.kept_bytes;
}

void release_kept() {
  Store& s = store();
  const std::lock_guard<std::mutex> lock(s.mutex);
  for (const Range& range : s.kept) munmap(range.memory, range.bytes);
  s.kept.clear();
  s.kept_bytes = 0;
}

}  // namespace weighted_bce
