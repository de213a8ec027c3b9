// Boxes of tensors that the copy engine of sm_90 and later brings (TMA), as it wants them
// described.

#pragma once

#include "conv_act.cuh"

namespace fassd::cuda {

// Whether the engine can read an image of so many pictures: at addresses and distances that are
// multiples of 16 bytes, none of them 0.
bool takes_boxes(const Context& context, const Source& source, int64_t batch);

// Describes what a chunk reads of an image: whole slots, with the bytes behind their channels. Maps
// are written where they stay: g++ 12 does not align them where they are returned.
void describe_box(const Context& context, const Source& source, int64_t batch, const Plan& plan,
                  const Axis& rows, const Axis& columns, CUtensorMap& map);

// Describes what it reads of a weight: rows of all taps.
void describe_box(const Context& context, const Filter& filter, const Taps& taps, const Plan& plan,
                  CUtensorMap& map);

}  // namespace fassd::cuda
