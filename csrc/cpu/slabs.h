// Shares slabs of a range among threads, and adds what they compute in the order of the slabs, so
// that the bits of a sum depend neither on how many threads there are nor on which is first.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

namespace weighted_bce {

/// A slab is handed out with memory for its part of a sum. Memory is used again after the part was
/// added, so that there is no more of it than `most` parts need, and usually less.
template <class T>
class Slabs {
 public:
  struct Slab {
    int64_t index;
    T* part;  // the thread that takes the slab writes all of it
  };

  /// `total` receives the sum, of `size` elements, which may be 0.
  Slabs(int64_t count, int64_t size, int64_t most, T* total)
      : count_(count), size_(size), most_(most), total_(total), finished_(count, nullptr) {}

  /// Takes the next slab. Returns false where none is left.
  bool take(Slab& slab) {
    std::unique_lock lock(mutex_);
    // Slabs are taken in order, so that the first that is not added has its memory.
    freed_.wait(lock, [&] { return next_ == count_ || !free_.empty() || made() < most_; });
    if (next_ == count_) return false;
    if (free_.empty()) {
      parts_.emplace_back(new T[std::max<int64_t>(size_, 1)]);
      free_.push_back(parts_.back().get());
    }
    slab = {next_++, free_.back()};
    free_.pop_back();
    return true;
  }

  /// Adds the part of the slab, and those that have waited for it, unless another thread does.
  void finish(const Slab& slab) {
    std::unique_lock lock(mutex_);
    finished_[slab.index] = slab.part;
    if (is_adding_) return;
    is_adding_ = true;
    while (added_ < count_ && finished_[added_] != nullptr) {
      T* const part = finished_[added_];
      lock.unlock();
      if (added_ == 0) {
        std::copy_n(part, size_, total_);
      } else {
        for (int64_t i = 0; i < size_; ++i) total_[i] += part[i];
      }
      lock.lock();
      ++added_;
      free_.push_back(part);
      freed_.notify_one();
    }
    is_adding_ = false;
  }

  /// Hands out no more slabs, since a thread has failed. The first error is kept.
  void fail(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = error;
    next_ = count_;
    freed_.notify_all();
  }

  /// Throws the error of a thread, after all have ended.
  void check() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  int64_t made() const { return static_cast<int64_t>(parts_.size()); }

  const int64_t count_, size_, most_;
  T* const total_;
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<std::unique_ptr<T[]>> parts_;
  std::vector<T*> free_, finished_;  // finished_[i]: the part of slab i once it is computed
  int64_t next_ = 0, added_ = 0;     // the slab to hand out, and to add
  bool is_adding_ = false;
  std::exception_ptr error_;
};

}  // namespace weighted_bce
