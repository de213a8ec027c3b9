// The C++ signature of an operator, from the text of its schema in fassd_kernels/schemas.def.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace fassd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using OptionalTensors = std::optional<Tensors>;
using Integers = std::vector<int64_t>;

namespace schema {

using Text = std::string_view;

// The type that begins at `at` in the arguments of a schema, which are "TYPE NAME[=DEFAULT]"
// separated by commas, with "*" before those that are only taken by name.
constexpr Text type_at(Text arguments, size_t at) {
  const size_t begin = arguments.find_first_not_of(" \n", at);
  return arguments.substr(begin, arguments.find_first_of(" ,", begin) - begin);
}

constexpr size_t count(Text arguments) {
  size_t found = 0;
  for (size_t at = 0;; ++at) {
    found += type_at(arguments, at) != "*";
    at = arguments.find(',', at);
    if (at == Text::npos) return found;
  }
}

// The type of the `index`-th argument, in the schema's notation.
constexpr Text type_of(Text arguments, size_t index) {
  for (size_t at = 0;; at = arguments.find(',', at) + 1) {
    const Text type = type_at(arguments, at);
    if (type != "*" && index-- == 0) return type;
  }
}

// True if a type is a list, of any length or of a fixed one: "int[]", "int[2]".
constexpr bool is_list_of(Text element, Text type) {
  return type.back() == ']' && type.substr(0, type.find('[')) == element;
}

template <typename T>
struct Type {
  using type = T;
};

template <const Text& arguments, size_t index>
constexpr auto parameter() {
  constexpr Text type = type_of(arguments, index);
  if constexpr (type == "Tensor")
    return Type<const Tensor&>{};
  else if constexpr (type == "Tensor?")
    return Type<const OptionalTensor&>{};
  else if constexpr (type == "Tensor[]")
    return Type<const Tensors&>{};
  else if constexpr (type == "Tensor[]?")
    return Type<const OptionalTensors&>{};
  else if constexpr (is_list_of("int", type) || is_list_of("SymInt", type))
    return Type<const Integers&>{};
  else if constexpr (is_list_of("float", type))
    return Type<const std::vector<double>&>{};
  else if constexpr (type == "int")
    return Type<int64_t>{};
  else if constexpr (type == "float")
    return Type<double>{};
  else if constexpr (type == "bool")
    return Type<bool>{};
  else if constexpr (type == "str")
    return Type<const std::string&>{};
  else {
    static_assert(type == "ScalarType", "a type that csrc/schema.h does not know");
    return Type<ScalarType>{};
  }
}

template <typename Result, const Text& arguments, typename Indices, typename... More>
struct Signature;

template <typename Result, const Text& arguments, size_t... index, typename... More>
struct Signature<Result, arguments, std::index_sequence<index...>, More...> {
  using type = Result(typename decltype(parameter<arguments, index>())::type..., More...);
};

}  // namespace schema

// The type of a function that takes the arguments of a schema, followed by those of types `More`.
template <typename Result, const std::string_view& arguments, typename... More>
using Signature =
    typename schema::Signature<Result, arguments,
                               std::make_index_sequence<schema::count(arguments)>, More...>::type;

}  // namespace fassd
