// A call of the loss of a linear layer, and the tiles of its logits that threads compute.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "cpu/matrices.h"
#include "cpu/slabs.h"

namespace weighted_bce {

/// This is a call of the loss: all but the weight of the layer.
struct LinearCall {
  Tensor x;                    // (rows, features), contiguous, of the dtype of arithmetic
  OptionalTensor bias;         // (labels,)
  OptionalTensor grad_output;  // 0-d, or (rows, 1)
  Arguments arguments;         // of all logits, of which the input has only the shape
  double divisor;

  /// Throws where they do not fit each other, before anything is computed.
  LinearCall(const Arguments& a, const Tensor& x, const OptionalTensor& bias,
             const OptionalTensor& grad_output);

  /// Throws unless the weight fits the call.
  void check_weight(const Tensor& weight) const;

  /// Writes the logits of a tile, and then over them what the mode says. Returns the sum of the
  /// losses. `weight` is that of these labels, in the dtype of arithmetic.
  double compute(Mode mode, const Tensor& logits, const Tensor& weight, Range rows,
                 Range labels) const;
};

/// Throws unless the tensor is on the CPU, a matrix of this size, and of a dtype that logits may
/// have.
void check_matrix(const Tensor& m, int64_t rows, int64_t columns, const char* name);
/// Throws unless it is on the CPU, has so many elements in its one dimension, and such a dtype.
void check_list(const Tensor& list, int64_t size, const char* name);
/// Throws unless it is at least 1, where it is given.
void check_most_labels(const std::optional<int64_t>& most_labels);

/// All threads together have no more memory for tiles and for parts of sums.
constexpr int64_t kLinearBytes = int64_t{12} << 20;

/// How tiles are computed, and with which matrices.
struct LinearTiles {
  Cut cut;
  int64_t features;
  ScalarType dtype;      // of arithmetic
  bool converts_weight;  // whether the weight has another one
  bool has_products;     // whether a thread needs a matrix for (tile_labels, features)

  /// Returns how many elements the matrices of one thread have.
  int64_t elements() const {
    const int64_t of_features = (converts_weight ? 1 : 0) + (has_products ? 1 : 0);
    return cut.tile_labels * (cut.tile_rows + of_features * features);
  }
};

/// Each thread has these matrices, of the dtype of arithmetic.
class LinearWorkspaces {
  const bool converts_weight_;
  const Workspace weight_;

 public:
  const Workspace logits, products;

  explicit LinearWorkspaces(const LinearTiles& t)
      : converts_weight_(t.converts_weight),
        weight_(t.dtype, t.converts_weight ? t.cut.tile_labels * t.features : 0),
        logits(t.dtype, t.cut.tile_rows * t.cut.tile_labels),
        products(t.dtype, t.has_products ? t.cut.tile_labels * t.features : 0) {}

  /// Returns rows of the weight in the dtype of arithmetic.
  Tensor weight_of(const Tensor& weight, Range labels) const {
    const Tensor rows = rows_of(weight, labels);
    if (!converts_weight_) return rows;
    const Tensor converted = weight_.matrix(labels.size(), rows.size(1));
    copy(converted, rows);
    return converted;
  }
};

/// Cuts a range into slabs and calls compute(workspaces, slab, part) for each, in one parallel
/// region. `compute` writes the `size` elements of the part; parts are added to `total` in the
/// order of slabs, and so is what it returns, whose sum this returns.
template <class T, class Compute>
double run_slabs(const LinearTiles& tiles, Range range, int64_t size, T* total,
                 const Compute& compute) {
  const Parts ranges(range, tiles.cut.slab);
  const int64_t own_bytes = tiles.elements() * size_of(tiles.dtype);
  const int64_t part_bytes = size * static_cast<int64_t>(sizeof(T));
  const int64_t threads = std::clamp<int64_t>(
      std::min<int64_t>(kLinearBytes / (own_bytes + part_bytes), torch::stable::get_num_threads()),
      1, ranges.count());
  const int64_t rest = kLinearBytes - threads * own_bytes;
  const int64_t parts = std::max(threads, rest / std::max<int64_t>(part_bytes, 1));
  Slabs<T> slabs(ranges.count(), size, parts, total);
  std::vector<double> sums(ranges.count());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    try {
      typename Slabs<T>::Slab slab;
      if (!slabs.take(slab)) return;  // others were faster
      const SerialProducts serial;
      const LinearWorkspaces own(tiles);
      do {
        sums[slab.index] = compute(own, ranges[slab.index], slab.part);
        slabs.finish(slab);
      } while (slabs.take(slab));
    } catch (...) {
      slabs.fail(std::current_exception());
    }
  });
  slabs.check();
  double sum = 0;
  for (const double one : sums) sum += one;
  return sum;
}

}  // namespace weighted_bce
