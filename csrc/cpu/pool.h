// Memory for activations and scratch, kept between calls.
//
// A network allocates and frees some hundred megabytes per picture. Given back to the system each
// time, they come back as fresh pages that have to be zeroed one by one (2.8 GB/s on the machine
// that this was measured on): a tenth of the time at 1024x2048. So all of it lies in one range of
// addresses, each block at the lowest place that is free: what a network needs at once is what the
// range grows to.

#pragma once

#include <cstdint>

namespace fassd::cpu {

// Uninitialised memory, aligned to a cache line. With FASSD_KERNELS_POISON=1 in the environment it
// is filled with NaN (255 for integers), so that a value that was never written shows. Throws where
// there is not enough.
void* acquire_memory(int64_t bytes);
void release_memory(void* data) noexcept;

// Gives memory that is not in use back to the system, also the C library's; returns the bytes of
// the range. That happens by itself when pictures have become smaller.
int64_t release_kept_memory();

// Bytes that are kept or in use.
int64_t held_memory();

}  // namespace fassd::cpu
