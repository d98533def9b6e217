// How the matrix of the logits of a linear layer is cut into what a thread computes at a time. It
// follows from the shape alone, and so do the bits of the results.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

namespace weighted_bce {

/// The indices [begin, end).
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  /// Returns the range as it is counted from the beginning of another one.
  Range within(Range other) const { return {begin - other.begin, end - other.begin}; }
};

inline int64_t divided_up(int64_t number, int64_t divisor) {
  return (number + divisor - 1) / divisor;
}

/// A range that is cut into parts of about the same size, none of which is empty.
class Parts {
  Range range_;
  int64_t size_;

 public:
  /// No part has more than `most`. Most begin at a multiple of 16, as vectors do.
  Parts(Range range, int64_t most) : range_(range) {
    const int64_t even = divided_up(range.size(), divided_up(range.size(), most));
    size_ = std::min(most, divided_up(even, 16) * 16);
  }
  int64_t count() const { return divided_up(range_.size(), size_); }
  Range operator[](int64_t i) const {
    const int64_t begin = range_.begin + i * size_;
    return {begin, std::min(begin + size_, range_.end)};
  }
};

struct Cut {
  /// A tile has this many logits, 256 KiB of float32, and other matrices have this many elements,
  /// so that all stay in a second-level cache.
  static constexpr int64_t kTile = int64_t{1} << 16, kOther = int64_t{1} << 18;
  static constexpr int64_t kLeast = 64, kMost = 4096, kMostRows = 1024;
  /// 2, 3, 4, 6, 8, 12, 16, 24, 32, 48 or 96 threads share so many slabs evenly.
  static constexpr int64_t kSlabs = 96;

  bool by_rows = false;            // whether slabs are ranges of rows, and not of labels
  int64_t block_rows;              // blocks of rows come one after another
  int64_t slab;                    // how many rows or labels a slab has; threads share the slabs
  int64_t tile_rows, tile_labels;  // a thread computes one tile of a slab after another

  /// Cuts labels into slabs, or rows, of which each slab has all labels. No tile has more than
  /// `most_labels`, where that is given.
  static Cut of(int64_t rows, int64_t labels, int64_t features, std::optional<int64_t> most_labels,
                bool by_rows = false) {
    const int64_t tile = tile_size(by_rows ? kLeast : std::min(rows, kMostRows), features);
    Cut cut;
    cut.by_rows = by_rows;
    cut.block_rows = rows;
    cut.tile_labels = std::min({tile / 16 * 16, labels, most_labels.value_or(labels)});
    cut.tile_rows = std::min(tile_size(cut.tile_labels, features), rows);
    cut.slab = by_rows ? std::max(cut.tile_rows, divided_up(rows, kSlabs))
                       : std::max(cut.tile_labels, divided_up(labels, kSlabs));
    return cut;
  }

  /// Cuts a pass that computes all gradients. Each slab has memory to add up that of the input, or,
  /// cut into rows, that of the weight: the smaller one.
  static Cut of_pass(int64_t rows, int64_t labels, int64_t features, bool is_half,
                     std::optional<int64_t> most_labels) {
    if (labels < rows && labels * features <= kOther) {
      return of(rows, labels, features, most_labels, true);
    }
    // Where few slabs would have that memory, the rows are cut first. In half precision the
    // gradient of the weight would then be rounded once a block.
    const bool fits = is_half || rows * features <= kOther;
    const int64_t block_rows = fits ? rows : std::min(rows, std::max(kLeast, kOther / features));
    return of(block_rows, labels, features, most_labels);
  }

 private:
  /// Returns how many of a dimension make a tile, where it has so many of the other one.
  static int64_t tile_size(int64_t of_the_other, int64_t features) {
    return std::clamp(std::min(kTile / of_the_other, kOther / features), kLeast, kMost);
  }
};

}  // namespace weighted_bce
