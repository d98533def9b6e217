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

/// What kernels have left.
template <class T>
struct Left {
  std::vector<uint64_t> out;  // the bits of each element
  T loss, used, expected;

  bool is_that_of(const Left& other) const {
    return out == other.out && same(loss, other.loss) && same(used, other.used) &&
           same(expected, other.expected);
  }
};

template <class X>
class CudaCase {
  using T = typename cuda::Arithmetic<X>::T;
  static constexpr T kNever = 77;  // what no kernel writes

  const Case& of_;
  const int blocks_;
  const bool collapses_;
  T grad_output_;
  double divisor_;
  const double* count_ = nullptr;
  bool vectors_ = false;
  std::vector<uint64_t> gradient_;  // of on_elements

 public:
  explicit CudaCase(const Case& of)
      : of_(of),
        blocks_(draw_of<int>({1, 2, 3, 5})),
        collapses_(draw(4) > 0),
        grad_output_(static_cast<T>((draw(2) ? 1 : -2.5) * (draw(2) ? 1 : 1024))),
        divisor_(draw(2) ? static_cast<double>(of.problem.numel) : 1.5) {
    approximate_error = static_cast<Error>(draw(4));
    last_words = [this] { describe(); };
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
                vectors_ ? "on_vectors" : "on_elements", blocks_, static_cast<double>(grad_output_),
                divisor(), static_cast<int>(approximate_error));
    of_.describe(kNames[static_cast<int>(of_.dtype())]);
  }

  static bool is(bool holds, const char* what) {
    if (!holds) std::printf("%s\n", what);
    return holds;
  }

  bool passes_kernel() {
    Tensor out = make_out();
    const Problem plan = with_out(out);
    if (!takes(plan)) return true;
    const double share = divisor() == 0 ? 0 : 1 / divisor();
    const auto loss = run(Mode::kLoss, plan, nullptr);
    const auto both = run(Mode::kLossAndGrad, plan, &out);
    bool passed =
        of_.sum_is("loss", loss.loss, scaled(of_.sum, share)) &&
        of_.elements_are("loss_and_grad", out, of_.slopes, share * grad_output()) &&
        is(same(loss.loss, both.loss), "the loss depends on the gradient") &&
        is(loss.used == kNever && both.used == grad_output_, "not the grad_output that was used");
    passed = passed && agrees(both.out);
    const auto grad = run(Mode::kGrad, plan, &out);
    passed = passed && is(grad.out == both.out, "grad is not that of loss_and_grad") &&
             is(grad.loss == kNever && grad.used == kNever, "grad writes results") &&
             updates(plan, out, grad.out) && ignores_changes(plan, out, both) &&
             counts_none(plan, out);
    run(Mode::kUnreduced, plan, &out);
    passed = passed && of_.elements_are("unreduced", out, of_.losses) &&
             is(out.surroundings_untouched(plan.numel), "wrote where no element lies");
    return passed && in_place(both) && with_own_grad_output(share);
  }

  double divisor() const { return count_ ? *count_ : divisor_; }
  double grad_output() const { return static_cast<double>(grad_output_); }

  Tensor make_out() const {
    const bool dense = of_.plain || draw(2);
    return Tensor(of_.shape, of_.dtype(), dense ? Layout::kDense : Layout::kStrided,
                  of_.plain ? 0 : draw_shift());
  }

  Problem with_out(const Tensor& out) const {
    Problem plan = of_.problem;
    plan.out = out.operand;
    if (collapses_) collapse(plan);
    return plan;
  }
  bool takes(const Problem& plan) const {
    return !vectors_ || cuda::takes_vectors(planned(plan, Mode::kGrad, of_.numbers));
  }

  /// Runs twice, with threads in different orders.
  Left<T> run(Mode mode, const Problem& plan, Tensor* out, const Tensor* logits = nullptr,
              const T* used = nullptr) const {
    const int64_t first = draw(4), second = (first + 1 + draw(3)) % 4;
    const auto one = run_once(mode, plan, out, logits, used, static_cast<Order>(first));
    const auto two = run_once(mode, plan, out, logits, used, static_cast<Order>(second));
    if (!one.is_that_of(two)) die("other bits in another order of the threads");
    return two;
  }
  /// `used`: what the gradient in `out` was made with.
  Left<T> run_once(Mode mode, const Problem& plan, Tensor* out, const Tensor* logits, const T* used,
                   Order order, const std::function<void()>& between = nullptr) const {
    if (out) refill(*out, logits);
    Left<T> left{{}, kNever, used ? *used : kNever, kNever};
    std::vector<double> sums(blocks_, std::nan(""));
    cuda::Workspace workspace;
    workspace.count = count_;
    workspace.sums = sums.data();
    workspace.loss = &left.loss;
    if (used || mode == Mode::kLossAndGrad) workspace.used = &left.used;
    if (used) workspace.expected = &left.expected;
    char narrow[8];
    encode(dtype_of<X>(), grad_output(), narrow);
    Problem problem = plan;
    if (problem.grad_output.data == nullptr &&
        (mode == Mode::kGrad || mode == Mode::kLossAndGrad)) {
      problem.grad_output = uniform(&grad_output_, dtype_of<T>(), sizeof(T));
      if (mode == Mode::kGrad && !used) {
        if (draw(2)) problem.grad_output = uniform(narrow, dtype_of<X>(), sizeof(X));
        if (grad_output_ == 1) problem.grad_output = {};
      }
    }
    problem = planned(problem, mode, of_.numbers);
    problem.divisor = divisor_;
    start<X>(problem, workspace, vectors_, {blocks_, order, between});
    if (out) {
      for (int64_t i = 0; i < plan.numel; ++i) left.out.push_back(out->bits(i));
    }
    return left;
  }
  void refill(Tensor& out, const Tensor* logits) const {
    for (int64_t i = 0; i < of_.problem.numel; ++i) {
      if (logits) std::memcpy(out.at(i), logits->at(i), sizeof(X));
      if (!logits) std::memset(out.at(i), 0x5a, sizeof(X));
    }
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

  /// From here on the divisor is the count, where targets may be ignored.
  bool counts() {
    if (!of_.numbers.ignores) return true;
    Problem plan = of_.problem;
    if (collapses_) collapse(plan);
    const double first = counted(plan, nullptr), again = counted(plan, nullptr);
    T right = grad_output_, wrong = grad_output_ + 1;
    if (draw(2)) count_ = &of_.count;
    return is(first == of_.count && again == first, "a wrong count") &&
           is(counted(plan, &right) == kNever, "counts where grad_output is the one used") &&
           is(counted(plan, &wrong) == first, "no count where grad_output is another one");
  }
  double counted(const Problem& plan, T* used) const {
    std::vector<double> sums(blocks_, std::nan(""));
    double count = kNever;
    T expected = kNever;
    Problem problem = planned(plan, Mode::kCount, of_.numbers);
    problem.grad_output = uniform(&grad_output_, dtype_of<T>(), sizeof(T));
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
  bool updates(const Problem& plan, Tensor& out, const std::vector<uint64_t>& wanted) {
    uint64_t untouched = 0;
    std::memset(&untouched, 0x5a, sizeof(X));
    T used = grad_output_;
    const auto right = run(Mode::kGrad, plan, &out, nullptr, &used);
    used = draw(2) ? static_cast<T>(std::nan("")) : 2 * grad_output_;
    const auto wrong = run(Mode::kGrad, plan, &out, nullptr, &used);
    const T other = grad_output_;
    grad_output_ = 0;
    const auto zero = run(Mode::kGrad, plan, &out, nullptr, &used);
    const bool vanishes = of_.elements_are("grad times 0", out, of_.slopes, 0);
    grad_output_ = other;
    return vanishes &&
           is(std::count(right.out.begin(), right.out.end(), untouched) == plan.numel,
              "a right gradient is overwritten") &&
           is(wrong.out == wanted, "a wrong gradient is not made good") &&
           is(right.expected == other && wrong.expected == other, "grad_output is not expected") &&
           is(zero.expected == kNever, "0 is expected") &&
           is(right.used == other && wrong.used == other && zero.used == 0,
              "the gradient was made with another grad_output");
  }

  /// A value that is expected may change while the blocks run: they all use the first one.
  bool ignores_changes(const Problem& plan, Tensor& out, const Left<T>& wanted) {
    const T first = grad_output_;
    const auto change = [&] { grad_output_ = 2 * first; };
    const auto left =
        run_once(Mode::kLossAndGrad, plan, &out, nullptr, nullptr, Order::kForward, change);
    grad_output_ = first;
    return is(left.out == wanted.out && left.used == first, "blocks with another grad_output");
  }

  /// Nothing that counts gives 0 instead of 0 / 0.
  bool counts_none(const Problem& plan, Tensor& out) {
    const double none = 0;
    const double* const count = count_;
    count_ = &none;
    const auto left = run(Mode::kLossAndGrad, plan, &out);
    count_ = count;
    return is(left.loss == 0, "a loss of nothing") &&
           of_.elements_are("grad of nothing", out, of_.slopes, 0);
  }

  bool in_place(const Left<T>& wanted) const {
    Tensor both = make_out();
    Problem plan = of_.problem;
    plan.x = both.operand;
    plan.out = both.operand;
    if (collapses_) collapse(plan);
    if (!takes(plan)) return true;
    const auto grad = run(Mode::kGrad, plan, &both, &of_.x);
    const auto left = run(Mode::kLossAndGrad, plan, &both, &of_.x);
    return is(grad.out == wanted.out && left.out == wanted.out, "in place the gradient differs") &&
           is(same(left.loss, wanted.loss), "in place the loss differs") &&
           is(both.surroundings_untouched(plan.numel), "wrote where no element lies");
  }

  bool with_own_grad_output(double share) const {
    if (!of_.grad_output) return true;
    Tensor out = make_out();
    Problem plan = of_.problem;
    plan.out = out.operand;
    plan.grad_output = of_.grad_output->operand;
    if (collapses_) collapse(plan);
    if (!takes(plan)) return true;
    run(Mode::kGrad, plan, &out);
    return of_.elements_are("grad with its own grad_output", out, of_.grads, share) &&
           is(out.surroundings_untouched(plan.numel), "wrote where no element lies");
  }
};

}  // namespace native
