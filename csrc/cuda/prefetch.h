// Copies the groups of elements that a thread computes to shared memory, some before their turn.
//
// Each thread has places of its own there. Registers would not do: when a thread needs one load,
// the compiler has it wait for all that it has started since.
#pragma once

#include "cuda/elements.h"

namespace weighted_bce::cuda {

constexpr int kAhead = 3;  // groups that are being copied while one is computed

/// A Prefetcher loads 16 bytes of logits at a time and, with kTargets, their targets of 1 byte.
template <class X, bool kTargets>
class Prefetcher {
  static constexpr int kLanes = 16 / sizeof(X);
  static constexpr unsigned kSlots = kAhead + 1;  // the group to be computed, and those ahead

  const char *x_, *y_ = nullptr;
  const int64_t step_;  // elements
  SharedAddress logits_, targets_{};
  unsigned slot_ = 0;  // to be filled next

 public:
  struct Group {
    SharedAddress logits;  // 16 bytes, the thread's own until it loads the next group
    Bits<kLanes> targets;
  };

  /// A block needs this shared memory.
  struct alignas(16) Shared {
    uint32_t logits[kSlots][kThreads][4];
    uint32_t targets[kSlots][kTargets ? kThreads : 1][kLanes / 4];
  };

  /// Starts with the group at element i of the iteration; others follow at every `step`.
  WEIGHTED_BCE_DEVICE Prefetcher(const Problem& problem, Shared& shared, int64_t i, int64_t step)
      : x_(static_cast<const char*>(problem.x.data) + i * sizeof(X)),
        step_(step),
        logits_(shared_address(shared.logits[0][thread()])) {
    if constexpr (kTargets) {
      y_ = static_cast<const char*>(problem.y.data) + i;
      targets_ = shared_address(shared.targets[0][thread()]);
    }
  }

  /// Starts to load the next group, if there is one.
  WEIGHTED_BCE_DEVICE void load(bool is_there) {
    if (is_there) {
      copy_ahead<16>(x_, logits_ + slot_ * (16 * kThreads));
      if constexpr (kTargets) copy_ahead<kLanes>(y_, targets_ + slot_ * (kLanes * kThreads));
    }
    end_batch();  // even if it is empty: the batch to wait for is always as far back
    x_ += step_ * sizeof(X);
    if constexpr (kTargets) y_ += step_;
    slot_ = (slot_ + 1) % kSlots;
  }

  /// Waits for the group that was loaded kAhead groups before the last one.
  WEIGHTED_BCE_DEVICE void wait() const { wait_for_batches<kAhead>(); }

  /// Tells where its logits are, and reads its targets; those that are not loaded here stay as they
  /// are.
  WEIGHTED_BCE_DEVICE void take(Group& group) const {
    group.logits = logits_ + slot_ * (16 * kThreads);
    if constexpr (kTargets) {
      load_copy<kLanes>(targets_ + slot_ * (kLanes * kThreads), group.targets.words);
    }
  }
};

}  // namespace weighted_bce::cuda
