// Detections in a picture, one a line: label, score, corners. Everything else is in the model:
//   triscale export runs/mine model.onnx --resize
//   ./detect model.onnx picture.ppm 0.3        (convert picture.jpg picture.ppm)
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <regex>
#include <vector>

#include <onnxruntime_cxx_api.h>

int main(int argc, char** argv) try {
  if (argc < 3) throw std::runtime_error("detect MODEL.onnx PICTURE.ppm [LEAST_SCORE]");
  const float least = argc > 3 ? std::strtof(argv[3], nullptr) : 0.3f;

  std::ifstream file(argv[2], std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, most = 0;
  file >> kind >> width >> height >> most;
  file.get();  // the one blank before the pixels
  const bool fits = kind == "P6" && most == 255 && width > 0 && height > 0 && width * height < 1 << 28;
  std::vector<uint8_t> rgb(fits ? 3 * width * height : 0);
  if (!fits || !file.read(reinterpret_cast<char*>(rgb.data()), rgb.size()))
    throw std::runtime_error(std::string(argv[2]) + ": expected a PPM file (P6, 8 bits)");

  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "detect");
  Ort::Session session(env, argv[1], Ort::SessionOptions{});
  Ort::AllocatorWithDefaultOptions allocator;
  const auto names = session.GetModelMetadata().LookupCustomMetadataMapAllocated("classes", allocator);
  const std::string json = names ? names.get() : "";  // ["cat", "dog"]
  const std::regex quoted("\"((?:[^\"\\\\]|\\\\.)*)\"");
  const std::vector<std::string> classes(
      std::sregex_token_iterator(json.begin(), json.end(), quoted, 1), std::sregex_token_iterator());

  const std::vector<int64_t> shape{1, height, width, 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto images = Ort::Value::CreateTensor<uint8_t>(memory, rgb.data(), rgb.size(), shape.data(), 4);
  const char *inputs[] = {"images"}, *outputs[] = {"boxes", "scores", "labels", "count"};
  auto found = session.Run(Ort::RunOptions{}, inputs, &images, 1, outputs, 4);

  const auto* box = found[0].GetTensorData<float>();  // x1 y1 x2 y2 in pixels of the picture
  const auto* score = found[1].GetTensorData<float>();  // best first
  const auto* label = found[2].GetTensorData<int64_t>();
  const auto count = *found[3].GetTensorData<int64_t>();
  for (int64_t i = 0; i < count && score[i] >= least; ++i, box += 4)
    std::printf("%s %.4f %.2f %.2f %.2f %.2f\n", classes.at(label[i]).c_str(), score[i],
                box[0], box[1], box[2], box[3]);
} catch (const std::exception& error) {
  std::cerr << "detect: " << error.what() << "\n";
  return 1;
}
