#include "plan.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "losses.h"

namespace weighted_bce {
namespace {

/// This lists the dimensions from the innermost to the outermost in memory, as torch.empty_like
/// does: by stride; among equal ones the smaller size first; a stride of 0 stays where it is.
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
  /// Returns the order of the dimensions themselves.
  static Order of_dimensions(const Tensor& t) {
    Order order;
    STD_TORCH_CHECK(t.dim() <= kMaxDims, "a tensor must have at most ", kMaxDims, " dimensions");
    order.count = static_cast<int>(t.dim());
    for (int i = 0; i < order.count; ++i) order.dims[i] = order.count - 1 - i;
    return order;
  }
  /// Returns a number above 0 where a belongs outside of b, below 0 where inside, else 0.
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

/// Returns a tensor's memory and its strides over the shape of input.
Operand operand(const Tensor& tensor, const Tensor& input) {
  Operand o;
  o.data = memory_of(tensor);
  o.dtype = dtype_of(tensor);
  o.element_size = static_cast<uint8_t>(tensor.element_size());
  o.form = Form::kStrided;
  const int64_t missing = input.dim() - tensor.dim();
  for (int64_t d = 0; d < input.dim(); ++d) {
    const bool repeated = d < missing || tensor.size(d - missing) == 1;
    o.strides[d] = repeated ? 0 : tensor.stride(d - missing);
  }
  return o;
}

/// Makes a factor of one number that is known here a number, and others an operand.
void set_factor(const OptionalTensor& factor, const Tensor& input, double& number, Operand& o) {
  if (!factor) return;
  if (factor->is_cpu() && factor->numel() == 1) {
    number = only_value(*factor);
  } else {
    o = operand(*factor, input);
  }
}

Csr csr_of(const Arguments& a) {
  Csr csr;
  csr.crow_indices = memory_of(*a.crow_indices);
  csr.col_indices = memory_of(a.target);
  csr.index_size = static_cast<int>(a.target.element_size());
  csr.num_rows = a.input.size(0);
  csr.num_labels = a.input.size(1);
  csr.count = a.target.numel();
  csr.first_label = a.first_label.value_or(0);
  return csr;
}

/// Reorders the dimensions, drops those of size 1, and merges neighbours that every operand walks
/// in one step.
void collapse(Problem& problem, const Tensor& input) {
  Operand* operands[6];
  int64_t strides[6][kMaxDims];
  int count = 0, dims = 0;
  for (Operand* o :
       {&problem.x, &problem.y, &problem.w, &problem.p, &problem.grad_output, &problem.out}) {
    if (o->data != nullptr) operands[count++] = o;
  }
  const Order order = problem.csr.crow_indices ? Order::of_dimensions(input) : Order(input);
  for (int i = order.count - 1; i >= 0; --i) {
    const int d = order.dims[i];
    const int64_t size = input.size(d);
    if (size == 1) continue;
    bool merges = dims > 0;
    for (int k = 0; k < count; ++k) {
      merges = merges && strides[k][dims - 1] == operands[k]->strides[d] * size;
    }
    if (!merges) problem.sizes[dims++] = 1;
    problem.sizes[dims - 1] *= size;
    for (int k = 0; k < count; ++k) strides[k][dims - 1] = operands[k]->strides[d];
  }
  if (dims == 0) {
    problem.sizes[dims++] = 1;
    for (int k = 0; k < count; ++k) strides[k][0] = 1;
  }
  problem.dims = dims;
  for (int k = 0; k < count; ++k) {
    std::copy(strides[k], strides[k] + dims, operands[k]->strides);
    operands[k]->form = form_of(*operands[k], problem);
  }
}

/// Returns ignore_index as a target of this dtype would hold it.
double rounded_to(double value, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return static_cast<float>(value);
    case ScalarType::Half: return static_cast<float>(c10::Half(static_cast<float>(value)));
    case ScalarType::BFloat16: return static_cast<float>(c10::BFloat16(static_cast<float>(value)));
    default: return value;
  }
}

template <class T>
CallConstants<T> constants(const Arguments& a, double weight, double pos_weight) {
  CallConstants<T> c{};
  c.pos_weight = static_cast<T>(pos_weight);
  c.weight = static_cast<T>(weight);
  c.keep = static_cast<T>(a.keep());
  c.shift = static_cast<T>(a.shift());
  if (a.ignores()) {
    c.ignore_index = static_cast<T>(rounded_to(*a.ignore_index, a.target.scalar_type()));
  }
  set_parameters(c, static_cast<Loss>(a.loss), a.parameters ? a.parameters->data() : nullptr);
  return c;
}

}  // namespace

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

double only_value(const Tensor& tensor) {
  const void* const data = memory_of(tensor);
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return *static_cast<const float*>(data);
    case ScalarType::Double: return *static_cast<const double*>(data);
    case ScalarType::Half: return static_cast<float>(*static_cast<const c10::Half*>(data));
    case ScalarType::BFloat16: return static_cast<float>(*static_cast<const c10::BFloat16*>(data));
    default: break;
  }
  dtype_of(tensor);  // throws for what is no real number
  return only_value(torch::stable::to(tensor, ScalarType::Double));
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

Problem plan(Mode mode, const Arguments& a, const Tensor* grad_output, const Tensor* out) {
  Problem problem;
  problem.mode = mode;
  problem.loss = static_cast<Loss>(a.loss);
  problem.numel = a.input.numel();
  problem.x = operand(a.input, a.input);
  if (a.is_sparse()) {
    problem.csr = csr_of(a);
  } else {
    problem.y = operand(a.target, a.input);
  }
  double weight = 1, pos_weight = a.pos_weight_value;
  set_factor(a.weight, a.input, weight, problem.w);
  set_factor(a.pos_weight, a.input, pos_weight, problem.p);
  if (grad_output != nullptr) problem.grad_output = operand(*grad_output, a.input);
  if (out != nullptr) problem.out = operand(*out, a.input);
  problem.narrow = constants<float>(a, weight, pos_weight);
  problem.wide = constants<double>(a, weight, pos_weight);
  problem.ignores = a.ignores();
  collapse(problem, a.input);
  if (grad_output != nullptr && grad_output->dim() == 0) problem.grad_output.form = Form::kUniform;

  problem.hard_fast_path = has_hard_fast_path(problem);
  return problem;
}

}  // namespace weighted_bce
