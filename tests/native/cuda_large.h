// The CUDA kernels get more than 2^32 elements, of which a few blocks run: the others are address
// space without memory.
#pragma once

#include "cuda_run.h"
#include "sparse_labels.h"

namespace native {

template <class X>
class LargeCase {
  using T = typename cuda::Arithmetic<X>::T;
  static constexpr int64_t kRows = 65551, kLabels = 65543, kPadding = 3,
                           kElements = kRows * kLabels;
  static constexpr bool kWide = sizeof(X) == 8;

  const Shape shape_{kRows, kLabels};
  Tensor x_{shape_, dtype_of<X>(), {kLabels, 1}, kRows * (kLabels + kPadding)},
      out_{shape_, dtype_of<X>(), {kLabels, 1}, kElements},
      y_{shape_, Dtype::kBool, {kLabels, 1}, kElements}, p_{shape_, dtype_of<T>(), {0, 1}, kLabels},
      w_{shape_, dtype_of<T>(), {1, 0}, kRows};

  Problem problem_;
  bool vectors_, sparse_;
  int64_t per_block_, tiles_;
  int blocks_;

 public:
  bool passes() {
    for (int64_t k = 0; k < kLabels; ++k) p_.set(k, static_cast<double>(1 + k % 7));
    for (int64_t k = 0; k < kRows; ++k) w_.set(k * kLabels, static_cast<double>(1 + k % 5) / 4);
    for (const int index_size : {0, 4, 8}) {
      for (const bool has_weight : {false, true}) {
        if (!passes(false, has_weight, 0, index_size)) return false;
        if (!passes(false, has_weight, kPadding, index_size)) return false;
        if (!kWide && !passes(true, has_weight, 0, index_size)) return false;
      }
    }
    return true;
  }

 private:
  /// Each block has two turns or one; those with the first and the last element run, and one
  /// between.
  bool passes(bool vectors, bool has_weight, int64_t padding, int index_size) {
    vectors_ = vectors;
    x_.operand.strides[0] = kLabels + padding;
    sparse_ = index_size > 0;
    per_block_ = 256 * (vectors ? 16 / static_cast<int64_t>(sizeof(X)) : 1);
    tiles_ = (kElements + per_block_ - 1) / per_block_;
    blocks_ = static_cast<int>(tiles_ / 2 + 1);
    const auto last = static_cast<int>(sparse_ ? blocks_ - 1 : (tiles_ - 1) % blocks_);
    const Grid grid{blocks_, Order::kForward, nullptr, {0, blocks_ / 3, last}};
    for (const int block : grid.only) {
      for (const int64_t i : elements_of(block)) {
        x_.set(i, static_cast<double>(i * 7919 % 2001 - 1000) / 100);
        *y_.at(i) = i % 13 == 0;  // and no draw of what is true, for so many
        out_.set(i, std::nan(""));
      }
    }
    T one = 1, used = 0;
    problem_ = problem_of(shape_);
    problem_.x = x_.operand;
    problem_.p = p_.operand;
    if (has_weight) problem_.w = w_.operand;
    problem_.out = out_.operand;
    problem_.grad_output = uniform(&one, dtype_of<T>());
    std::unique_ptr<SparseLabels> labels;
    if (sparse_) {
      labels = sparse_labels(grid, index_size);
      problem_.csr = labels->csr;
    } else {
      problem_.y = y_.operand;
    }

    const Problem problem = planned(problem_, Mode::kLossAndGrad, {});
    if (vectors && !cuda::takes_vectors(problem)) fail("mapped memory is not aligned");
    std::vector<double> sums(blocks_);
    cuda::Workspace workspace;
    workspace.sums = sums.data();
    workspace.used = &used;
    start<X>(problem, workspace, vectors, grid);
    bool passed = true;
    for (const int block : grid.only) passed = passed && wrote(block, sums[block]);
    return passed && (vectors || counts(grid, workspace));
  }

  /// Returns the positives of the blocks that run.
  std::unique_ptr<SparseLabels> sparse_labels(const Grid& grid, int index_size) const {
    std::vector<int64_t> elements, crow, col;
    for (const int block : grid.only) {
      for (const int64_t i : elements_of(block)) {
        if (y_.get(i) != 0) elements.push_back(i);
      }
    }
    std::sort(elements.begin(), elements.end());
    for (const int64_t i : elements) {
      crow.resize(i / kLabels + 1, static_cast<int64_t>(col.size()));
      col.push_back(i % kLabels);
    }
    crow.resize(kRows + 1, static_cast<int64_t>(col.size()));
    return std::make_unique<SparseLabels>(index_size, kLabels, 0, crow, col);
  }

  std::vector<int64_t> elements_of(int block) const {
    constexpr int64_t kLanes = 16 / sizeof(X);
    const int64_t rest = vectors_ ? kElements / kLanes * kLanes : kElements;
    // With sparse labels, consecutive ones: two for each block but the last ones.
    const int64_t twice = tiles_ - blocks_, first = block + std::min<int64_t>(block, twice);
    const int64_t end = sparse_ ? first + 1 + (block < twice) : tiles_;
    std::vector<int64_t> elements;
    for (int64_t tile = sparse_ ? first : block; tile < end; tile += sparse_ ? 1 : blocks_) {
      const int64_t end_of_tile = std::min((tile + 1) * per_block_, rest);
      for (int64_t i = tile * per_block_; i < end_of_tile; ++i) elements.push_back(i);
    }
    for (int64_t i = rest; block == 0 && i < kElements; ++i) elements.push_back(i);
    return elements;
  }

  bool wrote(int block, double got) const {
    Expected sum;
    int64_t wrong = -1;
    for (const int64_t i : elements_of(block)) {
      const double weight = problem_.w.data ? w_.get(i) : 1;
      const auto [loss, slope] = formula({}, x_.get(i), y_.get(i), weight, p_.get(i));
      if (error_of(out_.get(i), slope, dtype_of<X>(), kWide) > 1) wrong = i;
      sum = {sum.value + loss.value, sum.size + loss.size};
    }
    if (wrong < 0 && error_of(got, sum, Dtype::kFloat64, kWide) <= 1) return true;
    std::printf("block %d of %d, vectors %d: sum %.9g, expected %.9g, wrong element %lld\n", block,
                blocks_, vectors_, got, sum.value, (long long)wrong);
    return false;
  }

  /// Counts the targets that differ from 1; with sparse labels each thread has a row.
  bool counts(const Grid& grid, const cuda::Workspace& workspace) {
    Numbers numbers;
    numbers.ignores = true;
    numbers.ignore_index = 1;
    start_count<T>(planned(problem_, Mode::kCount, numbers), workspace, grid);
    for (const int block : grid.only) {
      const double wanted = negatives(grid, block);
      if (workspace.sums[block] == wanted) continue;
      std::printf("block %d counts %g, expected %g\n", block, workspace.sums[block], wanted);
      return false;
    }
    return true;
  }
  double negatives(const Grid& grid, int block) const {
    double count = 0;
    if (!sparse_) {
      for (const int64_t i : elements_of(block)) count += y_.get(i) != 1;
      return count;
    }
    const int64_t first = std::min(int64_t{256} * block, kRows), end = std::min(first + 256, kRows);
    for (const int other : grid.only) {
      for (const int64_t i : elements_of(other)) {
        count += y_.get(i) == 1 && i / kLabels >= first && i / kLabels < end;
      }
    }
    return static_cast<double>((end - first) * kLabels) - count;
  }
};

}  // namespace native
