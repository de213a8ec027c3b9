// The launches of one operator's call, and their description; operators.cpp fills them in.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../checks.h"
#include "plan.h"
#include "work.h"

namespace fassd::plan {

struct Launch {
  std::string label, kernel, channels;
  int64_t height, width;
  int64_t bytes, operations;
  cuda::Work work = {};  // of all blocks
  double cycles = 0, rank = 0;
  std::vector<cuda::Plan> blocks = {};  // one for each kind of block
  std::optional<cuda::ConvolutionShape> convolution;
};

// A kernel that reads or writes an image, eight channels of a pixel at a time.
cuda::Work streamed(const ImageSize& size);

// The launches of one call, in the order of csrc/cuda. For an empty image, nothing is launched.
class Call {
 public:
  // `gpu`: multiprocessors, bytes of shared memory of a block, compute capability times ten.
  Call(ScalarType dtype, const Integers& gpu, bool allow_tf32);

  // Bytes of an image.
  int64_t image(const ImageSize& size) const;

  // `more`: bytes that are read and written besides input, weight and result, by the epilogue.
  void convolution(const std::string& label, cuda::ConvolutionShape shape, int64_t more = 0);

  // The convolution of a picture of bytes, normalised when it is loaded; false, without a launch,
  // if it has to be converted to an image first.
  bool normalized_convolution(const std::string& label, cuda::ConvolutionShape shape);

  // Branches on the same input.
  void pairs(const std::string& op, std::vector<cuda::PairShape> shapes);

  // A launch without a plan.
  void elementwise(const std::string& label, const std::string& kernel, int64_t channels,
                   int64_t height, int64_t width, int64_t bytes, int64_t operations,
                   const cuda::Work& work);

  // As JSON: a list of launches, each with
  //   label: purpose; kernel: name of the kernel's template
  //   arithmetic: half, tf32 or float32
  //   channels: those of the inputs > those of the result; height, width: of the result
  //   bytes: every tensor read or written once, weights included
  //   operations: multiplications and additions that reach the result
  //   work: by unit of csrc/plan/instructions.def; instructions: of warps, by part of the kernel
  //   cycles: predicted clocks of the launch; without a plan, those to issue its instructions
  //   rank: value by which plans are compared; 0 without a plan
  //   blocks: the plan of each kind of its blocks; empty without a plan
  //   convolution: the shape, for a launch of a single convolution
  std::string answer() const;

 private:
  void complete(cuda::ConvolutionShape& shape) const;
  int64_t weight_bytes(const cuda::ConvolutionShape& shape) const;
  int64_t bytes_of(const cuda::ConvolutionShape& shape) const;
  void join(const std::string& label, cuda::ConvolutionShape& shape);
  void apart(const std::string& op, const cuda::PairShape& pair);

  cuda::DeviceLimits limits_;
  int64_t itemsize_;
  cuda::Arithmetic arithmetic_;
  std::vector<Launch> launches_;
};

}  // namespace fassd::plan
