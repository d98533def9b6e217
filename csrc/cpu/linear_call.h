// A call of the loss of a linear layer, and the memory in which a thread computes parts of it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>

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

  Tensor input(Range rows) const { return part(x, rows, {0, x.size(1)}); }

  /// Writes the logits of a tile, and then over them what the mode says. Returns the sum of the
  /// losses. `weight` is that of these labels, in the dtype of arithmetic.
  double compute(Mode mode, const Tensor& logits, const Tensor& weight, Range rows,
                 Range labels) const;
};

/// Throws unless the tensor is on the CPU and a matrix of this size.
void check_matrix(const Tensor& m, int64_t rows, int64_t columns, const char* name);
/// Throws unless it is on the CPU and has so many elements in its one dimension.
void check_list(const Tensor& list, int64_t size, const char* name);
/// Throws unless it is at least 1, where it is given.
void check_most_labels(const std::optional<int64_t>& most_labels);

/// Each thread has these matrices.
struct LinearWorkspaces {
  Workspace logits;
  Workspace weight;    // in the dtype of arithmetic, if it has another one
  Workspace products;  // in the dtype of arithmetic, if the results have another one
  Workspace sums;      // in the dtype of arithmetic, of a bias

  LinearWorkspaces(const Cut& cut, int64_t features, ScalarType dtype, bool converts)
      : logits(dtype, cut.tile_rows * cut.tile_labels),
        weight(dtype, converts ? cut.tile_labels * features : 0),
        products(dtype, converts ? cut.tile_labels * features : 0),
        sums(dtype, cut.tile_labels) {}

  static int64_t bytes(const Cut& cut, int64_t features, ScalarType dtype, bool converts) {
    const int64_t others = 1 + (converts ? 2 * features : 0);
    return cut.tile_labels * (cut.tile_rows + others) * size_of(dtype);
  }
};

/// All threads together have no more memory for parts and workspaces.
constexpr int64_t kLinearBytes = int64_t{12} << 20;

/// Returns how many threads have memory and work.
inline int64_t threads_for(int64_t slabs, int64_t bytes_of_each) {
  const int64_t most = std::min<int64_t>(torch::stable::get_num_threads(), slabs);
  return std::clamp<int64_t>(kLinearBytes / bytes_of_each, 1, most);
}

/// Returns for how many parts there is memory, of so many bytes each, besides what threads have.
inline int64_t most_parts(int64_t threads, int64_t bytes_of_each, int64_t bytes_of_part) {
  const int64_t rest = kLinearBytes - threads * bytes_of_each;
  return std::max(threads, rest / std::max<int64_t>(bytes_of_part, 1));
}

/// Calls work(workspaces, slab) for each slab, in one parallel region of at most so many threads.
template <class T, class Make, class Work>
void run_slabs(Slabs<T>& slabs, int64_t threads, const Make& make, const Work& work) {
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    try {
      typename Slabs<T>::Slab slab;
      if (!slabs.take(slab)) return;  // others were faster
      const SerialProducts serial;
      const auto workspaces = make();
      do {
        work(workspaces, slab);
        slabs.finish(slab);
      } while (slabs.take(slab));
    } catch (...) {
      slabs.fail(std::current_exception());
    }
  });
  slabs.check();
}

}  // namespace weighted_bce
