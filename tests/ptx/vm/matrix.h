// What products of matrices share: fragments, factors, sums.

#pragma once

#include "numbers.h"
#include "translate.h"

namespace ptx {

// Where value k of a 16-bit fragment of A lies: two to a register, rows g and g + 8 in turns.
inline int fragment_row(int g, int k) { return g + 8 * (k >> 1 & 1); }
inline int fragment_column(int t, int k) { return 2 * t + (k & 1) + 8 * (k >> 2); }

double matrix_value(uint32_t bits, Type type);  // of a factor
// How tensor cores round a sum is not documented: to nearest here, or, set so, towards zero.
float rounded_sum(double sum);

}  // namespace ptx
