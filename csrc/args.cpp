#include "args.h"

#include "plan.h"
#include "losses.h"

namespace weighted_bce {
namespace {

/// A schema names a type so.
template <class T>
constexpr const char* kSchemaType = "Tensor";
template <>
constexpr const char* kSchemaType<OptionalTensor> = "Tensor?";
template <>
constexpr const char* kSchemaType<double> = "float";
template <>
constexpr const char* kSchemaType<std::optional<double>> = "float?";
template <>
constexpr const char* kSchemaType<int64_t> = "int";
template <>
constexpr const char* kSchemaType<std::optional<int64_t>> = "int?";
template <>
constexpr const char* kSchemaType<OptionalNumbers> = "float[]?";

bool same_sizes(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

bool broadcasts(const Tensor& from, const Tensor& to) {
  const int64_t missing = to.dim() - from.dim();
  if (missing < 0) return false;
  for (int64_t d = 0; d < from.dim(); ++d) {
    if (from.size(d) != 1 && from.size(d) != to.size(d + missing)) return false;
  }
  return true;
}

void check_same_device(const Tensor& tensor, const Tensor& input, const char* name) {
  STD_TORCH_CHECK(
      tensor.is_cpu() == input.is_cpu() && tensor.get_device_index() == input.get_device_index(),
      name, " must be on the device of input");
}

/// Throws unless the factor broadcasts. One number may stay on the CPU, as for torch's operators.
void check_factor(const OptionalTensor& factor, const Tensor& input, const char* name) {
  if (!factor) return;
  STD_TORCH_CHECK(broadcasts(*factor, input), name, " must broadcast to the shape of input");
  const bool movable = factor->is_cpu() && factor->dim() == 0;
  if (!movable) check_same_device(*factor, input, name);
}

void check_indices(const Tensor& indices, const char* name) {
  STD_TORCH_CHECK(
      indices.scalar_type() == ScalarType::Int || indices.scalar_type() == ScalarType::Long, name,
      " must be int32 or int64");
  STD_TORCH_CHECK(indices.dim() == 1 && (indices.numel() < 2 || indices.stride(0) == 1), name,
                  " must be 1-d and contiguous");
}

/// Checks all but the values of the indices, which only a CPU can look at without waiting.
void check_sparse(const Arguments& a) {
  const Tensor& crow = *a.crow_indices;
  STD_TORCH_CHECK(a.input.dim() == 2, "input must be 2-d with sparse labels, got ", a.input.dim(),
                  " dimensions");
  check_indices(a.target, "col_indices");
  check_indices(crow, "crow_indices");
  STD_TORCH_CHECK(crow.scalar_type() == a.target.scalar_type(),
                  "crow_indices must have the dtype of col_indices");
  STD_TORCH_CHECK(crow.numel() == a.input.size(0) + 1, "crow_indices must have ",
                  a.input.size(0) + 1, " elements, one more than input has rows, got ",
                  crow.numel());
  check_same_device(crow, a.input, "crow_indices");
  constexpr int64_t kMost = int64_t{1} << 62;  // a number of labels may be added to it
  STD_TORCH_CHECK(a.first_label.value_or(0) >= 0 && a.first_label.value_or(0) < kMost,
                  "first_label must be in [0, 2**62), got ", a.first_label.value_or(0));
}

void check_normalizer(const Arguments& a) {
  if (!a.normalizer) return;
  STD_TORCH_CHECK(a.reduction == kMean, "a normalizer needs reduction 1 (mean), got ", a.reduction);
  STD_TORCH_CHECK(a.normalizer->dim() == 0, "normalizer must be 0-d, got ", a.normalizer->dim(),
                  " dimensions");
  if (a.normalizer->is_cpu()) {
    const double value = only_value(*a.normalizer);
    STD_TORCH_CHECK(value >= 0, "normalizer must be at least 0, got ", value);
  } else {
    check_same_device(*a.normalizer, a.input, "normalizer");
  }
}

void check_loss(const Arguments& a) {
  STD_TORCH_CHECK(a.loss >= 0 && a.loss < kLosses, "loss must be in [0, ", kLosses, "), got ",
                  a.loss);
  const size_t count = a.parameters ? a.parameters->size() : 0;
  size_t expected = 0;
  const char* fault = nullptr;
  with_loss(static_cast<Loss>(a.loss), [&](auto loss) {
    using Terms = typename decltype(loss)::template Terms<NoMath>;
    expected = Terms::kParameters;
    if (count > 0 && count == expected) fault = Terms::fault(a.parameters->data());
  });
  STD_TORCH_CHECK(count == expected, "loss ", a.loss, " must have ", expected, " parameters, got ",
                  count);
  STD_TORCH_CHECK(fault == nullptr, "loss ", a.loss, ": ", fault);
}

}  // namespace

std::string schema_of_arguments() {
  std::string schema;
#define WEIGHTED_BCE_DECLARED(type, name, otherwise) \
  schema += std::string(", ") + kSchemaType<type> + " " #name otherwise;
  WEIGHTED_BCE_ARGUMENTS(WEIGHTED_BCE_DECLARED)
#undef WEIGHTED_BCE_DECLARED
  return schema;
}

std::optional<double> Arguments::divisor() const {
  switch (reduction) {
    case kMean: break;
    case kBatchMean: return static_cast<double>(input.size(0));
    default: return 1;
  }
  if (normalizer && input.numel() == 0) return 1;  // not 0 / 0 with a normalizer of 0
  if (normalizer && normalizer->is_cpu()) return only_value(*normalizer);
  if (normalizer || ignores()) return std::nullopt;
  return static_cast<double>(input.numel());
}

void check_floating(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Float || dtype == ScalarType::Double,
                  name, " must be float16, bfloat16, float32 or float64");
}

void check(const Arguments& a) {
  check_floating(a.input, "input");
  STD_TORCH_CHECK(a.input.dim() <= kMaxDims, "input must have at most ", kMaxDims,
                  " dimensions, got ", a.input.dim());
  if (a.is_sparse()) {
    check_sparse(a);
  } else {
    STD_TORCH_CHECK(same_sizes(a.target, a.input), "target must have the shape of input");
    STD_TORCH_CHECK(!a.first_label, "first_label needs crow_indices");
  }
  check_same_device(a.target, a.input, "target");
  check_factor(a.weight, a.input, "weight");
  check_factor(a.pos_weight, a.input, "pos_weight");
  STD_TORCH_CHECK(a.pos_weight_value >= 0, "pos_weight must be at least 0, got ",
                  a.pos_weight_value);
  STD_TORCH_CHECK(a.label_smoothing >= 0 && a.label_smoothing < 1,
                  "label_smoothing must be in [0, 1), got ", a.label_smoothing);
  check_loss(a);
  check_normalizer(a);
  STD_TORCH_CHECK(!a.values, "values are not supported, must be None");
}

void check_reduction(const Arguments& a) {
  STD_TORCH_CHECK(a.reduction >= kMean && a.reduction <= kBatchMean,
                  "reduction must be 1 (mean), 2 (sum) or 3 (batchmean), got ", a.reduction);
  STD_TORCH_CHECK(a.reduction != kBatchMean || a.input.dim() > 0,
                  "reduction batchmean needs an input with a first dimension");
}

void check_scalar(const Tensor& scalar, const Arguments& a, const char* name) {
  STD_TORCH_CHECK(scalar.dim() == 0, name, " must be 0-d");
  const ScalarType dtype = a.compute_type();
  STD_TORCH_CHECK(scalar.scalar_type() == dtype, name, " must be ",
                  dtype == ScalarType::Double ? "float64" : "float32", " like the loss of input");
  check_same_device(scalar, a.input, name);
  STD_TORCH_CHECK(scalar.const_data_ptr() != nullptr, name, " must have memory");
}

void check_grad(const Tensor& grad, const Arguments& a) {
  STD_TORCH_CHECK(same_sizes(grad, a.input) && grad.scalar_type() == a.input.scalar_type(),
                  "grad must have the shape and dtype of input");
  check_same_device(grad, a.input, "grad");
  check_writable(grad, "grad");
}

void check_grad_output(const Tensor& grad_output, const Arguments& a) {
  STD_TORCH_CHECK(grad_output.dim() == 0 || same_sizes(grad_output, a.input),
                  "grad_output must be 0-d or have the shape of input");
  check_same_device(grad_output, a.input, "grad_output");
}

void check_writable(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(non_overlapping(tensor), name, " must not overlap itself to be written in place");
}

}  // namespace weighted_bce
