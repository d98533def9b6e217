// Sparse targets as bytes, block by block. Included by level.h inside a level's namespace.

/// Hands out the targets of one block after the other, as bytes of 0 and 1.
class Marks {
  const Positives& from_;
  int64_t row_ = 0, column_ = 0;  // of the next element
  int64_t next_ = 0;              // the place in col of the row's first positive that is not past
  bool any_ = false;              // whether a byte is 1
  alignas(64) uint8_t bytes_[kBlock] = {};

  /// The place of the first positive of a row that is not below `label`.
  template <class Index>
  static int64_t seek(const Index* col, int64_t begin, int64_t end, int64_t label) {
    if (begin == end || col[begin] >= label) return begin;
    return std::lower_bound(col + begin, col + end, label) - col;
  }

  /// Everything in local variables: a store of bytes might change any member.
  template <class Index>
  void mark(int64_t n) {
    const auto* const crow = static_cast<const Index*>(from_.crow);
    const auto* const col = static_cast<const Index*>(from_.col);
    const int64_t labels = from_.labels, first_label = from_.first_label;
    int64_t row = row_, column = column_, next = next_, found = 0;
    for (int64_t done = 0; done < n;) {
      const int64_t end = crow[row + 1];
      if (column == 0) next = seek(col, crow[row], end, first_label);
      const int64_t stop = std::min(labels, column + (n - done)), before = next;
      const int64_t shift = done - column - first_label, limit = done + stop - column;
      for (; next < end; ++next) {
        const int64_t at = col[next] + shift;  // read once: it stays in the block, whoever writes
        if (at < 0 || at >= limit) break;
        bytes_[at] = 1;
      }
      found += next - before, done += stop - column, column = stop;
      if (column == labels) ++row, column = 0;
    }
    row_ = row, column_ = column, next_ = next, any_ = found > 0;
  }

  template <class Index>
  void start() {
    const auto* const crow = static_cast<const Index*>(from_.crow);
    const auto* const col = static_cast<const Index*>(from_.col);
    next_ = seek(col, crow[row_], crow[row_ + 1], from_.first_label + column_);
  }

 public:
  /// For elements from `begin` on.
  Marks(const Positives& from, int64_t begin) : from_(from) {
    if (from.crow == nullptr) return;
    row_ = begin / from.labels, column_ = begin % from.labels;
    from.index_size == 4 ? start<int32_t>() : start<int64_t>();
  }

  /// The next n targets, at most a block.
  const uint8_t* next(int64_t n) {
    if (any_) std::fill_n(bytes_, kBlock, uint8_t{0});
    from_.index_size == 4 ? mark<int32_t>(n) : mark<int64_t>(n);
    return bytes_;
  }
};
