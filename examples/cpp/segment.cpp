// Segments a picture with an AOTInductor package, without Python.
//
//     fassd export fassd_net -o net.pt2 --format aoti --preprocess --output labels --size 1024x2048
//     segment net.pt2 street.ppm labels.pgm overlay.ppm "$(python -m fassd_kernels --library)"
//
// The last argument is the library with the fused operators; packages that were exported with
// --backend reference need none. Pictures are binary PPM (P6, 8 bits), which needs no other
// library: `python -c "from PIL import Image; Image.open('a.jpg').convert('RGB').save('a.ppm')"`.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <limits>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int repeats = 10;

// What the package tells of itself; a program with a JSON library would use that.
struct Metadata {
  explicit Metadata(const std::string& json) {
    std::smatch shape;
    const std::regex input(R"re("shape": \[(\d+), (-?\d+), (-?\d+), 3\])re");
    if (!std::regex_search(json, shape, input) ||
        json.find(R"("name": "labels")") == std::string::npos) {
      throw std::runtime_error("the package must be exported with --preprocess --output labels");
    }
    batch = std::stoll(shape[1]);
    height = std::stoll(shape[2]);
    width = std::stoll(shape[3]);
    const std::regex color(R"re("color": \[(\d+), (\d+), (\d+)\])re");
    for (std::sregex_iterator each(json.begin(), json.end(), color), end; each != end; ++each) {
      for (int i = 1; i <= 3; i++) colors.push_back(uint8_t(std::stoi((*each)[i])));
    }
    needs_operators = json.find(R"("backend": null)") == std::string::npos;
  }

  int64_t batch, height, width;  // -1: any
  std::vector<uint8_t> colors;   // red, green, blue of each class
  bool needs_operators;
};

at::Tensor read_picture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, largest = 0;
  file >> kind;
  for (int64_t* field : {&width, &height, &largest}) {
    while (file >> std::ws && file.peek() == '#') {
      file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
    file >> *field;
  }
  file.get();
  if (!file || kind != "P6" || largest != 255 || width < 1 || height < 1 ||
      width * height > 1'000'000'000) {
    throw std::runtime_error(path + " is no binary PPM of 8 bits (P6), or cannot be read");
  }
  const auto picture = at::empty({1, height, width, 3}, at::kByte);
  file.read(static_cast<char*>(picture.data_ptr()), picture.numel());
  if (!file) throw std::runtime_error(path + " is truncated");
  return picture;
}

// Writes P5 (grey, H x W) or P6 (RGB, H x W x 3); under its final name only when it is whole.
void write_picture(const std::string& path, const at::Tensor& picture) {
  const std::string part = path + ".part";
  const auto pixels = picture.contiguous();
  std::ofstream file(part, std::ios::binary);
  file << (pixels.dim() == 3 ? "P6" : "P5") << '\n'
       << pixels.size(1) << ' ' << pixels.size(0) << "\n255\n";
  file.write(static_cast<const char*>(pixels.const_data_ptr()), pixels.numel());
  file.close();
  if (!file || std::rename(part.c_str(), path.c_str()) != 0) {
    throw std::runtime_error("cannot write " + path);
  }
}

void load_operators(const char* path) {
  // Registers the operators as it is loaded. Its module for Python is never initialised, so the one
  // symbol of Python in it is never looked up.
  if (dlopen(path, RTLD_LAZY | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
}

int run(int count, char** words) {
  if (count < 5 || count > 6) {
    std::cerr << "usage: segment PACKAGE.pt2 PICTURE.ppm LABELS.pgm OVERLAY.ppm [OPERATORS.so]\n";
    return 2;
  }
  if (count == 6) load_operators(words[5]);
  c10::InferenceMode guard;
  const std::string package = words[1];
  const auto told =
      torch::inductor::AOTIModelPackageLoader::load_metadata_from_package(package, "model");
  const auto entry = told.find("fassd");
  if (entry == told.end()) {
    throw std::runtime_error(package + " is not a package of `fassd export`");
  }
  const Metadata metadata(entry->second);
  if (metadata.needs_operators && count < 6) {
    throw std::runtime_error("this package calls fused operators: give their library");
  }
  const auto picture = read_picture(words[2]);
  if (metadata.batch != 1 || (metadata.height > 0 && (picture.size(1) != metadata.height ||
                                                      picture.size(2) != metadata.width))) {
    std::cerr << "the package takes " << metadata.batch << " x " << metadata.height << "x"
              << metadata.width << ", the picture is " << picture.size(1) << "x" << picture.size(2)
              << ": resize it, or export with --size dynamic\n";
    return 2;
  }

  torch::inductor::AOTIModelPackageLoader network(package);
  std::vector<at::Tensor> inputs{picture};
  at::Tensor labels = network.run(inputs)[0].clone();
  std::vector<double> milliseconds;
  for (int i = 0; i < repeats; i++) {
    const auto begin = std::chrono::steady_clock::now();
    network.run(inputs);
    const std::chrono::duration<double, std::milli> taken =
        std::chrono::steady_clock::now() - begin;
    milliseconds.push_back(taken.count());
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  std::cout << picture.size(1) << "x" << picture.size(2) << ", " << at::get_num_threads()
            << " threads: median " << milliseconds[repeats / 2] << " ms of " << repeats << '\n';

  write_picture(words[3], labels[0]);
  const auto table = at::tensor(metadata.colors).reshape({-1, 3});
  const auto painted = table.index({labels[0].to(at::kLong)}).to(at::kShort);
  write_picture(words[4], ((painted + picture[0]) / 2).to(at::kByte));
  return 0;
}

}  // namespace

int main(int count, char** words) {
  try {
    return run(count, words);
  } catch (const c10::Error& error) {
    std::cerr << "segment: " << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "segment: " << error.what() << '\n';
    return 1;
  }
}
