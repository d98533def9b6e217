// The CUDA kernels on more than 2^32 elements, of which a few blocks run: the rest is address space
// without memory.
#pragma once

#include <sys/mman.h>

#include "cuda_run.h"
#include "sparse_labels.h"

namespace native {

/// Memory that exists where it is touched.
template <class T>
class Pages {
  int64_t bytes_;
  void* memory_;

 public:
  explicit Pages(int64_t count) : bytes_(count * sizeof(T)) {
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) die("no address space for more than 2^32 elements");
  }
  ~Pages() { munmap(memory_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  T* data() const { return static_cast<T*>(memory_); }
  T& operator[](int64_t i) const { return data()[i]; }
};

template <class X>
class Far {
  using T = typename cuda::Arithmetic<X>::T;
  static constexpr int64_t kRows = 65551, kLabels = 65543, kPadding = 3,
                           kElements = kRows * kLabels;

  const Pages<X> x_{kRows * (kLabels + kPadding)}, out_{kElements};
  const Pages<uint8_t> y_{kElements};
  const Pages<T> p_{kLabels}, w_{kRows};

  Problem plan_;
  bool vectors_, sparse_;
  int64_t padding_, per_block_, tiles_;
  int blocks_;

 public:
  bool passes() {
    for (int64_t k = 0; k < kLabels; ++k) p_[k] = static_cast<T>(1 + k % 7);
    for (int64_t k = 0; k < kRows; ++k) w_[k] = static_cast<T>(1 + k % 5) / 4;
    for (const int index_size : {0, 4, 8}) {
      for (const bool has_weight : {false, true}) {
        if (!passes(false, has_weight, 0, index_size)) return false;
        if (!passes(false, has_weight, kPadding, index_size)) return false;
        if (sizeof(X) < 8 && !passes(true, has_weight, 0, index_size)) return false;
      }
    }
    return true;
  }

 private:
  static Operand operand(const void* data, Dtype dtype, int64_t of_row, int64_t of_label) {
    Operand o;
    o.data = data;
    o.dtype = dtype;
    o.element_size = kBytesOf[static_cast<int>(dtype)];
    o.strides[0] = of_row;
    o.strides[1] = of_label;
    return o;
  }

  /// Each block has two turns or one; those with the first and the last element run, and one
  /// between.
  bool passes(bool vectors, bool has_weight, int64_t padding, int index_size) {
    const Dtype of_factors = sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;
    vectors_ = vectors;
    padding_ = padding;
    sparse_ = index_size > 0;
    per_block_ = 256 * (vectors ? 16 / static_cast<int64_t>(sizeof(X)) : 1);
    tiles_ = (kElements + per_block_ - 1) / per_block_;
    blocks_ = static_cast<int>(tiles_ / 2 + 1);
    plan_ = {};
    plan_.dims = 2;
    plan_.numel = kElements;
    plan_.sizes[0] = kRows;
    plan_.sizes[1] = kLabels;
    plan_.x = operand(x_.data(), dtype_of<X>(), kLabels + padding, 1);
    if (!sparse_) plan_.y = operand(y_.data(), Dtype::kBool, kLabels, 1);
    plan_.p = operand(p_.data(), of_factors, 0, 1);
    if (has_weight) plan_.w = operand(w_.data(), of_factors, 1, 0);
    plan_.out = operand(out_.data(), dtype_of<X>(), kLabels, 1);

    const Pages<double> sums(blocks_);
    const Grid grid{
        blocks_,
        Order::kForward,
        nullptr,
        {0, blocks_ / 3, static_cast<int>(sparse_ ? blocks_ - 1 : (tiles_ - 1) % blocks_)}};
    for (const int block : grid.only) {
      each_of(block, [&](int64_t i) {
        encode(dtype_of<X>(), static_cast<double>(i * 7919 % 2001 - 1000) / 100,
               reinterpret_cast<char*>(x_.data() + i + i / kLabels * padding_));
        y_[i] = i % 13 == 0;
        std::memset(out_.data() + i, 0xff, sizeof(X));
      });
    }
    std::unique_ptr<SparseLabels> labels;
    if (sparse_) {
      labels = list(grid, index_size);
      plan_.csr = labels->csr;
    }
    T one = 1, used = 0;
    plan_.grad_output = uniform(&one, of_factors, sizeof(T));
    const Problem problem = planned(plan_, Mode::kLossAndGrad, {});
    if (vectors && !cuda::takes_vectors(problem)) die("mapped memory is not aligned");
    cuda::Workspace workspace;
    workspace.sums = sums.data();
    workspace.used = &used;
    start<X>(problem, workspace, vectors, grid);
    bool passed = true;
    for (const int block : grid.only) passed = passed && wrote(block, sums[block]);
    return passed && counts(grid, workspace);
  }

  /// The positives of the blocks that run.
  std::unique_ptr<SparseLabels> list(const Grid& grid, int index_size) const {
    std::vector<int64_t> elements, crow, col;
    for (const int block : grid.only) {
      each_of(block, [&](int64_t i) {
        if (y_[i]) elements.push_back(i);
      });
    }
    std::sort(elements.begin(), elements.end());
    for (const int64_t i : elements) {
      crow.resize(i / kLabels + 1, static_cast<int64_t>(col.size()));
      col.push_back(i % kLabels);
    }
    crow.resize(kRows + 1, static_cast<int64_t>(col.size()));
    return std::make_unique<SparseLabels>(index_size, kLabels, 0, crow, col);
  }

  template <class Do>
  void each_of(int block, const Do& act) const {
    const int64_t rest = vectors_ ? kElements / (16 / sizeof(X)) * (16 / sizeof(X)) : kElements;
    // With sparse labels, consecutive ones: two for each block but the last ones.
    const int64_t twice = tiles_ - blocks_, first = block + std::min<int64_t>(block, twice);
    const int64_t end = sparse_ ? first + 1 + (block < twice) : tiles_;
    for (int64_t tile = sparse_ ? first : block; tile < end; tile += sparse_ ? 1 : blocks_) {
      for (int64_t i = tile * per_block_; i < std::min((tile + 1) * per_block_, rest); ++i) act(i);
    }
    for (int64_t i = rest; block == 0 && i < kElements; ++i) act(i);
  }

  bool wrote(int block, double got) const {
    Expected sum;
    int64_t wrong = -1;
    each_of(block, [&](int64_t i) {
      const int64_t row = i / kLabels, label = i % kLabels;
      const double x =
          decode(dtype_of<X>(), reinterpret_cast<const char*>(x_.data() + i + row * padding_));
      const auto [loss, slope] = formula({}, x, y_[i], plan_.w.data ? w_[row] : 1, p_[label]);
      const double grad = decode(dtype_of<X>(), reinterpret_cast<const char*>(out_.data() + i));
      if (error_of(grad, slope, dtype_of<X>(), sizeof(X) == 8) > 1) wrong = i;
      sum = {sum.value + loss.value, sum.size + loss.size};
    });
    if (wrong < 0 && error_of(got, sum, Dtype::kFloat64, sizeof(X) == 8) <= 1) return true;
    std::printf("block %d of %d, vectors %d: sum %.9g, expected %.9g, wrong element %lld\n", block,
                blocks_, vectors_, got, sum.value, (long long)wrong);
    return false;
  }

  /// As many targets as differ from 1; with sparse labels of a row for each thread.
  bool counts(const Grid& grid, const cuda::Workspace& workspace) {
    if (vectors_) return true;
    Numbers numbers;
    numbers.ignores = true;
    numbers.ignore_index = 1;
    start_count<T>(planned(plan_, Mode::kCount, numbers), workspace, grid);
    for (const int block : grid.only) {
      double wanted = 0;
      if (sparse_) {
        wanted = without_positives(grid, int64_t{256} * block);
      } else {
        each_of(block, [&](int64_t i) { wanted += y_[i] != 1; });
      }
      if (workspace.sums[block] != wanted) {
        std::printf("block %d counts %g, expected %g\n", block, workspace.sums[block], wanted);
        return false;
      }
    }
    return true;
  }

  /// The targets of 256 rows that are 0.
  double without_positives(const Grid& grid, int64_t first) const {
    const int64_t end = std::min(first + 256, kRows);
    double count = end > first ? static_cast<double>((end - first) * kLabels) : 0;
    for (const int block : grid.only) {
      each_of(block,
              [&](int64_t i) { count -= y_[i] && i / kLabels >= first && i / kLabels < end; });
    }
    return count;
  }
};

}  // namespace native
