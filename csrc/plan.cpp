#include "plan.h"

#include <algorithm>

namespace weighted_bce {
namespace {

static_assert(kMostDims <= kMaxDims, "room for all dimensions");

Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Bool: return Dtype::kBool;
    case ScalarType::Byte: return Dtype::kUInt8;
    case ScalarType::Char: return Dtype::kInt8;
    case ScalarType::UInt16: return Dtype::kUInt16;
    case ScalarType::Short: return Dtype::kInt16;
    case ScalarType::UInt32: return Dtype::kUInt32;
    case ScalarType::Int: return Dtype::kInt32;
    case ScalarType::UInt64: return Dtype::kUInt64;
    case ScalarType::Long: return Dtype::kInt64;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    default: STD_TORCH_CHECK(false, "a dtype that weighted_bce has no kernel for");
  }
}

/// The dimensions from the innermost to the outermost in memory, as torch.empty_like orders them:
/// by stride; among equal ones the smaller size first; a stride of 0 stays where it is.
struct Order {
  int dims[kMaxDims];
  int count;
  explicit Order(const Tensor& t) : Order(of_dimensions(t)) {
    for (int i = 1; i < count; ++i) {
      for (int at = i, before = i - 1; before >= 0; --before) {
        const int64_t side = compared(t, dims[before], dims[at]);
        if (side < 0) break;
        if (side == 0) continue;
        std::swap(dims[before], dims[at]);
        at = before;
      }
    }
  }
  /// That of the dimensions themselves.
  static Order of_dimensions(const Tensor& t) {
    Order order;
    order.count = static_cast<int>(t.dim());
    for (int i = 0; i < order.count; ++i) order.dims[i] = order.count - 1 - i;
    return order;
  }
  /// Above 0 where a belongs outside of b, below 0 where inside, 0 where either may be.
  static int64_t compared(const Tensor& t, int a, int b) {
    if (t.stride(a) == 0 || t.stride(b) == 0) return 0;
    if (t.stride(a) != t.stride(b)) return t.stride(a) - t.stride(b);
    return t.size(a) > t.size(b) ? 1 : 0;
  }

 private:
  Order() = default;
};

const void* memory_of(const Tensor& tensor) {
  const void* const data = tensor.const_data_ptr();
  STD_TORCH_CHECK(data != nullptr || tensor.numel() == 0, "a tensor that has no memory");
  return data;
}

/// A tensor's memory and its strides over the shape of input.
Operand operand(const Tensor& tensor, const Tensor& input) {
  Operand o;
  o.data = memory_of(tensor);
  o.dtype = dtype_of(tensor);
  o.element_size = static_cast<int>(tensor.element_size());
  const int64_t missing = input.dim() - tensor.dim();
  for (int64_t d = 0; d < input.dim(); ++d) {
    const bool repeated = d < missing || tensor.size(d - missing) == 1;
    o.strides[d] = repeated ? 0 : tensor.stride(d - missing);
  }
  return o;
}

Positives positives_of(const Arguments& a) {
  Positives positives;
  positives.crow = memory_of(*a.crow_indices);
  positives.col = memory_of(a.target);
  positives.index_size = static_cast<int>(a.target.element_size());
  positives.rows = a.input.size(0);
  positives.labels = a.input.size(1);
  positives.count = a.target.numel();
  positives.first_label = a.first_label.value_or(0);
  return positives;
}

struct Operands {
  Operand* present[6];
  int count = 0;
  void add(Operand& o) {
    if (o.data != nullptr) present[count++] = &o;
  }
};

/// Reorders the dimensions, drops those of size 1, and merges neighbours that every operand walks
/// in one step.
void collapse(Problem& problem, Operands& operands, const Tensor& input) {
  const Order order = problem.positives.crow ? Order::of_dimensions(input) : Order(input);
  int64_t strides[6][kMaxDims];
  int dims = 0;
  for (int i = order.count - 1; i >= 0; --i) {
    const int d = order.dims[i];
    const int64_t size = input.size(d);
    if (size == 1) continue;
    bool merges = dims > 0;
    for (int k = 0; k < operands.count; ++k) {
      merges = merges && strides[k][dims - 1] == operands.present[k]->strides[d] * size;
    }
    if (!merges) problem.sizes[dims++] = 1;
    problem.sizes[dims - 1] *= size;
    for (int k = 0; k < operands.count; ++k) {
      strides[k][dims - 1] = operands.present[k]->strides[d];
    }
  }
  if (dims == 0) {
    problem.sizes[dims++] = 1;
    for (int k = 0; k < operands.count; ++k) strides[k][0] = 1;
  }
  problem.dims = dims;
  for (int k = 0; k < operands.count; ++k) {
    Operand& o = *operands.present[k];
    std::copy(strides[k], strides[k] + dims, o.strides);
    o.linear = true;
    int64_t expected = 1;
    for (int d = dims - 1; d >= 0; --d) {
      o.linear = o.linear && o.strides[d] == expected;
      expected *= problem.sizes[d];
    }
  }
}

/// ignore_index as a target of this dtype would hold it.
double rounded_to(double value, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return static_cast<float>(value);
    case ScalarType::Half: return static_cast<float>(c10::Half(static_cast<float>(value)));
    case ScalarType::BFloat16: return static_cast<float>(c10::BFloat16(static_cast<float>(value)));
    default: return value;
  }
}

bool is_floating(const Tensor& t) {
  return static_cast<int>(dtype_of(t)) >= static_cast<int>(Dtype::kFloat16);
}

}  // namespace

double only_value(const Tensor& tensor) {
  const void* data = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return *static_cast<const float*>(data);
    case ScalarType::Double: return *static_cast<const double*>(data);
    case ScalarType::Half: return static_cast<float>(*static_cast<const c10::Half*>(data));
    case ScalarType::BFloat16: return static_cast<float>(*static_cast<const c10::BFloat16*>(data));
    default: STD_TORCH_CHECK(false, "a scalar factor must be a floating-point tensor");
  }
}

bool non_overlapping(const Tensor& tensor) {
  const Order order(tensor);
  int64_t reach = 0;  // the highest offset that the dimensions so far touch
  for (int i = 0; i < order.count; ++i) {
    const int d = order.dims[i];
    if (tensor.size(d) <= 1) continue;
    if (tensor.stride(d) <= reach) return false;
    reach += tensor.stride(d) * (tensor.size(d) - 1);
  }
  return true;
}

void output_strides(const Tensor& input, int64_t* strides) {
  const Order order(input);
  int64_t step = 1;
  for (int i = 0; i < order.count; ++i) {
    strides[order.dims[i]] = step;
    step *= std::max<int64_t>(input.size(order.dims[i]), 1);
  }
}

Problem plan(const Arguments& a, const Tensor* upstream, const Tensor* out) {
  Problem problem;
  problem.numel = a.input.numel();
  problem.x = operand(a.input, a.input);
  if (a.crow_indices) {
    problem.positives = positives_of(a);
  } else {
    problem.y = operand(a.target, a.input);
  }
  if (a.weight) problem.w = operand(*a.weight, a.input);
  problem.pos_weight = a.pos_weight_value;
  if (a.pos_weight) {
    if (a.pos_weight->numel() == 1 && is_floating(*a.pos_weight) && a.pos_weight->is_cpu()) {
      problem.pos_weight = only_value(*a.pos_weight);
    } else {
      problem.p = operand(*a.pos_weight, a.input);
    }
  }
  if (upstream != nullptr) {
    if (upstream->dim() == 0) {
      problem.scale = only_value(*upstream);
    } else {
      problem.upstream = operand(*upstream, a.input);
    }
  }
  if (out != nullptr) problem.out = operand(*out, a.input);
  problem.label_smoothing = a.label_smoothing;
  problem.ignores = a.ignores();
  if (problem.ignores) problem.ignore_index = rounded_to(*a.ignore_index, a.target.scalar_type());

  Operands operands;
  for (Operand* o :
       {&problem.x, &problem.y, &problem.w, &problem.p, &problem.upstream, &problem.out}) {
    operands.add(*o);
  }
  collapse(problem, operands, a.input);
  return problem;
}

}  // namespace weighted_bce
