// Plans made before. A forward pass needs a hundred; making that of a convolution takes 60 us, of
// four pairs 240; finding it again takes 0.2 to 0.6 (a core of Zen 5).

#pragma once

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "plan.h"

namespace fassd::cuda {

// Everything that a plan depends on, as bytes: equal questions have equal plans.
class Question {
 public:
  template <typename... Values>
  void add(const Values&... values) {
    (append(values), ...);
  }

  // Settings of the environment for plans. They are read every time: tests and tuning change them.
  void add_environment() {
    for (const char* name : plan_variables) {
      const char* text = std::getenv(name);
      bytes_.append(text == nullptr ? "" : text).push_back('\0');
    }
  }

  const std::string& bytes() const { return bytes_; }

 private:
  template <typename Value>
  void append(const Value& value) {
    static_assert(std::is_arithmetic_v<Value> || std::is_enum_v<Value>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  template <typename Value>
  void append(const std::vector<Value>& values) {
    append(values.size());
    for (const Value& value : values) {
      append(value);
    }
  }
  // Fields by name: if one is added, these lines do not compile.
  void append(const DeviceLimits& limits) {
    const auto& [multiprocessors, shared_bytes, capability] = limits;
    add(multiprocessors, shared_bytes, capability);
  }
  void append(const ConvolutionShape& shape) {
    const auto& [batch, height, width, out_height, out_width, channels, out_channels, kernel_h,
                 kernel_w, stride_h, stride_w, dilation_h, dilation_w, pool, prologue, ending,
                 arithmetic] = shape;
    add(batch, height, width, out_height, out_width, channels, out_channels, kernel_h, kernel_w,
        stride_h, stride_w, dilation_h, dilation_w, pool, prologue, ending, arithmetic);
  }
  void append(const PairShape& shape) {
    const auto& [batch, height, width, in_channels, middle_channels, out_channels, dilation, single,
                 ending, arithmetic] = shape;
    add(batch, height, width, in_channels, middle_channels, out_channels, dilation, single, ending,
        arithmetic);
  }

  std::string bytes_;
};

// Answers by question, for all threads. When there are too many, all are dropped: a program with
// ever new sizes takes time for plans, but no more memory.
template <typename Answer>
class Memo {
 public:
  static constexpr size_t most_answers = 4096;

  template <typename Find>
  Answer answer(const Question& question, const Find& find) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto known = answers_.find(question.bytes());
      if (known != answers_.end()) {
        return known->second;
      }
    }
    Answer found = find();  // other threads need not wait for it
    const std::lock_guard<std::mutex> lock(mutex_);
    if (answers_.size() >= most_answers) {
      answers_.clear();
    }
    answers_.emplace(question.bytes(), found);
    return found;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::string, Answer> answers_;
};

// Equals plan(shape, limits), as for plan_convolution.
template <auto plan, typename Shape>
auto remembered(const Shape& shape, const DeviceLimits& limits) {
  static Memo<decltype(plan(shape, limits))> memo;
  Question question;
  question.add(shape, limits);
  question.add_environment();
  return memo.answer(question, [&] { return plan(shape, limits); });
}

}  // namespace fassd::cuda
