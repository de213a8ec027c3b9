// Selects the kernel of a list that is compiled for a variant.

#pragma once

#include <iterator>
#include <type_traits>
#include <utility>

#include "conv_act.cuh"

namespace fassd::cuda {

template <typename List, typename Variant, typename Function, size_t... index>
void with_entry(const char* op, const Variant& variant, const Function& function,
                std::index_sequence<index...>) {
  const bool compiled = ((variant == List::list[index] &&
                          (function(std::integral_constant<size_t, index>()), true)) ||
                         ...);
  STD_TORCH_CHECK(compiled, op, ": no kernel of ", variant.warps, " warps was compiled for this");
}

// Calls `function` with the variant's position in `List::list`, as a constant.
template <typename List, typename Variant, typename Function>
void with_entry(const char* op, const Variant& variant, const Function& function) {
  with_entry<List>(op, variant, function, std::make_index_sequence<std::size(List::list)>());
}

}  // namespace fassd::cuda
