// Many stacks on one thread of the host, and the step from one to another, known to
// AddressSanitizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#define NATIVE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NATIVE_ASAN 1
#endif
#endif
#ifdef NATIVE_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && defined(__ELF__)
#define NATIVE_SWITCH_BY_HAND 1
#else
#include <ucontext.h>
#endif

namespace native {

#ifdef NATIVE_SWITCH_BY_HAND
// ucontext asks the kernel for the signal mask at each step, which takes most of the time.
extern "C" void native_switch(void** from, void* to);
asm(R"(
.pushsection .text
.type native_switch, @function
native_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size native_switch, .-native_switch
.popsection
)");
#endif

/// A stack, and where its code is resumed. The host's own is one as well.
class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// `entry` never returns. `size` is a multiple of 16, and so is the address.
  void prepare(void* stack, size_t size, void (*entry)()) {
    bottom_ = stack, size_ = size;
#ifdef NATIVE_SWITCH_BY_HAND
    auto* const top = reinterpret_cast<void**>(static_cast<char*>(stack) + size);
    for (int k = 1; k <= 8; ++k) top[-k] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);  // above six registers
    at_ = top - 8;
#else
    getcontext(&at_);
    at_.uc_stack.ss_sp = stack, at_.uc_stack.ss_size = size, at_.uc_link = nullptr;
    makecontext(&at_, entry, 0);
#endif
  }

  /// Leaves the stack that runs, `from`, for this one, until `from` is resumed.
  void resume(Fiber& from) {
#ifdef NATIVE_ASAN
    __sanitizer_start_switch_fiber(&from.fake_, bottom_, size_);
#endif
#ifdef NATIVE_SWITCH_BY_HAND
    native_switch(&from.at_, at_);
#else
    swapcontext(&from.at_, &at_);
#endif
#ifdef NATIVE_ASAN
    __sanitizer_finish_switch_fiber(from.fake_, nullptr, nullptr);
#endif
  }

  /// The first act of an entry: `host` is the one that came here.
  static void entered(Fiber& host) {
#ifdef NATIVE_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &host.bottom_, &host.size_);
#endif
  }

 private:
#ifdef NATIVE_SWITCH_BY_HAND
  void* at_ = nullptr;
#else
  ucontext_t at_;
#endif
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_ = nullptr;
};

}  // namespace native
