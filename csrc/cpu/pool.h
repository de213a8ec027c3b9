// Memory for activations and scratch, kept between calls.
//
// A network allocates and frees some hundred megabytes per picture. Given back to the system each
// time, they come back as fresh pages that have to be zeroed one by one: at 1024x2048 that is a
// tenth of the time. So blocks that are freed are kept for the next request of about their size; in
// large pages, where the system has them.

#pragma once

#include <cstdint>

namespace fassd::cpu {

// Uninitialised memory, aligned to a cache line at least. With FASSD_KERNELS_POISON=1 in the
// environment it is filled with NaN (255 for integers), so that a value that was never written
// shows. Throws where there is not enough.
void* acquire_memory(int64_t bytes);
void release_memory(void* data);

// Gives all memory that is kept, and not in use, back to the system; returns the bytes.
int64_t release_kept_memory();

// Bytes that are kept or in use.
int64_t held_memory();

}  // namespace fassd::cpu
