// The floating-point halves of instructions that integers share: add, mul, setp and so on.

#pragma once

#include <tuple>

#include "translate.h"

namespace ptx {

void float_add(Binding& binding, Type type);
void float_subtract(Binding& binding, Type type);
void float_multiply(Binding& binding, Type type);
void float_fma(Binding& binding, Type type);
void float_divide(Binding& binding, Type type);
void float_minimum(Binding& binding, Type type);
void float_maximum(Binding& binding, Type type);
void float_negate(Binding& binding, Type type);
void float_absolute(Binding& binding, Type type);
void half_comparison(Binding& binding, Type type, int which);

}  // namespace ptx
