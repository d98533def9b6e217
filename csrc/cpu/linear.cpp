// The pass of a linear layer with its loss on the CPU: the loss of all logits, and the gradients.
#include "cpu/chunks.h"
#include "cpu/linear_losses.h"
#include "cpu/scalar.h"

namespace weighted_bce {
namespace {

/// These receive gradients: a sum over labels, and sums over rows.
struct Gradients {
  OptionalTensor input;         // (rows, features)
  OptionalTensor weight, bias;  // (labels, features) and (1, labels)
};

/// Computes the sum of the losses, and their gradients.
template <class T>
class Pass {
 public:
  Pass(const LinearCall& call, Mode mode, const Tensor& weight, const Gradients& all,
       const LinearTiles& tiles)
      : call_(call),
        mode_(mode),
        weight_(weight),
        all_(all),
        tiles_(tiles),
        rows_{0, call.x.size(0)},
        labels_{0, weight.size(0)},
        ones_(tiles.dtype, tiles.cut.tile_rows) {
    std::fill_n(static_cast<T*>(ones_.memory()), tiles.cut.tile_rows, T{1});
  }

  /// Writes all gradients, and returns the sum of the losses.
  double run() {
    if (tiles_.cut.by_rows) return by_rows();
    const Parts blocks(rows_, tiles_.cut.block_rows);
    double sum = 0;
    for (int64_t b = 0; b < blocks.count(); ++b) sum += by_labels(blocks[b], b > 0);
    return sum;
  }

 private:
  /// Computes some rows by slabs of labels, which each have a part of the gradient of the input.
  /// `add` tells whether other rows have written the gradient of the weight.
  double by_labels(Range rows, bool add) const {
    const int64_t size = all_.input ? rows.size() * tiles_.features : 0;
    T* total = nullptr;
    if (all_.input) {
      total = static_cast<T*>(all_.input->mutable_data_ptr()) + rows.begin * tiles_.features;
    }
    return run_slabs(tiles_, labels_, size, total,
                     [&](const LinearWorkspaces& own, Range labels, T* part) {
                       Gradients slab;
                       if (all_.input) slab.input = in_memory(part, rows.size(), tiles_.features);
                       if (all_.weight) slab.weight = rows_of(*all_.weight, labels);
                       if (all_.bias) slab.bias = columns_of(*all_.bias, labels);
                       return run_slab(own, slab, rows, labels, add);
                     });
  }

  /// Computes slabs of rows, which each have a part of the gradients of the weight and the bias.
  double by_rows() const {
    const int64_t labels = labels_.size(), of_weight = all_.weight ? labels * tiles_.features : 0;
    const int64_t size = of_weight + (all_.bias ? labels : 0);
    const auto sums_in = [&](T* memory) {
      Gradients sums;
      if (all_.weight) sums.weight = in_memory(memory, labels, tiles_.features);
      if (all_.bias) sums.bias = in_memory(memory + of_weight, 1, labels);
      return sums;
    };
    const Workspace total(tiles_.dtype, size);
    auto* const memory = static_cast<T*>(total.memory());
    const double sum = run_slabs(tiles_, rows_, size, memory,
                                 [&](const LinearWorkspaces& own, Range rows, T* part) {
                                   Gradients slab = sums_in(part);
                                   if (all_.input) slab.input = rows_of(*all_.input, rows);
                                   return run_slab(own, slab, rows, labels_, false);
                                 });
    const Gradients sums = sums_in(memory);
    if (all_.weight) copy(*all_.weight, *sums.weight);
    if (all_.bias) copy(*all_.bias, *sums.bias);
    return sum;
  }

  /// Computes a slab, tile by tile, and returns the sum of its losses.
  double run_slab(const LinearWorkspaces& own, const Gradients& slab, Range rows, Range labels,
                  bool add) const {
    double sum = 0;
    const Parts of_labels(labels, tiles_.cut.tile_labels), of_rows(rows, tiles_.cut.tile_rows);
    for (int64_t l = 0; l < of_labels.count(); ++l) {
      const Range tile_labels = of_labels[l], at = tile_labels.within(labels);
      const Tensor weight = own.weight_of(weight_, tile_labels);
      const bool converts = slab.weight && slab.weight->scalar_type() != tiles_.dtype;
      Gradients sums;
      if (slab.weight) sums.weight = rows_of(*slab.weight, at);
      if (converts) sums.weight = own.products.matrix(tile_labels.size(), tiles_.features);
      if (slab.bias) sums.bias = columns_of(*slab.bias, at);
      for (int64_t r = 0; r < of_rows.count(); ++r) {
        const Range tile_rows = of_rows[r];
        if (slab.input) sums.input = rows_of(*slab.input, tile_rows.within(rows));
        const Tensor logits = own.logits.matrix(tile_rows.size(), tile_labels.size());
        sum += call_.compute(mode_, logits, weight, tile_rows, tile_labels);
        add_products(sums, logits, weight, tile_rows, l > 0, add || r > 0);
      }
      if (converts) copy(rows_of(*slab.weight, at), *sums.weight);
    }
    return sum;
  }

  /// Adds what follows from the gradient that has replaced the logits.
  void add_products(const Gradients& sums, const Tensor& logits, const Tensor& weight, Range rows,
                    bool add_to_rows, bool add_to_labels) const {
    if (sums.input) product(*sums.input, logits, weight, add_to_rows);
    if (sums.weight) {
      product(*sums.weight, transposed(logits), rows_of(call_.x, rows), add_to_labels);
    }
    if (sums.bias) product(*sums.bias, ones_.matrix(1, rows.size()), logits, add_to_labels);
  }

  Tensor in_memory(T* memory, int64_t rows, int64_t columns) const {
    return matrix(memory, tiles_.dtype, {rows, columns}, {columns, 1});
  }

  const LinearCall& call_;
  const Mode mode_;
  const Tensor& weight_;
  const Gradients& all_;
  const LinearTiles& tiles_;
  const Range rows_, labels_;
  const Workspace ones_;
};

/// Throws unless the tensor can hold a gradient, which is then written by several threads.
void check_gradient(const OptionalTensor& grad, ScalarType dtype, const char* name) {
  if (!grad) return;
  STD_TORCH_CHECK(grad->scalar_type() == dtype, name, " has the wrong dtype");
  check_writable(*grad, name);
  grad->mutable_data_ptr();  // it has memory of its own from now on
}

Tensor linear_pass_(const Arguments& a, const OptionalTensor& grad_output, const Tensor& x,
                    const Tensor& weight, const OptionalTensor& bias,
                    const OptionalTensor& input_grad, const OptionalTensor& weight_grad,
                    const OptionalTensor& bias_grad, const std::optional<int64_t>& most_labels) {
  const LinearCall call(a, x, bias, grad_output);
  call.check_weight(weight);
  check_most_labels(most_labels);
  const int64_t rows = x.size(0), labels = weight.size(0), features = x.size(1);
  if (input_grad) check_matrix(*input_grad, rows, features, "input_grad");
  if (weight_grad) check_matrix(*weight_grad, labels, features, "weight_grad");
  if (bias_grad) check_list(*bias_grad, labels, "bias_grad");
  STD_TORCH_CHECK(grad_output || (!input_grad && !weight_grad && !bias_grad),
                  "gradients need a grad_output");
  STD_TORCH_CHECK(!input_grad || is_contiguous(*input_grad), "input_grad must be contiguous");
  check_gradient(input_grad, x.scalar_type(), "input_grad");
  check_gradient(weight_grad, weight.scalar_type(), "weight_grad");
  check_gradient(bias_grad, x.scalar_type(), "bias_grad");

  const bool converts = weight.scalar_type() != x.scalar_type();
  const LinearTiles tiles{Cut::of_pass(rows, labels, features, converts, most_labels), features,
                          x.scalar_type(), converts, converts && weight_grad};
  if (!grad_output && a.reduction == kNone) return losses_of_rows(call, weight, tiles);
  Mode mode = Mode::kLoss;
  if (grad_output) mode = a.reduction == kNone ? Mode::kGrad : Mode::kLossAndGrad;
  Gradients gradients{input_grad, weight_grad, {}};
  if (bias_grad) gradients.bias = part_of_list(*bias_grad, {0, labels});
  const double sum = tiles.dtype == ScalarType::Double
                         ? Pass<double>(call, mode, weight, gradients, tiles).run()
                         : Pass<float>(call, mode, weight, gradients, tiles).run();
  return new_scalar(a, reduced(sum, call.divisor, a.input.numel()));
}

}  // namespace
}  // namespace weighted_bce

STABLE_TORCH_LIBRARY_IMPL(weighted_bce, CPU, m) {
  m.impl("linear_pass_", &weighted_bce::Boxed<&weighted_bce::linear_pass_>::call);
}
