// Metasurface patterns from the one file that `cli.py export --fused K` writes, in C++ and without Python.
//
//     design sampler.onnx HEIGHT_NM ORDER=EFFICIENCY... [--count 64] [--seed 0] [--guidance-scale 1] [--noise noise.f32]
//     design sampler.onnx 310 "T(1,0)=0.12" "T(-1,0)=0.12" "T(0,0)=0.02"
//
// Orders that are not named are free. --noise names the raw little-endian float32 of the graph's input `noise`, in place of --seed and
// --count. The sampler does not say which wavelength, period and materials it was trained for: the manifest.json beside it does.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Mistake : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Shape = std::vector<int64_t>;

int64_t count_of(const Shape& shape) {
    int64_t count = 1;
    for (int64_t length : shape) count *= length;
    return count;
}

double number(const std::string& text, const std::string& name) {
    std::size_t used = 0;
    double value = 0;
    try {
        value = std::stod(text, &used);
    } catch (const std::exception&) {
    }
    if (used == 0 || used != text.size()) throw Mistake(name + " is '" + text + "'; give a number");
    return value;
}

// What the command line asks for; maps are (2M+1) x (2M+1) with order (m, n) at [m + M][n + M].
struct Request {
    std::vector<std::string> words;  // the sampler, the height, the orders
    std::map<std::string, std::string> options{{"--count", "64"}, {"--seed", "0"}, {"--guidance-scale", "1"}, {"--noise", ""}};

    Request(int argc, char** argv) {
        for (int i = 1; i < argc; ++i) {
            const std::string word = argv[i];
            if (word.rfind("--", 0) != 0) {
                words.push_back(word);
            } else if (!options.count(word) || i + 1 == argc) {
                throw Mistake("'" + word + "' is no option or lacks its value; there are --count, --seed, --guidance-scale and --noise");
            } else {
                options[word] = argv[++i];
            }
        }
        if (words.size() < 3) throw Mistake("usage: design sampler.onnx HEIGHT_NM ORDER=EFFICIENCY...");
    }

    void fill(int64_t side, std::vector<float>& R, std::vector<float>& T, bool* mask) const {
        static const std::regex order(R"(([RT])\(([+-]?\d{1,4}),([+-]?\d{1,4})\)=(.+))");
        const int64_t M = (side - 1) / 2;
        for (auto word = words.begin() + 2; word != words.end(); ++word) {
            std::smatch found;
            if (!std::regex_match(*word, found, order)) throw Mistake("'" + *word + "' is no order; write T(1,0)=0.4");
            const int64_t m = std::stoi(found[2]), n = std::stoi(found[3]);
            if (std::max(std::abs(m), std::abs(n)) > M) {
                throw Mistake("'" + *word + "' is beyond the orders of this sampler, up to " + std::to_string(M));
            }
            const int64_t at = (m + M) * side + (n + M);
            const bool transmitted = found[1] == "T";
            (transmitted ? T : R)[at] = static_cast<float>(number(found[4], *word));
            mask[(transmitted ? side * side : 0) + at] = true;
        }
    }
};

// (batch, 1, n, n), or (K + 1, batch, 1, n, n) for a sampler that adds noise at every step; `shape` has -1 at the batch, filled in here.
std::vector<float> noise(Shape& shape, const Request& request) {
    const int64_t others = -count_of(shape);
    std::vector<float> values;
    const std::string& path = request.options.at("--noise");
    if (path.empty()) {
        const double count = number(request.options.at("--count"), "--count");
        if (count < 1 || count > 1e6 || count != static_cast<int64_t>(count)) throw Mistake("--count must be a whole number from 1");
        std::mt19937_64 generator(static_cast<uint64_t>(number(request.options.at("--seed"), "--seed")));
        std::normal_distribution<float> normal;
        values.resize(static_cast<std::size_t>(count) * others);
        std::generate(values.begin(), values.end(), [&] { return normal(generator); });
    } else {
        std::ifstream file(path, std::ios::binary);
        const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
        if (bytes.empty() || bytes.size() % (sizeof(float) * others)) {
            throw Mistake(path + " has " + std::to_string(bytes.size()) + " bytes; the sampler takes a multiple of " +
                          std::to_string(sizeof(float) * others));
        }
        values.resize(bytes.size() / sizeof(float));
        std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(values.data()));
    }
    *std::find(shape.begin(), shape.end(), -1) = static_cast<int64_t>(values.size()) / others;
    return values;
}

void design(const Request& request) {
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "design");
    const std::string& path = request.words[0];
    // Windows wants a wide string here.
    Ort::Session session(env, std::basic_string<ORTCHAR_T>(path.begin(), path.end()).c_str(), Ort::SessionOptions{});
    Ort::AllocatorWithDefaultOptions allocator;
    std::map<std::string, Shape> inputs, outputs;
    for (std::size_t i = 0; i < session.GetInputCount(); ++i) {
        inputs[session.GetInputNameAllocated(i, allocator).get()] = session.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape();
    }
    for (std::size_t i = 0; i < session.GetOutputCount(); ++i) outputs[session.GetOutputNameAllocated(i, allocator).get()];
    if (!inputs.count("noise") || !inputs.count("Rm")) throw Mistake(path + " is no sampler; name the sampler.onnx of a bundle");
    if (!inputs.count("mask")) throw Mistake("this sampler has no mask and takes no partial target; use one of the default recipe");

    const int64_t side = inputs["Rm"][1];
    std::vector<float> R(side * side), T(side * side);
    std::unique_ptr<bool[]> mask(new bool[2 * side * side]());
    request.fill(side, R, T, mask.get());
    Shape shape = inputs["noise"];
    std::vector<float> drawn = noise(shape, request);
    std::vector<float> height{static_cast<float>(number(request.words[1], "the height"))};
    std::vector<float> scale{static_cast<float>(number(request.options.at("--guidance-scale"), "--guidance-scale"))};

    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<Ort::Value> given;
    const auto tensor = [&](std::vector<float>& values, const Shape& sides) {
        given.push_back(Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), sides.data(), sides.size()));
    };
    tensor(drawn, shape);
    tensor(R, {1, side, side});
    tensor(T, {1, side, side});
    tensor(height, {1});
    tensor(scale, {1});
    const Shape two{1, 2, side, side};
    given.push_back(Ort::Value::CreateTensor<bool>(memory, mask.get(), 2 * side * side, two.data(), two.size()));
    const char* names[] = {"noise", "Rm", "Tm", "height_nm", "guidance_scale", "mask"};
    const bool scored = outputs.count("score") > 0;  // by the surrogate, where the sampler has one
    const char* wanted[] = {"pattern", "score"};
    const std::vector<Ort::Value> found = session.Run(Ort::RunOptions{}, names, given.data(), given.size(), wanted, scored ? 2 : 1);

    const Shape sides = found[0].GetTensorTypeAndShapeInfo().GetShape();
    const uint8_t* patterns = found[0].GetTensorData<uint8_t>();
    const float* scores = scored ? found[1].GetTensorData<float>() : nullptr;
    const int64_t best = scored ? std::min_element(scores, scores + sides[0]) - scores : 0;
    for (int64_t i = 0; i < sides[1]; ++i) {
        for (int64_t j = 0; j < sides[2]; ++j) std::putchar(patterns[(best * sides[1] + i) * sides[2] + j] ? '#' : '.');
        std::putchar('\n');
    }
    if (scored) {
        std::printf("misrouted power, predicted: %.3f\n", scores[best]);
    } else {
        std::puts("no score: the sampler has no surrogate");
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        design(Request(argc, argv));
        return 0;
    } catch (const Mistake& mistake) {
        std::fprintf(stderr, "Error: %s\n", mistake.what());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "Error: %s\n", error.what());
        return 1;
    }
}
