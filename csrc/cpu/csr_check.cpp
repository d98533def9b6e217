#include "cpu/csr_check.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

namespace weighted_bce {
namespace {

constexpr int64_t kGrain = int64_t{1} << 14;  // for one thread at least

/// Returns the sum of count(begin, end) over the parts of [begin, end).
template <class Count>
int64_t total(int64_t begin, int64_t end, const Count& count) {
  if (end - begin <= kGrain) return count(begin, end);
  std::atomic<int64_t> sum{0};
  torch::stable::parallel_for(begin, end, kGrain,
                              [&](int64_t from, int64_t to) { sum += count(from, to); });
  return sum;
}

template <class Index>
void check_values(const Csr& csr, bool is_part) {
  const auto* const crow = static_cast<const Index*>(csr.crow_indices);  // [num_rows + 1]
  const auto* const col = static_cast<const Index*>(csr.col_indices);    // [count]
  const int64_t first = crow[0], last = crow[csr.num_rows];
  STD_TORCH_CHECK(is_part ? first >= 0 : first == 0, "crow_indices must begin with 0, got ", first);
  STD_TORCH_CHECK(is_part ? last <= csr.count : last == csr.count,
                  "crow_indices must end with the number of col_indices, ", csr.count, ", got ",
                  last);
  const int64_t falls = total(0, csr.num_rows, [&](int64_t begin, int64_t end) {
    int64_t n = 0;
    for (int64_t row = begin; row < end; ++row) n += crow[row] > crow[row + 1];
    return n;
  });
  STD_TORCH_CHECK(falls == 0, "crow_indices must not fall from one row to the next");

  std::atomic<bool> below{false}, beyond{false};
  const auto not_above_last = [&](int64_t i) { return i > first && col[i] <= col[i - 1]; };
  const int64_t at_starts = total(0, csr.num_rows, [&](int64_t begin, int64_t end) {
    int64_t n = 0;
    bool negative = false, large = false;
    for (int64_t row = begin; row < end; ++row) {
      if (crow[row] == crow[row + 1]) continue;
      n += not_above_last(crow[row]);
      negative |= col[crow[row]] < 0;
      large |= col[crow[row + 1] - 1] >= csr.num_labels;
    }
    if (negative) below = true;
    if (large) beyond = true;
    return n;
  });
  const int64_t in_all = total(std::min(first + 1, last), last, [&](int64_t begin, int64_t end) {
    int64_t n = 0;
    for (int64_t i = begin; i < end; ++i) n += col[i] <= col[i - 1];
    return n;
  });
  // Labels may fall where a new row starts, and nowhere else.
  STD_TORCH_CHECK(in_all == at_starts,
                  "col_indices must ascend within each row, without duplicates");
  STD_TORCH_CHECK(!below, "col_indices must not be negative");
  STD_TORCH_CHECK(is_part || !beyond, "col_indices must be below ", csr.num_labels,
                  ", the number of labels");
}

}  // namespace

void check_csr(const Arguments& a, const Csr& csr) {
  if (csr.index_size == 4) {
    check_values<int32_t>(csr, a.first_label.has_value());
  } else {
    check_values<int64_t>(csr, a.first_label.has_value());
  }
}

}  // namespace weighted_bce
