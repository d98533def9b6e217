// Memory for large gradients. A fresh one costs more in page faults than the loss in arithmetic, so
// a gradient's memory is kept when its tensor dies, for the next one of about the same size.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weighted_bce {

/// A gradient of this size or more comes from `take`; below, the allocator of torch is as fast.
constexpr int64_t kLargeBytes = int64_t{1} << 20;
/// No more than this is kept while no tensor uses it.
constexpr int64_t kKeptBytes = int64_t{1} << 30;

/// Returns at least `bytes`, aligned to 2 MiB, with unspecified content. Throws std::bad_alloc.
void* take(int64_t bytes);
/// Gives back what `take` returned. Both may be called from any thread.
void give(void* memory);

/// Returns how much is kept.
int64_t kept_bytes();
/// Returns all kept memory to the operating system.
void release_kept();

}  // namespace weighted_bce
