// Says which elements a block takes, and finds their targets where these are sparse.
//
// The indices of sparse targets may hold anything, and change meanwhile: then so do the results,
// but no other memory is touched, and all threads of a block meet at the same barriers.
#pragma once

#include "cuda/elements.h"

namespace weighted_bce::cuda {

enum class Targets : uint8_t {
  kSparse,   // problem.csr
  kBytes,    // problem.y, of 1 byte an element
  kAnySize,  // problem.y
};

/// A thread takes these groups of kLanes elements.
struct Share {
  int64_t first, step;  // the element of the first group, and how far it is from one to the next
  int count;            // no memory holds 2^31 for each thread of kMaxBlocks
  int missing;          // of these, the last ones that the iteration does not have: 0 or 1
};

/// Where each target is an element in memory, the blocks take turns.
template <int kLanes>
class DenseTargets {
 public:
  static constexpr bool kStepIsConstant = false;
  struct Shared {};

  WEIGHTED_BCE_DEVICE DenseTargets(const Problem&, Shared&) {}

  WEIGHTED_BCE_DEVICE Share share_of(int64_t groups) const {
    const int64_t step = int64_t{kThreads} * blocks();
    const int64_t first = int64_t{kThreads} * block() + thread();
    const int count = first < groups ? static_cast<int>((groups - first + step - 1) / step) : 0;
    return {first * kLanes, step * kLanes, count, 0};
  }
  WEIGHTED_BCE_DEVICE void prepare(const Share&) {}
  WEIGHTED_BCE_DEVICE void set(Bits<kLanes>&, int64_t, int) {}
  WEIGHTED_BCE_DEVICE bool is_positive(int64_t) const { return false; }
};

/// Returns an element of crow_indices or col_indices.
WEIGHTED_BCE_DEVICE int64_t index_at(const Csr& csr, const void* indices, int64_t at) {
  uint32_t words[2];
  if (csr.index_size == 4) {
    load<4, false>(static_cast<const int32_t*>(indices) + at, words);
    return static_cast<int32_t>(words[0]);
  }
  load<8, false>(static_cast<const int64_t*>(indices) + at, words);
  return static_cast<int64_t>(static_cast<uint64_t>(words[1]) << 32 | words[0]);
}

/// Returns the first entry of a row in col_indices, csr.count if there is none from there on.
WEIGHTED_BCE_DEVICE int64_t start_of_row(const Csr& csr, int64_t row) {
  const int64_t entry = index_at(csr, csr.crow_indices, row);
  if (entry < 0) return 0;
  return entry < csr.count ? entry : csr.count;
}

/// Returns the first of the entries [from, to), which ascend, whose label is not below this one, or
/// `to`.
WEIGHTED_BCE_DEVICE int64_t lower_bound(const Csr& csr, int64_t from, int64_t to, int64_t label) {
#pragma unroll 1
  while (from < to) {
    const int64_t middle = from + (to - from) / 2;
    if (index_at(csr, csr.col_indices, middle) < label) {
      from = middle + 1;
    } else {
      to = middle;
    }
  }
  return from;
}

/// With sparse targets each block takes a run of elements, so that it meets its entries one after
/// the other. It walks the run in rounds of kThreads groups. For some rounds at a time, a tile, the
/// threads write the targets to shared memory; rounds before the next positive have no tile, and no
/// barrier.
template <int kLanes>
class SparseTargets {
  /// Shared memory cannot have the initializers of Bits.
  struct alignas(sizeof(Bits<kLanes>)) Group {
    uint32_t words[sizeof(Bits<kLanes>) / 4];
  };
  static constexpr int kRound = kThreads * kLanes;                         // elements
  static constexpr int kRounds = kTileBytes / (kThreads * sizeof(Group));  // of a tile

  /// An entry of col_indices lies at an element. Where its label is outside of the columns, it does
  /// not count and lies at the nearer end of its row: so elements ascend with entries.
  struct Position {
    int64_t entry, element;
    bool counts;
  };
  struct Tile {
    int64_t begin, end;           // elements
    int64_t first_row, last_row;  // of these
  };

 public:
  static constexpr bool kStepIsConstant = true;
  struct Shared {
    Group groups[kRounds * kThreads];  // a byte for each target of a tile
    Position next;                     // no entry from this one on lies before that element
  };

 private:
  const Problem& problem_;
  const Csr& csr_;
  Shared& shared_;
  int rounds_ = 0;        // until the next tile, or the next rounds without one
  bool in_tile_ = false;  // whether the next round is of a tile
  Group* own_;            // of this thread, in that round

 public:
  WEIGHTED_BCE_DEVICE SparseTargets(const Problem& problem, Shared& shared)
      : problem_(problem), csr_(problem.csr), shared_(shared), own_(shared.groups) {}

  /// A block has as many rounds as any other, or one more.
  WEIGHTED_BCE_DEVICE Share share_of(int64_t groups) const {
    const int64_t rounds = (groups + kThreads - 1) / kThreads;
    const int64_t each = rounds / blocks(), more = rounds - each * blocks();
    const int64_t before = block() < more ? block() : more;
    const int64_t first = each * block() + before;
    const int count = static_cast<int>(each + (block() < more));
    const bool missing = (first + count - 1) * kThreads + thread() >= groups;
    return {first * kRound + thread() * kLanes, kRound, count, missing};
  }

  /// Prepares shared memory, before a barrier after which the walk may start.
  WEIGHTED_BCE_DEVICE void prepare(const Share& share) {
    if (share.count == 0) return;
    for (int k = 0; k < kRounds; ++k) shared_.groups[k * kThreads + thread()] = {};
    if (thread() == kThreads - 1) {  // thread 0 has other work
      const int64_t begin = share.first - thread() * kLanes;
      const Place place = search(begin);
      shared_.next = {place.entry, begin, false};
    }
  }

  /// Sets the targets of this thread's group at element i, of the next round, where `left` rounds
  /// are left with it. All threads call this.
  WEIGHTED_BCE_DEVICE void set(Bits<kLanes>& targets, int64_t i, int left) {
    if (rounds_ == 0) enter(i - thread() * kLanes, left);
    --rounds_;
    targets = {};
    if (!in_tile_) return;
    const Group group = *own_;
    *own_ = {};
    own_ += kThreads;
#pragma unroll
    for (size_t k = 0; k < sizeof(Group) / 4; ++k) targets.words[k] = group.words[k];
  }

  /// Tells whether the target of element i is 1.
  WEIGHTED_BCE_DEVICE bool is_positive(int64_t i) const {
    const Place place = search(i);
    return place.entry < place.end && index_at(csr_, csr_.col_indices, place.entry) == place.label;
  }

 private:
  /// An element has this label, and `entry` is the first of its row that is not below it, or `end`.
  struct Place {
    int64_t label, entry, end;
  };
  WEIGHTED_BCE_DEVICE Place search(int64_t i) const {
    const int64_t row = quotient(i, csr_.by_num_labels);
    const int64_t label = csr_.first_label + (i - row * csr_.num_labels);
    const int64_t begin = start_of_row(csr_, row), end = start_of_row(csr_, row + 1);
    return {label, lower_bound(csr_, begin, end, label), end};
  }

  WEIGHTED_BCE_DEVICE void enter(int64_t begin, int left) {
    const Position next = shared_.next;
    const int64_t before = (next.element - begin) / kRound;  // rounds
    in_tile_ = before <= 0;
    if (in_tile_) {
      fill(next, begin, begin + int64_t{left < kRounds ? left : kRounds} * kRound);
      rounds_ = kRounds;
      own_ = shared_.groups + thread();
    } else {
      rounds_ = before < left ? static_cast<int>(before) : left;
    }
  }

  /// Fills a tile, whose first entry is known.
  WEIGHTED_BCE_DEVICE void fill(const Position& next, int64_t begin, int64_t end) {
    if (end > problem_.numel) end = problem_.numel;
    const Tile tile{begin, end, quotient(begin, csr_.by_num_labels),
                    quotient(end - 1, csr_.by_num_labels)};
    barrier();  // all have taken their targets of the last tile, and read shared_.next
    Position position = put(tile, next.entry + thread());
    while (position.element < end) position = put(tile, position.entry + kThreads);
    // One thread has come to the first of all entries that lie beyond the tile.
    if (position.entry == next.entry || position_of(tile, position.entry - 1).element < end) {
      shared_.next = position;
    }
    barrier();
  }

  /// Makes the target of an entry 1, if it is in the tile.
  WEIGHTED_BCE_DEVICE Position put(const Tile& tile, int64_t entry) {
    const Position position = position_of(tile, entry);
    if (position.counts && position.element >= tile.begin && position.element < tile.end) {
      const auto at = static_cast<int>(position.element - tile.begin);
      reinterpret_cast<uint8_t*>(&shared_.groups[at / kLanes])[at % kLanes] = 1;
    }
    return position;
  }

  /// Says where an entry lies, which is not before the tile's first row. One of a row after that
  /// which follows the tile is taken to be in the latter: it lies beyond the tile all the same.
  WEIGHTED_BCE_DEVICE Position position_of(const Tile& tile, int64_t entry) const {
    if (entry >= csr_.count) return {entry, INT64_MAX, false};
    int64_t row = tile.first_row, above = tile.last_row + 2;
#pragma unroll 1
    while (above - row > 1) {
      const int64_t middle = row + (above - row) / 2;
      if (start_of_row(csr_, middle) <= entry) {
        row = middle;
      } else {
        above = middle;
      }
    }
    const int64_t start = row * csr_.num_labels;
    const int64_t label = index_at(csr_, csr_.col_indices, entry);
    if (label < csr_.first_label) return {entry, start, false};
    const int64_t column = label - csr_.first_label;
    if (column >= csr_.num_labels) return {entry, start + csr_.num_labels - 1, false};
    return {entry, start + column, true};
  }
};

template <Targets kTargets, int kLanes>
using TargetsOf =
    std::conditional_t<kTargets == Targets::kSparse, SparseTargets<kLanes>, DenseTargets<kLanes>>;

}  // namespace weighted_bce::cuda
