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
  T loss, used, learned, guessed;

  bool is_that_of(const Left& other) const {
    return out == other.out && same(loss, other.loss) && same(used, other.used) &&
           same(learned, other.learned) && same(guessed, other.guessed);
  }
};

template <class X>
class CudaCase {
  using T = typename cuda::Arithmetic<X>::T;
  static constexpr T kNever = 77;  // what no kernel writes

  const Case& of_;
  const int blocks_;
  const bool collapses_;
  const double weight_;
  T factor_;
  double divisor_;
  const double* count_ = nullptr;
  bool vectors_ = false;
  std::vector<uint64_t> gradient_;  // of on_elements

 public:
  explicit CudaCase(const Case& of)
      : of_(of),
        blocks_(draw_of<int>({1, 2, 3, 5})),
        collapses_(draw(4) > 0),
        weight_(of.w || draw(8) ? 1 : 0.75),
        factor_(static_cast<T>(of.problem.scale * (draw(2) ? 1 : 1024))),
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
    std::printf("%s, %d blocks, weight %g, factor %g, divisor %g, errors %d\n",
                vectors_ ? "on_vectors" : "on_elements", blocks_, weight_,
                static_cast<double>(factor_), divisor(), static_cast<int>(approximate_error));
    of_.describe(kNames[static_cast<int>(of_.dtype())]);
  }

  static bool is(bool holds, const char* what) {
    if (!holds) std::printf("%s\n", what);
    return holds;
  }

  bool passes_kernel() {
    Tensor out = make_out();
    Problem plan = planned(out, false);
    if (!takes(plan)) return true;
    const double share = divisor() == 0 ? 0 : weight_ / divisor();
    const auto loss = run(Mode::kLoss, plan, nullptr);
    const auto both = run(Mode::kLossAndGrad, plan, &out);
    bool passed = of_.sum_is("loss", loss.loss, scaled(of_.sum, share)) &&
                  of_.elements_are("loss_and_grad", out, of_.slopes, by_factor(share)) &&
                  is(same(loss.loss, both.loss), "the loss depends on the gradient") &&
                  is(loss.used == kNever && both.used == factor_, "not the factor that was used");
    passed = passed && agrees(both.out);
    const auto grad = run(Mode::kGrad, plan, &out);
    passed = passed && is(grad.out == both.out, "grad is not that of loss_and_grad") &&
             is(grad.loss == kNever && grad.used == kNever, "grad writes results") &&
             guesses(plan, out, grad.out) && notices_changes(plan, out) && counts_none(plan, out);
    run(Mode::kUnreduced, plan, &out);
    passed = passed && of_.elements_are("unreduced", out, of_.losses, weight_) &&
             is(out.surroundings_untouched(plan.numel), "wrote where no element lies");
    return passed && in_place(both) && with_upstream(share);
  }

  double divisor() const { return count_ ? *count_ : divisor_; }
  double by_factor(double share) const {
    return share * static_cast<double>(factor_) / of_.problem.scale;
  }

  Tensor make_out() const {
    const bool dense = of_.plain || draw(2);
    return Tensor(of_.shape, of_.dtype(), dense ? Layout::kDense : Layout::kStrided,
                  of_.plain ? 0 : draw_shift());
  }

  Problem planned(const Tensor& out, bool with_upstream) const {
    Problem plan = of_.problem;
    plan.out = out.operand;
    if (with_upstream) plan.upstream = of_.upstream->operand;
    if (collapses_) collapse(plan);
    return plan;
  }
  bool takes(const Problem& plan) const {
    return !vectors_ || cuda::takes_vectors(cuda::packed(plan));
  }

  /// Runs twice, with threads in different orders.
  Left<T> run(Mode mode, const Problem& plan, Tensor* out, const Tensor* logits = nullptr,
              const T* guessed = nullptr) const {
    const int64_t first = draw(4), second = (first + 1 + draw(3)) % 4;
    const auto one = run_once(mode, plan, out, logits, guessed, static_cast<Order>(first));
    const auto two = run_once(mode, plan, out, logits, guessed, static_cast<Order>(second));
    if (!one.is_that_of(two)) die("other bits in another order of the threads");
    return two;
  }
  Left<T> run_once(Mode mode, const Problem& plan, Tensor* out, const Tensor* logits,
                   const T* guessed, Order order,
                   const std::function<void()>& between = nullptr) const {
    if (out) refill(*out, logits);
    Left<T> left{{}, kNever, kNever, kNever, guessed ? *guessed : kNever};
    std::vector<double> sums(blocks_, std::nan(""));
    std::vector<T> factors(blocks_, kNever);
    cuda::Problem problem = cuda::packed(plan);
    problem.narrow.weight = static_cast<float>(problem.wide.weight = weight_);
    problem.divisor = divisor_;
    problem.count = count_;
    problem.factor = factor_ == 1 && guessed == nullptr && !between ? nullptr : &factor_;
    if (guessed) problem.guessed = &left.guessed, problem.learned = &left.learned;
    problem.sums = sums.data();
    problem.factors = factors.data();
    problem.loss = &left.loss;
    if (mode == Mode::kLossAndGrad) problem.used = &left.used;
    start<X>(mode, problem, vectors_, {blocks_, order, between});
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
    if (!of_.problem.ignores) return true;
    Problem plan = of_.problem;
    if (collapses_) collapse(plan);
    const double first = counted(plan, nullptr), again = counted(plan, nullptr);
    T right = factor_, wrong = factor_ + 1;
    if (draw(2)) count_ = &of_.count;
    return is(first == of_.count && again == first, "a wrong count") &&
           is(counted(plan, &right) == kNever, "counts after a right guess") &&
           is(counted(plan, &wrong) == first, "no count after a wrong guess");
  }
  double counted(const Problem& plan, T* guessed) const {
    std::vector<double> sums(blocks_, std::nan(""));
    std::vector<T> factors(blocks_, kNever);
    double count = kNever;
    cuda::Problem problem = cuda::packed(plan);
    problem.factor = &factor_;
    problem.guessed = guessed;
    problem.sums = sums.data();
    problem.factors = factors.data();
    problem.loss = &count;
    start_count<T>(problem, {blocks_, static_cast<Order>(draw(4))});
    return count;
  }

  /// A gradient that has been guessed is left as it is, any other is written again; either way the
  /// factor is learned, unless it is 0.
  bool guesses(const Problem& plan, Tensor& out, const std::vector<uint64_t>& wanted) {
    uint64_t untouched = 0;
    std::memset(&untouched, 0x5a, sizeof(X));
    T guess = factor_;
    const auto right = run(Mode::kGrad, plan, &out, nullptr, &guess);
    guess = draw(2) ? static_cast<T>(std::nan("")) : 2 * factor_;
    const auto wrong = run(Mode::kGrad, plan, &out, nullptr, &guess);
    const T factor = factor_;
    factor_ = 0;
    const auto zero = run(Mode::kGrad, plan, &out, nullptr, &guess);
    const bool vanishes = of_.elements_are("grad times 0", out, of_.slopes, 0);
    factor_ = factor;
    return vanishes &&
           is(std::count(right.out.begin(), right.out.end(), untouched) == plan.numel,
              "a right guess is overwritten") &&
           is(wrong.out == wanted, "a wrong guess is not made good") &&
           is(right.learned == factor_ && wrong.learned == factor_, "no factor is learned") &&
           is(zero.learned == kNever, "0 is learned") &&
           is(right.guessed == factor_ && wrong.guessed == factor_ && zero.guessed == 0,
              "the gradient carries another factor");
  }

  /// A factor that changes while the blocks run is not the one that all have used.
  bool notices_changes(const Problem& plan, Tensor& out) {
    if (blocks_ == 1) return true;
    const T factor = factor_;
    const auto change = [&] { factor_ = 2 * factor; };
    const auto left =
        run_once(Mode::kLossAndGrad, plan, &out, nullptr, nullptr, Order::kForward, change);
    factor_ = factor;
    return is(std::isnan(left.used), "blocks with different factors");
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
    plan.x = plan.out = both.operand;
    if (collapses_) collapse(plan);
    if (!takes(plan)) return true;
    const auto grad = run(Mode::kGrad, plan, &both, &of_.x);
    const auto left = run(Mode::kLossAndGrad, plan, &both, &of_.x);
    return is(grad.out == wanted.out && left.out == wanted.out, "in place the gradient differs") &&
           is(same(left.loss, wanted.loss), "in place the loss differs") &&
           is(both.surroundings_untouched(plan.numel), "wrote where no element lies");
  }

  bool with_upstream(double share) const {
    if (!of_.upstream) return true;
    Tensor out = make_out();
    const Problem plan = planned(out, true);
    if (!takes(plan)) return true;
    run(Mode::kGrad, plan, &out);
    return of_.elements_are("grad with upstream", out, of_.grads, by_factor(share)) &&
           is(out.surroundings_untouched(plan.numel), "wrote where no element lies");
  }
};

}  // namespace native
