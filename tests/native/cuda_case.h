// All that is asked of the CUDA kernels on the operands of one case.
#pragma once

#include "case.h"
#include "cuda_run.h"

namespace native {

/// Whether two numbers have the same bits, or both are NaN.
template <class T>
bool same(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0 || (std::isnan(a) && std::isnan(b));
}

/// These are written by the kernels of a call.
template <class T>
struct Results {
  std::vector<uint64_t> out;  // the bits of each element
  T loss, used, expected;

  bool operator==(const Results& other) const {
    return out == other.out && same(loss, other.loss) && same(used, other.used) &&
           same(expected, other.expected);
  }
};

template <class X>
class CudaCase {
  using T = typename cuda::Arithmetic<X>::T;
  static constexpr T kUnwritten = 77;  // what no kernel writes
  static constexpr int kUntouched = 0x5a;

  const Case& case_;
  const int blocks_;
  const bool collapses_;
  T grad_output_;
  double divisor_;
  const double* count_ = nullptr;
  bool vectors_ = false;
  std::vector<uint64_t> gradient_;  // of on_elements

 public:
  explicit CudaCase(const Case& one)
      : case_(one),
        blocks_(draw_of<int>({1, 2, 3, 5})),
        collapses_(draw(4) > 0),
        grad_output_(static_cast<T>((draw(2) ? 1 : -2.5) * (draw(2) ? 1 : 1024))),
        divisor_(draw(2) ? static_cast<double>(one.problem.numel) : 1.5) {
    approximate_error = static_cast<Error>(draw(4));
    describe_failure = [this] { describe(); };
  }

  bool passes() {
    bool passed = counts();
    for (const bool vectors : {false, true}) {
      vectors_ = vectors;
      passed = passed && passes_kernel();
    }
    if (!passed) describe();
    return passed;
  }

 private:
  void describe() const {
    std::printf("%s, %d blocks, grad_output %g, divisor %g, errors %d\n",
                vectors_ ? "on_vectors" : "on_elements", blocks_, grad_output(), divisor(),
                static_cast<int>(approximate_error));
    case_.describe(kNames[static_cast<int>(case_.dtype())]);
  }

  static bool is(bool holds, const char* otherwise) {
    if (!holds) std::printf("%s\n", otherwise);
    return holds;
  }

  bool passes_kernel() {
    Tensor out = make_out();
    const Problem problem = with_out(out);
    if (!takes(problem)) return true;
    const double share = divisor() == 0 ? 0 : 1 / divisor();
    const auto loss = run(Mode::kLoss, problem, nullptr);
    const auto both = run(Mode::kLossAndGrad, problem, &out);
    bool passed =
        case_.sum_is("loss", loss.loss, scaled(case_.sum, share)) &&
        case_.elements_are("loss_and_grad", out, case_.slopes, share * grad_output()) &&
        is(same(loss.loss, both.loss), "the loss depends on the gradient") &&
        is(loss.used == kUnwritten && both.used == grad_output_, "another grad_output was used");
    passed = passed && agrees(both.out);
    const auto grad = run(Mode::kGrad, problem, &out);
    passed = passed && is(grad.out == both.out, "grad is not that of loss_and_grad") &&
             is(grad.loss == kUnwritten && grad.used == kUnwritten, "grad writes results") &&
             updates(problem, out, grad.out) && ignores_changes(problem, out, both) &&
             counts_none(problem, out);
    run(Mode::kUnreduced, problem, &out);
    return passed && case_.elements_are("unreduced", out, case_.losses) &&
           out.kept_to_its_elements("unreduced", problem.numel) && in_place(both) &&
           with_grad_output_tensor(share);
  }

  double divisor() const { return count_ ? *count_ : divisor_; }
  double grad_output() const { return static_cast<double>(grad_output_); }

  Tensor make_out() const {
    const bool dense = case_.plain || draw(2);
    return Tensor(case_.shape, case_.dtype(), dense ? Layout::kDense : Layout::kStrided,
                  case_.plain ? 0 : draw_shift());
  }

  Problem with_out(const Tensor& out, const Tensor* x = nullptr,
                   const Tensor* grad_output = nullptr) const {
    Problem problem = case_.problem;
    problem.out = out.operand;
    if (x) problem.x = x->operand;
    if (grad_output) problem.grad_output = grad_output->operand;
    if (collapses_) collapse(problem);
    return problem;
  }
  bool takes(const Problem& problem) const {
    return !vectors_ || cuda::takes_vectors(planned(problem, Mode::kGrad, case_.numbers));
  }

  /// Runs twice, with threads in different orders.
  Results<T> run(Mode mode, const Problem& problem, Tensor* out, const Tensor* logits = nullptr,
                 const T* used = nullptr) const {
    const int64_t first = draw(4), second = (first + 1 + draw(3)) % 4;
    const auto one = run_once(mode, problem, out, logits, used, static_cast<Order>(first));
    const auto two = run_once(mode, problem, out, logits, used, static_cast<Order>(second));
    if (!(one == two)) fail("other bits in another order of the threads");
    return two;
  }
  /// `used` is what the gradient in `out` was made with.
  Results<T> run_once(Mode mode, Problem problem, Tensor* out, const Tensor* logits, const T* used,
                      Order order, const std::function<void()>& between = nullptr) const {
    for (int64_t i = 0; out && i < problem.numel; ++i) {
      if (logits) std::memcpy(out->at(i), logits->at(i), sizeof(X));
      if (!logits) std::memset(out->at(i), kUntouched, sizeof(X));
    }
    Results<T> results{{}, kUnwritten, used ? *used : kUnwritten, kUnwritten};
    std::vector<double> sums(blocks_, std::nan(""));
    cuda::Workspace workspace;
    workspace.count = count_;
    workspace.sums = sums.data();
    workspace.loss = &results.loss;
    if (used || mode == Mode::kLossAndGrad) workspace.used = &results.used;
    if (used) workspace.expected = &results.expected;
    char narrow[8];
    encode(dtype_of<X>(), grad_output(), narrow);
    if (problem.grad_output.data == nullptr &&
        (mode == Mode::kGrad || mode == Mode::kLossAndGrad)) {
      problem.grad_output = uniform(&grad_output_, dtype_of<T>());
      if (mode == Mode::kGrad && !used) {
        if (draw(2)) problem.grad_output = uniform(narrow, dtype_of<X>());
        if (grad_output_ == 1) problem.grad_output = {};
      }
    }
    problem = planned(problem, mode, case_.numbers);
    problem.divisor = divisor_;
    start<X>(problem, workspace, vectors_, {blocks_, order, between});
    for (int64_t i = 0; out && i < problem.numel; ++i) results.out.push_back(out->bits(i));
    return results;
  }

  /// Both kernels give the same gradient, but for the sign of a zero.
  bool agrees(const std::vector<uint64_t>& out) {
    if (!vectors_) gradient_ = out;
    bool same = true;
    for (size_t i = 0; i < out.size(); ++i) {
      const uint64_t sign = uint64_t{1} << (8 * sizeof(X) - 1);
      same = same && (out[i] == gradient_[i] || ((out[i] | gradient_[i]) & ~sign) == 0);
    }
    return is(same, "on_vectors and on_elements have different gradients");
  }

  /// Counts. Where targets may be ignored, the count is then the divisor of all that follows.
  bool counts() {
    if (!case_.numbers.ignores) return true;
    Problem problem = case_.problem;
    if (collapses_) collapse(problem);
    const double first = counted(problem, nullptr), again = counted(problem, nullptr);
    T right = grad_output_, wrong = grad_output_ + 1;
    if (draw(2)) count_ = &case_.count;
    return is(first == case_.count && again == first, "a wrong count") &&
           is(counted(problem, &right) == kUnwritten, "counts for the grad_output that was used") &&
           is(counted(problem, &wrong) == first, "no count for another grad_output");
  }
  double counted(Problem problem, T* used) const {
    std::vector<double> sums(blocks_, std::nan(""));
    double count = kUnwritten;
    T expected = kUnwritten;
    problem = planned(problem, Mode::kCount, case_.numbers);
    problem.grad_output = uniform(&grad_output_, dtype_of<T>());
    cuda::Workspace workspace;
    workspace.sums = sums.data();
    workspace.loss = &count;
    workspace.used = used ? used : &expected;
    workspace.expected = used ? &expected : nullptr;
    start_count<T>(problem, workspace, {blocks_, static_cast<Order>(draw(4))});
    return count;
  }

  /// A gradient that was made with this grad_output is left as it is, any other is written again;
  /// either way that grad_output is expected next, unless it is 0.
  bool updates(const Problem& problem, Tensor& out, const std::vector<uint64_t>& wanted) {
    uint64_t untouched = 0;
    std::memset(&untouched, kUntouched, sizeof(X));
    T used = grad_output_;
    const auto right = run(Mode::kGrad, problem, &out, nullptr, &used);
    used = draw(2) ? static_cast<T>(std::nan("")) : 2 * grad_output_;
    const auto wrong = run(Mode::kGrad, problem, &out, nullptr, &used);
    const T other = grad_output_;
    grad_output_ = 0;
    const auto zero = run(Mode::kGrad, problem, &out, nullptr, &used);
    const bool vanishes = case_.elements_are("grad times 0", out, case_.slopes, 0);
    grad_output_ = other;
    return vanishes &&
           is(std::count(right.out.begin(), right.out.end(), untouched) == problem.numel,
              "a right gradient is overwritten") &&
           is(wrong.out == wanted, "a wrong gradient is not made good") &&
           is(right.expected == other && wrong.expected == other, "grad_output is not expected") &&
           is(zero.expected == kUnwritten, "0 is expected") &&
           is(right.used == other && wrong.used == other && zero.used == 0,
              "the gradient was made with another grad_output");
  }

  /// A value that is expected may change while the blocks run: they all use the first one.
  bool ignores_changes(const Problem& problem, Tensor& out, const Results<T>& wanted) {
    const T first = grad_output_;
    const auto change = [&] { grad_output_ = 2 * first; };
    const auto results =
        run_once(Mode::kLossAndGrad, problem, &out, nullptr, nullptr, Order::kForward, change);
    grad_output_ = first;
    return is(results.out == wanted.out && results.used == first, "blocks differ in grad_output");
  }

  /// Nothing that counts gives 0 instead of 0 / 0.
  bool counts_none(const Problem& problem, Tensor& out) {
    const double none = 0;
    const double* const count = count_;
    count_ = &none;
    const auto results = run(Mode::kLossAndGrad, problem, &out);
    count_ = count;
    return is(results.loss == 0, "a loss of nothing") &&
           case_.elements_are("grad of nothing", out, case_.slopes, 0);
  }

  bool in_place(const Results<T>& wanted) const {
    Tensor both = make_out();
    const Problem problem = with_out(both, &both);
    if (!takes(problem)) return true;
    const auto grad = run(Mode::kGrad, problem, &both, &case_.x);
    const auto results = run(Mode::kLossAndGrad, problem, &both, &case_.x);
    return is(grad.out == wanted.out && results.out == wanted.out, "in place grad differs") &&
           is(same(results.loss, wanted.loss), "in place the loss differs") &&
           both.kept_to_its_elements("in place", problem.numel);
  }

  bool with_grad_output_tensor(double share) const {
    if (!case_.grad_output) return true;
    Tensor out = make_out();
    const Problem problem = with_out(out, nullptr, case_.grad_output.get());
    if (!takes(problem)) return true;
    run(Mode::kGrad, problem, &out);
    return case_.elements_are("grad with a tensor of grad_output", out, case_.grads, share) &&
           out.kept_to_its_elements("grad with a tensor of grad_output", problem.numel);
  }
};

}  // namespace native
