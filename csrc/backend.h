// The ops as torch calls them, for any backend: arguments gathered and checked, then handed on.
//
// A backend is a struct with the functions named Backend:: below, which may rely on the checks.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "checks.h"
#include "tensors.h"

namespace weighted_bce {

template <class Backend>
struct Ops {
  static Tensor loss(const Tensor& input, const Tensor& target, const OptionalTensor& crow_indices,
                     const OptionalTensor& weight, const OptionalTensor& pos_weight,
                     double pos_weight_value, double label_smoothing,
                     std::optional<double> ignore_index, std::optional<int64_t> first_label,
                     int64_t reduction) {
    const Arguments a = checked(input, target, crow_indices, weight, pos_weight, pos_weight_value,
                                label_smoothing, ignore_index, first_label, reduction);
    return Backend::loss(a);
  }

  static std::tuple<Tensor, Tensor, Tensor> loss_and_grad(
      const Tensor& input, const Tensor& target, const OptionalTensor& crow_indices,
      const OptionalTensor& weight, const OptionalTensor& pos_weight, double pos_weight_value,
      double label_smoothing, std::optional<double> ignore_index,
      std::optional<int64_t> first_label, int64_t reduction, const Tensor& expected) {
    const Arguments a = checked(input, target, crow_indices, weight, pos_weight, pos_weight_value,
                                label_smoothing, ignore_index, first_label, reduction);
    check_scalar(expected, input, "expected");
    const Tensor out = Backend::new_result(input);
    const auto [loss, used] = Backend::loss_and_grad(a, expected, out);
    return {loss, out, used};
  }

  static Tensor loss_and_grad_(Tensor input, const Tensor& target,
                               const OptionalTensor& crow_indices, const OptionalTensor& weight,
                               const OptionalTensor& pos_weight, double pos_weight_value,
                               double label_smoothing, std::optional<double> ignore_index,
                               std::optional<int64_t> first_label, int64_t reduction,
                               const Tensor& expected) {
    const Arguments a = checked(input, target, crow_indices, weight, pos_weight, pos_weight_value,
                                label_smoothing, ignore_index, first_label, reduction);
    check_scalar(expected, input, "expected");
    check_writable(input, "input");
    return Backend::loss_and_grad(a, expected, input).first;
  }

  static void update_grad_(const Tensor& grad_output, Tensor used, Tensor expected, Tensor grad,
                           const Tensor& input, const Tensor& target,
                           const OptionalTensor& crow_indices, const OptionalTensor& weight,
                           const OptionalTensor& pos_weight, double pos_weight_value,
                           double label_smoothing, std::optional<double> ignore_index,
                           std::optional<int64_t> first_label, int64_t reduction) {
    const Arguments a = checked(input, target, crow_indices, weight, pos_weight, pos_weight_value,
                                label_smoothing, ignore_index, first_label, reduction);
    check_scalar(grad_output, input, "grad_output");
    check_scalar(used, input, "used");
    check_scalar(expected, input, "expected");
    check_grad(grad, input);
    check_writable(grad, "grad");
    Backend::update_grad_(a, grad_output, used, expected, grad);
  }

  static Tensor grad(const Tensor& grad_output, const Tensor& input, const Tensor& target,
                     const OptionalTensor& crow_indices, const OptionalTensor& weight,
                     const OptionalTensor& pos_weight, double pos_weight_value,
                     double label_smoothing, std::optional<double> ignore_index,
                     std::optional<int64_t> first_label, int64_t reduction) {
    const Arguments a = checked(input, target, crow_indices, weight, pos_weight, pos_weight_value,
                                label_smoothing, ignore_index, first_label, reduction);
    check_grad_output(grad_output, input);
    const Tensor out = Backend::new_result(input);
    Backend::write_grad(a, grad_output, out);
    return out;
  }

  static void grad_(const Tensor& grad_output, Tensor input, const Tensor& target,
                    const OptionalTensor& crow_indices, const OptionalTensor& weight,
                    const OptionalTensor& pos_weight, double pos_weight_value,
                    double label_smoothing, std::optional<double> ignore_index,
                    std::optional<int64_t> first_label, int64_t reduction) {
    const Arguments a = checked(input, target, crow_indices, weight, pos_weight, pos_weight_value,
                                label_smoothing, ignore_index, first_label, reduction);
    check_grad_output(grad_output, input);
    check_writable(input, "input");
    Backend::write_grad(a, grad_output, input);
  }

  static Tensor unreduced(const Tensor& input, const Tensor& target,
                          const OptionalTensor& crow_indices, const OptionalTensor& weight,
                          const OptionalTensor& pos_weight, double pos_weight_value,
                          double label_smoothing, std::optional<double> ignore_index,
                          std::optional<int64_t> first_label) {
    const Arguments a = checked(input, target, crow_indices, weight, pos_weight, pos_weight_value,
                                label_smoothing, ignore_index, first_label, kSum);
    const Tensor out = Backend::new_result(input);
    Backend::write_unreduced(a, out);
    return out;
  }

  static Tensor empty_grad(const Tensor& tensor) { return Backend::new_result(tensor); }

  static void add_to(torch::stable::detail::StableLibrary& library) {
    library.impl("loss", TORCH_BOX(&Ops::loss));
    library.impl("loss_and_grad", TORCH_BOX(&Ops::loss_and_grad));
    library.impl("loss_and_grad_", TORCH_BOX(&Ops::loss_and_grad_));
    library.impl("update_grad_", TORCH_BOX(&Ops::update_grad_));
    library.impl("grad", TORCH_BOX(&Ops::grad));
    library.impl("grad_", TORCH_BOX(&Ops::grad_));
    library.impl("empty_grad", TORCH_BOX(&Ops::empty_grad));
    library.impl("unreduced", TORCH_BOX(&Ops::unreduced));
  }
};

}  // namespace weighted_bce
