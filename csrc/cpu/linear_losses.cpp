#include "cpu/linear_losses.h"

#include <algorithm>
#include <numeric>

namespace weighted_bce {
namespace {

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

/// Writes the sums of the losses of some rows and labels to `sums`.
template <class T>
void sum_losses(const LinearCall& call, const Tensor& weight, const LinearTiles& tiles,
                const LinearWorkspaces& own, Range rows, Range labels, double* sums) {
  std::fill_n(sums, rows.size(), 0.0);
  const Parts of_labels(labels, tiles.cut.tile_labels), of_rows(rows, tiles.cut.tile_rows);
  for (int64_t l = 0; l < of_labels.count(); ++l) {
    const Tensor weights = own.weight_of(weight, of_labels[l]);
    const int64_t n = of_labels[l].size();
    for (int64_t r = 0; r < of_rows.count(); ++r) {
      const Range tile = of_rows[r];
      const Tensor logits = own.logits.matrix(tile.size(), n);
      call.compute(Mode::kUnreduced, logits, weights, tile, of_labels[l]);
      const T* losses = static_cast<const T*>(logits.const_data_ptr());
      for (int64_t i = tile.begin; i < tile.end; ++i, losses += n) {
        sums[i - rows.begin] += sum_of(losses, n);
      }
    }
  }
}

template <class T>
void write_losses(const LinearCall& call, const Tensor& weight, const LinearTiles& tiles,
                  const Tensor& losses) {
  const Range rows{0, call.x.size(0)}, labels{0, weight.size(0)};
  const bool by_rows = tiles.cut.by_rows;
  std::vector<double> total(rows.size());
  run_slabs(tiles, by_rows ? rows : labels, by_rows ? 0 : rows.size(), total.data(),
            [&](const LinearWorkspaces& own, Range slab, double* part) {
              if (by_rows) part = total.data() + slab.begin;
              sum_losses<T>(call, weight, tiles, own, by_rows ? slab : rows,
                            by_rows ? labels : slab, part);
              return 0.0;
            });
  std::copy(total.begin(), total.end(), static_cast<T*>(losses.mutable_data_ptr()));
}

}  // namespace

Tensor losses_of_rows(const LinearCall& call, const Tensor& weight, const LinearTiles& tiles) {
  const int64_t size = call.x.size(0), stride = 1;
  const Tensor losses = new_tensor(call.x, tiles.dtype, 1, &size, &stride);
  if (tiles.dtype == ScalarType::Double) {
    write_losses<double>(call, weight, tiles, losses);
  } else {
    write_losses<float>(call, weight, tiles, losses);
  }
  return losses;
}

}  // namespace weighted_bce
