// Plans that are remembered: what is asked again, in what environment, by how many, how often.

#include "csrc/plan/memo.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

using namespace fassd::cuda;

namespace {

std::atomic<int> made{0};

// An answer that tells the question apart from all others.
double count(const ConvolutionShape& shape, const DeviceLimits& limits) {
  made++;
  const char* variant = std::getenv(variant_variable);
  double answer = limits.multiprocessors + (variant == nullptr ? 0.5 : std::atof(variant));
  for (int channels : shape.channels) {
    answer = answer * 3 + channels;
  }
  return answer * 1000 + double(shape.batch * 7 + shape.height);
}

double asked(const ConvolutionShape& shape, const DeviceLimits& limits) {
  return remembered<count>(shape, limits);
}

void require(bool holds, const char* what) {
  if (!holds) {
    std::printf("%s; %d were made\n", what, made.load());
    std::exit(1);
  }
}

}  // namespace

int main() {
  const DeviceLimits limits = {132, 232448, 90}, other = {78, 232448, 90};
  ConvolutionShape shape;
  shape.channels = {16, 8};
  const double first = asked(shape, limits);
  require(asked(shape, limits) == first && made == 1, "the same is asked once");
  require(asked(shape, other) != first && made == 2, "another GPU is another question");
  ConvolutionShape joined = shape;
  joined.channels = {24};
  asked(joined, limits);
  require(made == 3, "other channels are another question");

  setenv(variant_variable, "4", 1);
  const double of_variant = asked(shape, limits);
  setenv(fusion_variable, "never", 1);
  asked(shape, limits);
  unsetenv(fusion_variable);
  require(asked(shape, limits) == of_variant && of_variant != first && made == 5,
          "the environment is part of the question");
  unsetenv(variant_variable);
  require(asked(shape, limits) == first && made == 5, "the answer of before is still there");

  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; thread++) {
    threads.emplace_back([&, thread] {
      ConvolutionShape own = shape;
      for (int i = 0; i < 3 * int(Memo<double>::most_answers); i++) {
        own.height = (i * (2 * thread + 1)) % 5000;
        wrong += asked(own, limits) != count(own, limits);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  require(wrong == 0, "threads get their own answers");

  // However many were asked, few are kept: the first is made anew.
  for (int i = 0; i <= int(Memo<double>::most_answers); i++) {
    shape.height = 10000 + i;
    asked(shape, limits);
  }
  made = 0;
  shape.height = 10000;
  asked(shape, limits);
  require(made == 1, "answers are dropped where there are too many");
}
