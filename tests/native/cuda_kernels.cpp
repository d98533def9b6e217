// Every CUDA kernel against the formula, on the threads of block.h. NATIVE_LOGITS is the type of
// the logits.
#include "cuda_case.h"
#include "cuda_large.h"

namespace {

using namespace native;
using X = NATIVE_LOGITS;
using T = cuda::Arithmetic<X>::T;

// Around the lanes (4 or 8), the threads of a block, and its vectors.
const int64_t kSizes[] = {1,  2,  3,   4,   5,   7,    8,    9,    15,
                          17, 33, 255, 256, 257, 1023, 1025, 2049, 4099};

// With sparse labels: around the tiles too, which hold 1024, 2048 or 4096 targets here.
const int64_t kSparseSizes[] = {1, 5, 7, 13, 29, 17, 255, 1023, 1024, 1024, 2048, 4099, 6145};

Choices choices() {
  const bool wide = sizeof(X) == 8;
  const std::vector<Dtype> factors = {wide ? Dtype::kFloat64 : Dtype::kFloat32, dtype_of<X>()};
  return {{Layout::kDense, Layout::kDense, Layout::kStrided, Layout::kBroadcast},
          {Layout::kUniform, Layout::kPerLabel, Layout::kPerLabel, Layout::kPerRow, Layout::kDense,
           Layout::kDense, Layout::kStrided},
          factors,
          factors,
          6000};
}

/// No block has anything to do.
bool sums_nothing() {
  T loss = 1;
  Problem problem;
  problem.divisor = 4;
  cuda::Workspace workspace;
  workspace.loss = &loss;
  Grid{1, Order::kForward}.run([&] { cuda::finish<T, T>(problem, workspace, 0); });
  if (loss != 0) std::printf("no elements: loss %g\n", static_cast<double>(loss));
  return loss == 0;
}

/// There are more elements than the product of a thread may hold, or more blocks than `finish` has
/// threads.
bool sums_many(int64_t per_thread, int blocks) {
  const int64_t count = per_thread * Block::kThreads * blocks + 3;
  const Shape shape{count};
  Tensor x(shape, dtype_of<X>(), Layout::kDense, 0);
  x.fill(0);
  Tensor y(shape, Dtype::kBool, Layout::kDense, 0);
  for (int64_t i = 0; i < count; ++i) y.set(i, i % 8 > 2);
  std::vector<double> sums(blocks);
  T loss = 0;
  Problem problem = problem_of(shape);
  problem.x = x.operand;
  problem.y = y.operand;
  problem = planned(problem, Mode::kLoss, {});
  cuda::Workspace workspace;
  workspace.sums = sums.data();
  workspace.loss = &loss;
  bool passed = true;
  for (const bool vectors : {false, cuda::takes_vectors(problem)}) {
    start<X>(problem, workspace, vectors, {blocks, Order::kBackward});
    const double wanted = static_cast<double>(count) * std::log(2.0);
    passed = passed && error_of(loss, {wanted, wanted}, dtype_of<T>(), false) <= 1;
  }
  if (!passed) std::printf("%lld elements: loss %g\n", (long long)count, static_cast<double>(loss));
  return passed;
}

/// Sparse labels may mean nothing: no other memory is touched, and all blocks come to an end.
bool survives(int index_size) {
  const int64_t rows = 1 + draw(4) * draw(300), columns = 1 + draw(12000 / rows);
  const int blocks = static_cast<int>(1 + draw(3));
  const auto labels = SparseLabels::malformed(rows, columns, index_size);
  const Shape shape{rows, columns};
  Tensor x(shape, dtype_of<X>(), Layout::kDense, 0);
  x.fill(0);
  Tensor out(shape, dtype_of<X>(), Layout::kDense, 0);
  std::vector<double> sums(blocks);
  T loss = 0, used = 0, grad_output = 1;
  double count = 0;
  Problem problem = problem_of(shape);
  problem.x = x.operand;
  problem.out = out.operand;
  problem.csr = labels->csr;
  problem.grad_output = uniform(&grad_output, dtype_of<T>());
  problem = planned(problem, Mode::kLossAndGrad, {});
  cuda::Workspace workspace;
  workspace.sums = sums.data();
  workspace.used = &used;
  workspace.loss = &loss;
  describe_failure = [&] { labels->describe(); };
  for (const bool vectors : {false, cuda::takes_vectors(problem)}) {
    start<X>(problem, workspace, vectors, {blocks, static_cast<Order>(draw(4))});
  }
  workspace.loss = &count;
  problem.mode = Mode::kCount;
  start_count<T>(problem, workspace, {blocks, Order::kForward});
  if (out.kept_to_its_elements("malformed labels", problem.numel)) return true;
  labels->describe();
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const bool all = all_draws(argc, argv);
  const Choices from = choices();
  const auto passes = [&](int64_t size, int target, int index_size = 0) {
    const Case one(size, dtype_of<X>(), static_cast<Dtype>(target), from, index_size);
    return CudaCase<X>(one).passes();
  };
  if (!sums_nothing() || !sums_many(150, 1) || !sums_many(1, 300) || !LargeCase<X>().passes())
    return 1;
  for (const int index_size : {4, 8}) {
    for (int k = 0; k < 12; ++k) {
      if (!survives(index_size)) return 1;
    }
    for (const int64_t size : kSparseSizes) {
      if (!passes(size, 0, index_size)) return 1;
    }
  }
  const int dtypes = weighted_bce::kDtypes;
  int next = static_cast<int>(draw(dtypes));  // each has its turn
  for (const int64_t size : kSizes) {
    for (int k = 0; k < (all ? dtypes : 2); ++k) {
      if (!passes(size, next++ % dtypes)) return 1;
    }
  }
  std::printf("passed\n");
}
