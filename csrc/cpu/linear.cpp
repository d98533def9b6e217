// The ops of a linear layer with its loss on the CPU: one parallel region for the whole pass, in
// which each thread computes one tile of the logits after another, in its own caches.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/linear_call.h"
#include "cpu/scalar.h"

namespace weighted_bce {
namespace {

/// These receive the gradients of a slab: a sum over its labels, and sums over its rows.
struct Gradients {
  OptionalTensor input;         // (rows, features)
  OptionalTensor weight, bias;  // (labels, features) and (1, labels)
};

void check_same_dtype(const Tensor& result, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(result.scalar_type() == like.scalar_type(), name,
                  " must have the dtype of what it is the gradient of");
}

/// Computes the sum of the losses, and their gradients.
template <class T>
class Pass {
 public:
  Pass(const LinearCall& call, Mode mode, const Tensor& weight, const Gradients& all,
       const Cut& cut)
      : call_(call),
        mode_(mode),
        weight_(weight),
        all_(all),
        cut_(cut),
        dtype_(call.x.scalar_type()),
        features_(call.x.size(1)),
        rows_{0, call.x.size(0)},
        labels_{0, weight.size(0)},
        ones_(dtype_, cut.tile_rows),
        blocks_(rows_, cut.block_rows) {
    std::fill_n(static_cast<T*>(ones_.memory()), cut.tile_rows, T{1});
    converts_ = weight.scalar_type() != dtype_;
  }

  /// Computes all gradients, and returns the sum of the losses.
  double run() {
    double sum = 0;
    for (int64_t b = 0; b < blocks_.count(); ++b) sum += run_block(blocks_[b], b > 0);
    return sum;
  }

 private:
  using Slab = typename Slabs<T>::Slab;

  /// Computes a block of rows. `add` tells whether earlier ones have written the gradient of the
  /// weight.
  double run_block(Range rows, bool add) {
    const Parts cut(cut_.by_rows ? rows : labels_, cut_.slab);
    const int64_t size = part_size(rows), part_bytes = size * sizeof(T);
    const int64_t own_bytes = LinearWorkspaces::bytes(cut_, features_, dtype_, converts_);
    const int64_t threads = threads_for(cut.count(), own_bytes + part_bytes);
    const Workspace total(dtype_, size);
    auto* const memory = static_cast<T*>(total.memory());
    Slabs<T> slabs(cut.count(), size, most_parts(threads, own_bytes, part_bytes), memory);
    std::vector<double> sums(cut.count());
    run_slabs(
        slabs, threads, [&] { return LinearWorkspaces(cut_, features_, dtype_, converts_); },
        [&](const LinearWorkspaces& own, const Slab& slab) {
          const Range some = cut[slab.index];
          const Range of_rows = cut_.by_rows ? some : rows;
          const Range of_labels = cut_.by_rows ? labels_ : some;
          const Gradients gradients = gradients_of(slab.part, of_rows, of_labels);
          sums[slab.index] = run_slab(own, gradients, of_rows, of_labels, add);
        });
    const Gradients of_all = parts_in(memory, rows);
    const Range all_features{0, features_};
    if (of_all.input) copy(part(*all_.input, rows, all_features), *of_all.input);
    if (of_all.weight) copy(*all_.weight, *of_all.weight);
    if (of_all.bias) copy(part_of_list(*all_.bias, labels_), *of_all.bias);
    double sum = 0;
    for (const double part : sums) sum += part;
    return sum;
  }

  /// Returns how many elements a slab adds to those of the others.
  int64_t part_size(Range rows) const {
    if (cut_.by_rows) {
      return labels_.size() * ((all_.weight ? features_ : 0) + (all_.bias ? 1 : 0));
    }
    return all_.input ? rows.size() * features_ : 0;
  }

  /// Returns the gradients that are in the memory of a part.
  Gradients parts_in(T* memory, Range rows) const {
    Gradients gradients;
    const auto next = [&](int64_t rows, int64_t columns) {
      T* const data = memory;
      memory += rows * columns;
      return matrix(data, dtype_, {rows, columns}, {columns, 1});
    };
    if (cut_.by_rows) {
      if (all_.weight) gradients.weight = next(labels_.size(), features_);
      if (all_.bias) gradients.bias = next(1, labels_.size());
    } else {
      if (all_.input) gradients.input = next(rows.size(), features_);
    }
    return gradients;
  }

  /// Returns where a slab writes its gradients.
  Gradients gradients_of(T* memory, Range rows, Range labels) const {
    Gradients gradients = parts_in(memory, rows);
    const Range all_features{0, features_};
    if (cut_.by_rows) {
      if (all_.input) gradients.input = part(*all_.input, rows, all_features);
    } else {
      if (all_.weight) gradients.weight = part(*all_.weight, labels, all_features);
      if (all_.bias) gradients.bias = part_of_list(*all_.bias, labels);
    }
    return gradients;
  }

  /// Computes a slab, and returns the sum of its losses.
  double run_slab(const LinearWorkspaces& own, const Gradients& gradients, Range rows, Range labels,
                  bool add) const {
    double sum = 0;
    const Parts of_labels(labels, cut_.tile_labels), of_rows(rows, cut_.tile_rows);
    const Range all_features{0, features_};
    for (int64_t l = 0; l < of_labels.count(); ++l) {
      const Range tile_labels = of_labels[l], at_labels = tile_labels.within(labels);
      Tensor weight = part(weight_, tile_labels, all_features);
      if (converts_) weight = converted(weight, own.weight);
      Gradients tile = gradients;
      if (tile.weight) tile.weight = part(*tile.weight, at_labels, all_features);
      if (tile.bias) tile.bias = part(*tile.bias, {0, 1}, at_labels);
      Gradients sums = tile;
      if (tile.weight) sums.weight = summed(*tile.weight, own.products);
      if (tile.bias) sums.bias = summed(*tile.bias, own.sums);
      for (int64_t r = 0; r < of_rows.count(); ++r) {
        const Range tile_rows = of_rows[r], at_rows = tile_rows.within(rows);
        if (tile.input) sums.input = part(*tile.input, at_rows, all_features);
        const Tensor logits = own.logits.matrix(tile_rows.size(), tile_labels.size());
        sum += call_.compute(mode_, logits, weight, tile_rows, tile_labels);
        add_products(sums, logits, weight, tile_rows, l > 0, add || r > 0);
      }
      if (tile.weight) finish(*tile.weight, *sums.weight);
      if (tile.bias) finish(*tile.bias, *sums.bias);
    }
    return sum;
  }

  /// Adds what follows from the gradient that has replaced the logits.
  void add_products(const Gradients& sums, const Tensor& logits, const Tensor& weight, Range rows,
                    bool add_to_rows, bool add_to_labels) const {
    if (sums.input) product(*sums.input, logits, weight, add_to_rows);
    if (sums.weight) product(*sums.weight, transposed(logits), call_.input(rows), add_to_labels);
    if (sums.bias) product(*sums.bias, ones_.matrix(1, logits.size(0)), logits, add_to_labels);
  }

  /// Returns where sums are computed that `finish` then copies to `result`.
  Tensor summed(const Tensor& result, const Workspace& workspace) const {
    if (result.scalar_type() == dtype_) return result;
    return workspace.matrix(result.size(0), result.size(1));
  }
  void finish(const Tensor& result, const Tensor& sums) const {
    if (result.scalar_type() != dtype_) copy(result, sums);
  }

  const LinearCall& call_;
  const Mode mode_;
  const Tensor& weight_;
  const Gradients& all_;
  const Cut cut_;
  const ScalarType dtype_;
  const int64_t features_;
  const Range rows_, labels_;
  bool converts_;  // whether the weight and its gradient have another dtype than arithmetic
  const Workspace ones_;
  const Parts blocks_;
};

/// Returns a sum in double precision, of several at a time.
template <class T>
double sum_of(const T* values, int64_t n) {
  constexpr int kAtOnce = 8;
  double sums[kAtOnce] = {};
  int64_t i = 0;
  for (; i + kAtOnce <= n; i += kAtOnce) {
    for (int k = 0; k < kAtOnce; ++k) sums[k] += values[i + k];
  }
  return std::accumulate(sums, sums + kAtOnce, std::accumulate(values + i, values + n, 0.0));
}

/// Writes the sum of each row's losses to `losses`.
template <class T>
void sum_rows(const LinearCall& call, const Tensor& weight, const Cut& cut, T* losses) {
  const Range rows{0, call.x.size(0)}, labels{0, weight.size(0)};
  const int64_t features = call.x.size(1);
  const ScalarType dtype = call.x.scalar_type();
  const bool converts = weight.scalar_type() != dtype;
  const Parts cuts(cut.by_rows ? rows : labels, cut.slab);
  const int64_t size = cut.by_rows ? 0 : rows.size();
  std::vector<double> total(rows.size());
  const int64_t own_bytes = LinearWorkspaces::bytes(cut, features, dtype, converts);
  const int64_t part_bytes = size * static_cast<int64_t>(sizeof(double));
  const int64_t threads = threads_for(cuts.count(), own_bytes + part_bytes);
  Slabs<double> slabs(cuts.count(), size, most_parts(threads, own_bytes, part_bytes), total.data());
  run_slabs(
      slabs, threads, [&] { return LinearWorkspaces(cut, features, dtype, converts); },
      [&](const LinearWorkspaces& own, const Slabs<double>::Slab& slab) {
        const Range of_rows = cut.by_rows ? cuts[slab.index] : rows;
        double* const sums = cut.by_rows ? total.data() + of_rows.begin : slab.part;
        std::fill_n(sums, of_rows.size(), 0.0);
        const Parts label_tiles(cut.by_rows ? labels : cuts[slab.index], cut.tile_labels);
        const Parts row_tiles(of_rows, cut.tile_rows);
        for (int64_t l = 0; l < label_tiles.count(); ++l) {
          Tensor weights = part(weight, label_tiles[l], {0, features});
          if (converts) weights = converted(weights, own.weight);
          for (int64_t r = 0; r < row_tiles.count(); ++r) {
            const Range tile = row_tiles[r];
            const int64_t n = label_tiles[l].size();
            const Tensor logits = own.logits.matrix(tile.size(), n);
            call.compute(Mode::kUnreduced, logits, weights, tile, label_tiles[l]);
            const T* row = static_cast<const T*>(logits.const_data_ptr());
            for (int64_t i = tile.begin; i < tile.end; ++i, row += n) {
              sums[i - of_rows.begin] += sum_of(row, n);
            }
          }
        }
      });
  std::copy(total.begin(), total.end(), losses);
}

Tensor linear_pass_(const Arguments& a, const OptionalTensor& grad_output, const Tensor& x,
                    const Tensor& weight, const OptionalTensor& bias,
                    const OptionalTensor& input_grad, const OptionalTensor& weight_grad,
                    const OptionalTensor& bias_grad, const std::optional<int64_t>& most_labels) {
  const LinearCall call(a, x, bias, grad_output);
  call.check_weight(weight);
  if (input_grad) check_matrix(*input_grad, x.size(0), x.size(1), "input_grad");
  if (input_grad) check_same_dtype(*input_grad, x, "input_grad");
  if (weight_grad) check_matrix(*weight_grad, weight.size(0), weight.size(1), "weight_grad");
  if (weight_grad) check_same_dtype(*weight_grad, weight, "weight_grad");
  if (bias_grad) check_list(*bias_grad, weight.size(0), "bias_grad");
  check_most_labels(most_labels);
  const bool is_double = x.scalar_type() == ScalarType::Double;
  const bool converts = weight.scalar_type() != x.scalar_type();
  const Cut cut = Cut::of_pass(x.size(0), weight.size(0), x.size(1), converts, most_labels);
  if (!grad_output && a.reduction == kNone) {
    const int64_t size = x.size(0), stride = 1;
    Tensor losses = new_tensor(x, x.scalar_type(), 1, &size, &stride);
    if (is_double) {
      sum_rows(call, weight, cut, static_cast<double*>(losses.mutable_data_ptr()));
    } else {
      sum_rows(call, weight, cut, static_cast<float*>(losses.mutable_data_ptr()));
    }
    return losses;
  }
  Mode mode = Mode::kLoss;
  if (grad_output) mode = a.reduction == kNone ? Mode::kGrad : Mode::kLossAndGrad;
  const Gradients gradients{input_grad, weight_grad, bias_grad};
  const double sum = is_double ? Pass<double>(call, mode, weight, gradients, cut).run()
                               : Pass<float>(call, mode, weight, gradients, cut).run();
  return new_scalar(a, call.divisor == 0 ? 0 : sum / call.divisor);
}

}  // namespace
}  // namespace weighted_bce

STABLE_TORCH_LIBRARY_IMPL(weighted_bce, CPU, m) {
  m.impl("linear_pass_", &weighted_bce::Boxed<&weighted_bce::linear_pass_>::call);
}
