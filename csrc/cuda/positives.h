// Sparse targets: the search for one of them, and marks of many in shared memory.
//
// The indices may hold anything, and change meanwhile: then so do the results, but no other memory
// is touched, and all threads of a block meet at the same barriers.
#pragma once

#include "cuda/lanes.h"

namespace weighted_bce::cuda {

/// Element `at` of crow or col.
WEIGHTED_BCE_DEVICE int64_t index_at(const Positives& listed, const void* indices, int64_t at) {
  uint32_t words[2];
  if (listed.index_size == 4) {
    load<4, false>(static_cast<const int32_t*>(indices) + at, words);
    return static_cast<int32_t>(words[0]);
  }
  load<8, false>(static_cast<const int64_t*>(indices) + at, words);
  return static_cast<int64_t>(static_cast<uint64_t>(words[1]) << 32 | words[0]);
}

/// The place in col of the first label of a row; count if there is none from there on.
WEIGHTED_BCE_DEVICE int64_t start_of_row(const Positives& listed, int64_t row) {
  const int64_t place = index_at(listed, listed.crow, row);
  return place < 0 ? 0 : place < listed.count ? place : listed.count;
}

/// The label of an element, and the places in col from which on its row lists it and later ones.
struct Rest {
  int64_t label, from, to;
};
WEIGHTED_BCE_DEVICE Rest rest_of_row(const Problem& problem, int64_t i) {
  const Positives& listed = problem.positives;
  const int64_t row = quotient(i, problem.labels);
  const int64_t label = listed.first_label + (i - row * listed.labels);
  int64_t from = start_of_row(listed, row);
  const int64_t end = start_of_row(listed, row + 1);
#pragma unroll 1
  for (int64_t to = end; from < to;) {
    const int64_t middle = from + (to - from) / 2;
    if (index_at(listed, listed.col, middle) < label) {
      from = middle + 1;
    } else {
      to = middle;
    }
  }
  return {label, from, end};
}

/// Whether the target of element i is 1.
WEIGHTED_BCE_DEVICE bool is_positive(const Problem& problem, int64_t i) {
  const Rest rest = rest_of_row(problem, i);
  const Positives& listed = problem.positives;
  return rest.from < rest.to && index_at(listed, listed.col, rest.from) == rest.label;
}

/// The targets of a run of elements that a block walks in rounds of kThreads groups of kLanes. For
/// some rounds at a time, a tile, the threads mark the positives in shared memory. Rounds before
/// the next positive need no marks, and no barrier.
template <int kLanes>
class Marks {
  /// Shared memory cannot have the initializers of Bits.
  struct alignas(sizeof(Bits<kLanes>)) Group {
    uint32_t words[sizeof(Bits<kLanes>) / 4];
  };
  static constexpr int kRound = kThreads * kLanes;                         // elements
  static constexpr int kRounds = kMarkBytes / (kThreads * sizeof(Group));  // of a tile

  /// A place in col, and an element: what is listed there and after it lies at that or later.
  struct Next {
    int64_t place, element;
  };
  struct Tile {
    int64_t begin, end;           // elements
    int64_t first_row, last_row;  // of these
  };
  /// Where a label lies. One that does not count, since it is outside of the window, takes the
  /// nearer end of its row, so that the elements of all places ascend.
  struct Spot {
    int64_t element;
    bool counts;
  };

 public:
  /// A byte for each target of a tile, and where the tile after it begins.
  struct Shared {
    Group groups[kRounds * kThreads];
    Next next;
  };

 private:
  const Problem& problem_;
  Shared& shared_;
  int rounds_ = 0;       // until the next tile or the next rounds without marks
  bool marked_ = false;  // whether the next round is of a tile
  Group* mine_;          // in that round

 public:
  WEIGHTED_BCE_DEVICE Marks(const Problem& problem, Shared& shared)
      : problem_(problem), shared_(shared), mine_(shared.groups) {}

  /// Before a barrier, after which the walk may start at element `begin`.
  WEIGHTED_BCE_DEVICE void prepare(int64_t begin) {
    for (int k = 0; k < kRounds; ++k) shared_.groups[k * kThreads + thread()] = {};
    if (thread() == kThreads - 1) {  // thread 0 has other work
      shared_.next = {rest_of_row(problem_, begin).from, begin};
    }
  }

  /// The targets of this thread's group of the next round. That round starts at element `begin`,
  /// and `left` rounds are left with it. All threads call this.
  WEIGHTED_BCE_DEVICE Bits<kLanes> take(int64_t begin, int left) {
    if (rounds_ == 0) enter(begin, left);
    --rounds_;
    Bits<kLanes> targets;
    if (marked_) {
      const Group marks = *mine_;
      *mine_ = {};
      mine_ += kThreads;
#pragma unroll
      for (size_t k = 0; k < sizeof(Group) / 4; ++k) targets.words[k] = marks.words[k];
    }
    return targets;
  }

 private:
  WEIGHTED_BCE_DEVICE void enter(int64_t begin, int left) {
    const Next next = shared_.next;
    const int64_t unmarked = (next.element - begin) / kRound;
    marked_ = unmarked <= 0;
    if (marked_) {
      mark(next, begin, begin + int64_t{left < kRounds ? left : kRounds} * kRound);
      rounds_ = kRounds;
      mine_ = shared_.groups + thread();
    } else {
      rounds_ = unmarked < left ? static_cast<int>(unmarked) : left;
    }
  }

  WEIGHTED_BCE_DEVICE void mark(const Next& next, int64_t begin, int64_t end) {
    if (end > problem_.numel) end = problem_.numel;
    const Tile tile{begin, end, quotient(begin, problem_.labels),
                    quotient(end - 1, problem_.labels)};
    barrier();  // all have taken their targets of the last tile, and read shared_.next
    int64_t place = next.place + thread();
    int64_t element = mark(tile, place);
    while (element < end) element = mark(tile, place += kThreads);
    // One thread has come to the first place of all that lies beyond the tile.
    if (place == next.place || spot_of(tile, place - 1).element < end) {
      shared_.next = {place, element};
    }
    barrier();
  }

  /// Marks what is listed at a place, if it is in the tile. Returns its element.
  WEIGHTED_BCE_DEVICE int64_t mark(const Tile& tile, int64_t place) {
    const Spot spot = spot_of(tile, place);
    if (spot.counts && spot.element >= tile.begin && spot.element < tile.end) {
      const auto at = static_cast<int>(spot.element - tile.begin);
      reinterpret_cast<uint8_t*>(&shared_.groups[at / kLanes])[at % kLanes] = 1;
    }
    return spot.element;
  }

  /// Where the label at a place lies, which is not before the tile's first row. In rows after the
  /// one that follows the tile, it lies later than that.
  WEIGHTED_BCE_DEVICE Spot spot_of(const Tile& tile, int64_t place) const {
    const Positives& listed = problem_.positives;
    if (place >= listed.count) return {INT64_MAX, false};
    int64_t row = tile.first_row, above = tile.last_row + 2;
#pragma unroll 1
    while (above - row > 1) {
      const int64_t middle = row + (above - row) / 2;
      (start_of_row(listed, middle) <= place ? row : above) = middle;
    }
    const int64_t start = row * listed.labels, label = index_at(listed, listed.col, place);
    if (label < listed.first_label) return {start, false};
    const int64_t column = label - listed.first_label;
    if (column >= listed.labels) return {start + listed.labels - 1, false};
    return {start + column, true};
  }
};

}  // namespace weighted_bce::cuda
