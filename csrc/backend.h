// The ops of a backend: what they check besides the shared arguments, and what they return.
//
// A backend is a struct with the functions named Backend:: below, which may rely on the checks.
#pragma once

#include "args.h"

namespace weighted_bce {

template <class Backend>
struct Ops {
  static Tensor loss(const Arguments& a) {
    check_reduction(a);
    return Backend::loss(a);
  }

  static std::tuple<Tensor, Tensor, Tensor> loss_and_grad(const Arguments& a,
                                                          const Tensor& expected) {
    check_reduction(a);
    check_scalar(expected, a, "expected");
    Tensor grad = Backend::new_matrix(a.input);
    auto [loss, used] = Backend::loss_and_grad(a, expected, grad);
    return {std::move(loss), std::move(grad), std::move(used)};
  }

  static Tensor loss_and_grad_(const Arguments& a, const Tensor& expected) {
    check_reduction(a);
    check_scalar(expected, a, "expected");
    check_writable(a.input, "input");
    return Backend::loss_and_grad(a, expected, a.input).first;
  }

  static void update_grad_(const Arguments& a, const Tensor& grad_output, Tensor& used,
                           Tensor& expected, const Tensor& grad) {
    check_reduction(a);
    check_scalar(grad_output, a, "grad_output");
    check_scalar(used, a, "used");
    check_scalar(expected, a, "expected");
    check_grad(grad, a);
    Backend::update_grad_(a, grad_output, used, expected, grad);
  }

  static Tensor grad(const Arguments& a, const Tensor& grad_output) {
    check_reduction(a);
    check_grad_output(grad_output, a);
    Tensor grad = Backend::new_matrix(a.input);
    Backend::write_grad(a, grad_output, grad);
    return grad;
  }

  static void grad_(const Arguments& a, const Tensor& grad_output) {
    check_reduction(a);
    check_grad_output(grad_output, a);
    check_writable(a.input, "input");
    Backend::write_grad(a, grad_output, a.input);
  }

  static Tensor unreduced(const Arguments& a) {
    STD_TORCH_CHECK(a.reduction == kNone, "reduction must be 0 (none), got ", a.reduction);
    Tensor losses = Backend::new_matrix(a.input);
    Backend::write_unreduced(a, losses);
    return losses;
  }

  static Tensor empty_grad(const Tensor& tensor) { return Backend::new_matrix(tensor); }

  static void add_to(torch::stable::detail::StableLibrary& library) {
    library.impl("loss", &Boxed<&Ops::loss>::call);
    library.impl("loss_and_grad", &Boxed<&Ops::loss_and_grad>::call);
    library.impl("loss_and_grad_", &Boxed<&Ops::loss_and_grad_>::call);
    library.impl("update_grad_", &Boxed<&Ops::update_grad_>::call);
    library.impl("grad", &Boxed<&Ops::grad>::call);
    library.impl("grad_", &Boxed<&Ops::grad_>::call);
    library.impl("unreduced", &Boxed<&Ops::unreduced>::call);
    library.impl("empty_grad", TORCH_BOX(&Ops::empty_grad));
  }
};

}  // namespace weighted_bce
