// Makes a Problem from a shape, operands and numbers, as csrc/plan.cpp makes it from tensors.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "formula.h"
#include "losses.h"
#include "operand.h"

namespace native {

using weighted_bce::Form;
using weighted_bce::Mode;
using weighted_bce::Operand;

/// The problem of a shape, as yet without operands.
inline Problem problem_of(const Shape& shape) {
  Problem problem;
  problem.dims = static_cast<int>(shape.size());
  problem.numel = 1;
  for (int d = 0; d < problem.dims; ++d) problem.numel *= problem.sizes[d] = shape[d];
  return problem;
}

inline std::vector<Operand*> operands_of(Problem& problem) {
  std::vector<Operand*> present;
  for (Operand* o :
       {&problem.x, &problem.y, &problem.w, &problem.p, &problem.grad_output, &problem.out}) {
    if (o->data != nullptr) present.push_back(o);
  }
  return present;
}

/// Drops the dimensions of size 1, and merges neighbours that every operand walks in one step.
inline void collapse(Problem& problem) {
  const std::vector<Operand*> present = operands_of(problem);
  int dims = 0;
  for (int d = 0; d < problem.dims; ++d) {
    const int64_t size = problem.sizes[d];
    if (size == 1) continue;
    const bool merges = dims > 0 && std::all_of(present.begin(), present.end(), [&](Operand* o) {
                          return o->strides[dims - 1] == o->strides[d] * size;
                        });
    if (!merges) problem.sizes[dims++] = 1;
    problem.sizes[dims - 1] *= size;
    for (Operand* o : present) o->strides[dims - 1] = o->strides[d];
  }
  if (dims == 0) {
    problem.sizes[dims++] = 1;
    for (Operand* o : present) o->strides[0] = 1;
  }
  problem.dims = dims;
}

template <class T>
weighted_bce::CallConstants<T> constants(const Numbers& from) {
  weighted_bce::CallConstants<T> to{};
  to.pos_weight = static_cast<T>(from.pos_weight);
  to.weight = static_cast<T>(from.weight);
  to.keep = static_cast<T>(1 - from.label_smoothing);
  to.shift = static_cast<T>(from.label_smoothing / 2);
  to.ignore_index = static_cast<T>(from.ignore_index);
  weighted_bce::set_parameters(to, from.loss, from.parameters);
  return to;
}

/// The problem with what follows from its sizes, its operands and the numbers.
inline Problem planned(Problem problem, Mode mode, const Numbers& numbers) {
  problem.mode = mode;
  problem.loss = numbers.loss;
  problem.ignores = numbers.ignores;
  problem.narrow = constants<float>(numbers);
  problem.wide = constants<double>(numbers);
  weighted_bce::set_dividers(problem);
  const bool one_number = problem.grad_output.form == Form::kUniform;
  for (Operand* o : operands_of(problem)) {
    if (o != &problem.grad_output || !one_number) o->form = weighted_bce::form_of(*o, problem);
  }
  problem.hard_fast_path = weighted_bce::has_hard_fast_path(problem);
  return problem;
}

/// One number for all elements.
inline Operand uniform(const void* at, Dtype dtype) {
  Operand o{};
  o.data = at;
  o.dtype = dtype;
  o.form = Form::kUniform;
  o.element_size = kBytesOf[static_cast<int>(dtype)];
  return o;
}

}  // namespace native
