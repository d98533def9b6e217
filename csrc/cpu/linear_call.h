// A call of the loss of a linear layer, and the memory in which a thread computes parts of it.
#pragma once

#include <atomic>
#include <optional>

#include "cpu/chunks.h"
#include "cpu/csr_check.h"
#include "cpu/isa.h"
#include "cpu/matrices.h"
#include "cpu/slabs.h"

namespace weighted_bce {

/// All but the weight of the layer.
struct LinearCall {
  Tensor x;                    // (rows, features), contiguous, of the dtype of arithmetic
  OptionalTensor bias;         // (labels,)
  OptionalTensor grad_output;  // 0-d, or (rows, 1)
  Arguments arguments;         // of all logits, of which the input has only the shape
  double divisor;

  LinearCall(const Arguments& a, const Tensor& x, const OptionalTensor& bias,
             const OptionalTensor& grad_output)
      : x(x), bias(bias), grad_output(grad_output), arguments(a) {
    const Problem problem = plan(Mode::kLoss, a, nullptr, nullptr);
    if (a.is_sparse()) check_csr(a, problem.csr);
    divisor = divisor_of(a, problem);
  }

  Tensor input(Range rows) const { return part(x, rows, {0, x.size(1)}); }

  /// Writes the logits of a tile, and then over them what the mode says. Returns the sum of the
  /// losses. `weight` is that of these labels, in the dtype of arithmetic.
  double compute(Mode mode, const Tensor& logits, const Tensor& weight, Range rows,
                 Range labels) const {
    if (bias) copy(logits, repeated(part_of_list(*bias, labels), rows.size()));
    product(logits, input(rows), transposed(weight), bias.has_value());
    Arguments a = arguments;
    a.input = logits;
    if (a.is_sparse()) {
      a.crow_indices = part_of_list(*a.crow_indices, {rows.begin, rows.end + 1});
      a.first_label = a.first_label.value_or(0) + labels.begin;
    } else {
      a.target = part(a.target, rows, labels);
    }
    if (a.weight) a.weight = part(*a.weight, rows, labels);
    if (a.pos_weight) a.pos_weight = part(*a.pos_weight, rows, labels);
    OptionalTensor factor;
    if (grad_output) factor = part(*grad_output, rows, labels);
    Problem problem =
        plan(mode, a, factor ? &*factor : nullptr, mode == Mode::kLoss ? nullptr : &logits);
    problem.divisor = divisor;
    return isa().run(problem, 0, problem.numel);
  }
};

/// Each thread has these matrices.
struct LinearWorkspaces {
  Workspace logits;
  Workspace weight;    // in the dtype of arithmetic, if it has another one
  Workspace products;  // in the dtype of arithmetic, if the results have another one
  Workspace sums;      // the same of a bias

  LinearWorkspaces(const Cut& cut, int64_t features, ScalarType dtype, bool converts)
      : logits(dtype, cut.tile_rows * cut.tile_labels),
        weight(dtype, converts ? cut.tile_labels * features : 0),
        products(dtype, converts ? cut.tile_labels * features : 0),
        sums(dtype, converts ? cut.tile_labels : 0) {}

  static int64_t bytes(const Cut& cut, int64_t features, ScalarType dtype, bool converts) {
    const int64_t other = converts ? 2 * features + 1 : 0;
    return cut.tile_labels * (cut.tile_rows + other) * size_of(dtype);
  }
};

/// All threads together have no more memory for parts and workspaces.
constexpr int64_t kLinearBytes = int64_t{15} << 20;

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
