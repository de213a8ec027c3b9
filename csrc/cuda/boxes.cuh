// Descriptions of boxes of tensors for the copy engine of sm_90 and later (TMA).

#pragma once

#include "conv_act.cuh"

namespace fassd::cuda {

// Returns true if the engine can read an image with that many pictures: its addresses and distances
// are nonzero multiples of 16 bytes.
bool takes_boxes(const Context& context, const Source& source, int64_t batch);

// Describes the box of an image that a chunk reads: whole slots, with the bytes after their
// channels. Maps are written in place: g++ 12 does not align them when they are returned.
void describe_box(const Context& context, const Source& source, int64_t batch, const Plan& plan,
                  const Axis& rows, const Axis& columns, CUtensorMap& map);

// Describes the box of a weight that a chunk reads: rows of all taps.
void describe_box(const Context& context, const Filter& filter, const Taps& taps, const Plan& plan,
                  CUtensorMap& map);

}  // namespace fassd::cuda
