// The arguments that all ops share, and how an op takes them from the dispatcher: one list, from
// which the schema, the unboxing and the fields follow; and the one check of them. Python checks
// first, with better words; this guards those who call torch.ops.weighted_bce directly.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "problem.h"

namespace weighted_bce {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalNumbers = std::optional<std::vector<double>>;

// ARGUMENT(type, name, default), in the order of the schema. After `reduction` each has a default,
// so that programs exported before it was added still load.
//
//   target           of the shape of input; with crow_indices the col_indices of sparse labels
//   crow_indices     (rows + 1,), of the dtype of target, int32 or int64. The target of an input
//                    (rows, labels) is then 1 in row r at the labels
//                    target[crow_indices[r] : crow_indices[r + 1]], which ascend, and 0 elsewhere
//   weight           broadcasts to input
//   pos_weight       broadcasts to input; where it is None, pos_weight_value is used
//   label_smoothing  in [0, 1)
//   ignore_index     targets equal to it do not count; NaN ignores NaN
//   first_label      the label of input's first column, where input is a part of a larger one.
//                    Sparse labels may then be outside of the columns, and rows of the list outside
//                    of crow_indices. None: all are in input
//   reduction        0: none, for `unreduced` alone; 1: the mean over the targets that count;
//                    2: the sum; 3: the sum divided by the size of the first dimension
//   loss             its number in problem.h: 0 is binary cross-entropy, 1 the focal loss
//   parameters       of the loss, in the order of losses.h; None where it has none
//   normalizer       0-d, on the CPU or where input is: what the mean divides by, in place of the
//                    number of targets that count. None: that number
//   values           of sparse positives, one for each of target. Reserved: must be None
#define WEIGHTED_BCE_ARGUMENTS(ARGUMENT)            \
  ARGUMENT(Tensor, target, "")                      \
  ARGUMENT(OptionalTensor, crow_indices, "")        \
  ARGUMENT(OptionalTensor, weight, "")              \
  ARGUMENT(OptionalTensor, pos_weight, "")          \
  ARGUMENT(double, pos_weight_value, "")            \
  ARGUMENT(double, label_smoothing, "")             \
  ARGUMENT(std::optional<double>, ignore_index, "") \
  ARGUMENT(std::optional<int64_t>, first_label, "") \
  ARGUMENT(int64_t, reduction, "=0")                \
  ARGUMENT(int64_t, loss, "=0")                     \
  ARGUMENT(OptionalNumbers, parameters, "=None")    \
  ARGUMENT(OptionalTensor, normalizer, "=None")     \
  ARGUMENT(OptionalTensor, values, "=None")

#define WEIGHTED_BCE_ONE(type, name, otherwise) +1
constexpr int kArguments = 1 WEIGHTED_BCE_ARGUMENTS(WEIGHTED_BCE_ONE);  // with input
#undef WEIGHTED_BCE_ONE

/// The reductions have torch's numbers, but for the last.
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2, kBatchMean = 3 };

/// These are the logits and the arguments of the list.
struct Arguments {
#define WEIGHTED_BCE_FIELD(type, name, otherwise) type name;
#define WEIGHTED_BCE_UNBOXED(type, name, otherwise) , name(torch::stable::detail::to<type>(*from++))
  Tensor input;
  WEIGHTED_BCE_ARGUMENTS(WEIGHTED_BCE_FIELD)

  /// Takes them from the dispatcher's stack, which gives its references away. `from` points at
  /// input.
  explicit Arguments(StableIValue* from)
      : input(torch::stable::detail::to<Tensor>(*from++))
            WEIGHTED_BCE_ARGUMENTS(WEIGHTED_BCE_UNBOXED) {}
#undef WEIGHTED_BCE_UNBOXED
#undef WEIGHTED_BCE_FIELD

  bool is_sparse() const { return crow_indices.has_value(); }
  /// Tells whether some targets may not count: those of sparse labels are 0 or 1.
  bool ignores() const {
    return ignore_index && (!is_sparse() || *ignore_index == 0 || *ignore_index == 1);
  }
  /// Smoothed targets are y keep + shift.
  double keep() const { return 1 - label_smoothing; }
  double shift() const { return label_smoothing / 2; }
  /// Returns the dtype of arithmetic, of a reduced loss and of what a gradient is multiplied by.
  ScalarType compute_type() const {
    return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }
  /// Returns what a sum is divided by; nothing where that is a normalizer on a GPU, or the number
  /// of targets that count.
  std::optional<double> divisor() const;
};

/// Returns ", Tensor target, ...", as a schema has the arguments after input.
std::string schema_of_arguments();

/// Throws unless the tensor has a dtype that logits may have.
void check_floating(const Tensor& tensor, const char* name);
/// Throws where the arguments do not fit each other, before anything is computed.
void check(const Arguments& a);
/// Throws where the reduction is none, or not that of input.
void check_reduction(const Arguments& a);

/// Throws unless the tensor is 0-d, of the dtype of arithmetic, where the logits are.
void check_scalar(const Tensor& scalar, const Arguments& a, const char* name);
/// Throws unless it is 0-d or has the shape of input, and is where the logits are.
void check_grad_output(const Tensor& grad_output, const Arguments& a);
/// Throws unless it can hold a gradient of input.
void check_grad(const Tensor& grad, const Arguments& a);
/// Throws where two elements of the tensor may share memory.
void check_writable(const Tensor& tensor, const char* name);

/// Boxed<run>::call is an op as the dispatcher calls it. `run` takes the shared arguments, checked,
/// and then the op's own tensors, which come before input in its schema.
template <auto run>
struct Boxed;

template <class Result, class... Own, Result (*run)(const Arguments&, Own...)>
struct Boxed<run> {
  static void call(StableIValue* stack, uint64_t num_arguments, uint64_t) {
    STD_TORCH_CHECK(num_arguments == sizeof...(Own) + kArguments, "the schema is of another op");
    call(stack, std::index_sequence_for<Own...>());
  }

 private:
  template <size_t... k>
  static void call(StableIValue* stack, std::index_sequence<k...>) {
    std::tuple own{torch::stable::detail::to<std::decay_t<Own>>(stack[k])...};
    const Arguments a(stack + sizeof...(Own));
    check(a);
    if constexpr (std::is_void_v<Result>) {
      run(a, std::get<k>(own)...);
    } else {
      give(stack, run(a, std::get<k>(own)...));
    }
  }

  static void give(StableIValue* stack, const Tensor& result) {
    *stack = torch::stable::detail::from(result);
  }
  template <class... T>
  static void give(StableIValue* stack, const std::tuple<T...>& results) {
    std::apply([&](const auto&... each) { ((*stack++ = torch::stable::detail::from(each)), ...); },
               results);
  }
};

}  // namespace weighted_bce
