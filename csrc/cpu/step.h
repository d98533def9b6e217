// The steps of torch.optim.SGD and Adam on a run of elements. Each operation rounds as the one of
// torch that its function for single tensors calls, so that the weights become the same.
#pragma once

#include "cpu/convert.h"

namespace weighted_bce::WEIGHTED_BCE_ISA {
namespace {

/// Returns a b + c, rounded once where the processor does that.
template <class T>
WEIGHTED_BCE_INLINE T fused_one(T a, T b, T c) {
#if defined(WEIGHTED_BCE_AVX2) || defined(WEIGHTED_BCE_AVX512) || defined(__ARM_FEATURE_FMA)
  if constexpr (sizeof(T) == 4) {
    return __builtin_fmaf(a, b, c);
  } else {
    return __builtin_fma(a, b, c);
  }
#else
  return a * b + c;
#endif
}

/// Rounds a value to the dtype of the weight, as torch does after each operation.
template <class S, class T>
WEIGHTED_BCE_INLINE T rounded(T value) {
  return widen<T>(narrow<S>(value));
}

template <class T>
WEIGHTED_BCE_INLINE T root(T value) {
  if constexpr (sizeof(T) == 4) {
    return __builtin_sqrtf(value);
  } else {
    return __builtin_sqrt(value);
  }
}

template <class S, class T>
void take_sgd_step(const SgdStep& step, const T* __restrict grads, S* __restrict weights,
                   S* __restrict buffers, int64_t n) {
  // torch.add rounds what it multiplies by to the dtype of the weight, and torch.mul does not.
  const T sign = step.maximize ? -1 : 1, lr = rounded<S>(static_cast<T>(-step.lr));
  const T decay = rounded<S>(static_cast<T>(step.weight_decay));
  const T undamped = rounded<S>(static_cast<T>(1 - step.dampening));
  const T momentum = static_cast<T>(step.momentum), ahead = rounded<S>(momentum);
  const bool decays = step.weight_decay != 0, is_first = step.is_first;
  const bool has_momentum = buffers != nullptr, nesterov = step.nesterov;
  for (int64_t i = 0; i < n; ++i) {
    const T weight = widen<T>(weights[i]);
    T grad = sign * rounded<S>(grads[i]);
    if (decays) grad = rounded<S>(fused_one(decay, weight, grad));
    if (has_momentum) {
      T buffer = grad;
      if (!is_first) {
        buffer = rounded<S>(widen<T>(buffers[i]) * momentum);
        buffer = rounded<S>(fused_one(undamped, grad, buffer));
      }
      buffers[i] = narrow<S>(buffer);
      grad = nesterov ? rounded<S>(fused_one(ahead, buffer, grad)) : buffer;
    }
    weights[i] = narrow<S>(fused_one(lr, grad, weight));
  }
}

template <class S, class T>
void take_adam_step(const AdamStep& step, const T* __restrict grads, S* __restrict weights,
                    S* __restrict means, S* __restrict squares, S* __restrict largest, int64_t n) {
  const T sign = step.maximize ? -1 : 1;
  const T decay = rounded<S>(static_cast<T>(step.weight_decay));
  const T decayed = static_cast<T>(1 - step.lr * step.weight_decay);
  const bool decays = step.weight_decay != 0 && !step.decoupled_weight_decay;
  const bool shrinks = step.weight_decay != 0 && step.decoupled_weight_decay;
  // torch interpolates from the nearer end.
  const T share = static_cast<T>(1 - step.beta1);
  const bool near = (share < 0 ? -share : share) < T{0.5};
  const T beta2 = static_cast<T>(step.beta2), rest2 = static_cast<T>(1 - step.beta2);
  const T size = static_cast<T>(-(step.lr / (1 - step.beta1_power)));
  const T correction = static_cast<T>(step.correction), eps = static_cast<T>(step.eps);
  const bool has_largest = largest != nullptr;
  for (int64_t i = 0; i < n; ++i) {
    T weight = widen<T>(weights[i]), grad = sign * rounded<S>(grads[i]);
    if (shrinks) weight = rounded<S>(weight * decayed);
    if (decays) grad = rounded<S>(fused_one(decay, weight, grad));
    const T old = widen<T>(means[i]);
    const T mean = rounded<S>(near ? fused_one(share, grad - old, old)
                                   : fused_one(share - 1, grad - old, grad));
    means[i] = narrow<S>(mean);
    T square = rounded<S>(widen<T>(squares[i]) * beta2);
    square = rounded<S>(fused_one(rest2 * grad, grad, square));
    squares[i] = narrow<S>(square);
    if (has_largest) {
      const T before = widen<T>(largest[i]);
      square = before != before || before > square ? before : square;
      largest[i] = narrow<S>(square);
    }
    T denominator = rounded<S>(rounded<S>(root(square)) / correction);
    denominator = rounded<S>(denominator + eps);
    weights[i] = narrow<S>(weight + size * mean / denominator);
  }
}

/// Calls function(S{}, T{}) for a dtype of weights and the type of its arithmetic.
template <class Function>
void with_weight_dtype(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat64: return function(double{}, double{});
    case Dtype::kFloat16: return function(Half{}, float{});
    case Dtype::kBFloat16: return function(BFloat16{}, float{});
    default: return function(float{}, float{});
  }
}

/// These are functions that an instruction set offers (isa.h).
void sgd(const SgdStep& step, const StepOperands& o) {
  with_weight_dtype(o.dtype, [&](auto stored, auto arithmetic) {
    using S = decltype(stored);
    using T = decltype(arithmetic);
    take_sgd_step<S, T>(step, static_cast<const T*>(o.grad), static_cast<S*>(o.weight),
                        static_cast<S*>(o.first), o.n);
  });
}
void adam(const AdamStep& step, const StepOperands& o) {
  with_weight_dtype(o.dtype, [&](auto stored, auto arithmetic) {
    using S = decltype(stored);
    using T = decltype(arithmetic);
    take_adam_step<S, T>(step, static_cast<const T*>(o.grad), static_cast<S*>(o.weight),
                         static_cast<S*>(o.first), static_cast<S*>(o.second),
                         static_cast<S*>(o.third), o.n);
  });
}

}  // namespace
}  // namespace weighted_bce::WEIGHTED_BCE_ISA
