// Sparse labels for the native tests: the positives of dense targets as a Csr.
#pragma once

#include <memory>

#include "operand.h"

namespace native {

/// Indices in memory that ends where they end; what lies around is poisoned.
class SparseLabels {
  const Dtype dtype_;
  std::unique_ptr<Tensor> crow_indices_, col_indices_;

  std::unique_ptr<Tensor> stored(const std::vector<int64_t>& values) const {
    const auto count = static_cast<int64_t>(values.size());
    auto indices = std::make_unique<Tensor>(Shape{count}, dtype_, Layout::kDense, draw(2));
    for (int64_t k = 0; k < count; ++k) {
      std::memcpy(indices->at(k), &values[k], indices->operand.element_size);  // little-endian
    }
    return indices;
  }

 public:
  weighted_bce::Csr csr;

  SparseLabels(int index_size, int64_t labels, int64_t first_label,
               const std::vector<int64_t>& crow, const std::vector<int64_t>& col)
      : dtype_(index_size == 4 ? Dtype::kInt32 : Dtype::kInt64),
        crow_indices_(stored(crow)),
        col_indices_(stored(col)) {
    csr.crow_indices = crow_indices_->operand.data;
    csr.col_indices = col_indices_->operand.data;
    csr.index_size = index_size;
    csr.num_rows = static_cast<int64_t>(crow.size()) - 1;
    csr.num_labels = labels;
    csr.count = static_cast<int64_t>(col.size());
    csr.first_label = first_label;
  }

  /// Returns those of y, [rows, labels]; sometimes among labels and rows that are outside of y.
  static std::unique_ptr<SparseLabels> of(const Tensor& y, int64_t rows, int64_t labels,
                                          int index_size) {
    const bool windowed = draw(2);
    const int64_t far = index_size == 4 ? 1000000000 : int64_t{1} << 60;
    const int64_t first_label = windowed ? (draw(4) ? 1 + draw(3) : far + draw(9)) : 0;
    std::vector<int64_t> crow, col;
    const auto others = [&](int64_t from, int64_t to) {
      for (int64_t label = from; windowed && label < to; ++label) {
        if (draw(3) == 0) col.push_back(label);
      }
    };
    others(0, 5);
    for (int64_t row = 0; row < rows; ++row) {
      crow.push_back(static_cast<int64_t>(col.size()));
      others(std::max<int64_t>(first_label - 3, 0), first_label);
      for (int64_t label = 0; label < labels; ++label) {
        if (y.get(row * labels + label) == 1) col.push_back(first_label + label);
      }
      others(first_label + labels, first_label + labels + 3);
    }
    crow.push_back(static_cast<int64_t>(col.size()));
    others(first_label, first_label + 5);
    return std::make_unique<SparseLabels>(index_size, labels, first_label, crow, col);
  }

  /// Returns malformed labels: entries in no order, below 0 and beyond the end.
  static std::unique_ptr<SparseLabels> malformed(int64_t rows, int64_t labels, int index_size) {
    const int64_t least = index_size == 4 ? INT32_MIN : INT64_MIN, most = ~least;
    const int64_t count = draw(3) * draw(2 * rows + 300), first_label = draw(2) * 3;
    const auto any = [&](int64_t below) {
      const int64_t wild[] = {least, -1, below, below + 1, most};
      return draw(3) ? draw(below + 1) : wild[draw(5)];
    };
    const int64_t kind = draw(3);  // in order, in no order, or the whole of col in each row
    std::vector<int64_t> crow, col;
    for (int64_t row = 0; row <= rows; ++row) {
      crow.push_back(kind == 0 ? row * count / rows : kind == 1 ? any(count) : row % 2 * most);
    }
    for (int64_t entry = 0; entry < count; ++entry) col.push_back(any(first_label + labels));
    if (draw(2)) std::sort(col.begin(), col.end());
    return std::make_unique<SparseLabels>(index_size, labels, first_label, crow, col);
  }

  void describe() const {
    std::printf("  sparse labels: %lld rows of %lld labels from %lld, %lld entries of %d bytes\n",
                (long long)csr.num_rows, (long long)csr.num_labels, (long long)csr.first_label,
                (long long)csr.count, csr.index_size);
  }
};

}  // namespace native
