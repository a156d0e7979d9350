// Programs that call libraries (convolutions, products of matrices), as a line of stages runs them.
//
// Such a program is code that torch's ahead-of-time compiler made: it takes tensors and returns
// tensors. Here it gets tensors that show the memory which it is given, and what it returns is
// copied to where it belongs.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner_cpu.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// Lets the libraries use so many threads for a while; 0 for as many as ever.
class Threads {
public:
#ifdef _OPENMP
    explicit Threads(long count) : before_(omp_get_max_threads()) {
        if (!count) return;
        at::get_num_threads();  // else torch sets the number anew when it first asks for it
        omp_set_num_threads(static_cast<int>(count));
    }
    ~Threads() { omp_set_num_threads(before_); }

private:
    int before_;
#else
    explicit Threads(long) {}
#endif
};

struct Argument {
    std::vector<int64_t> sizes, strides;
    at::ScalarType dtype;
    at::Tensor tensor;

    const at::Tensor& at(char* place) {
        if (!tensor.defined() || tensor.data_ptr() != place)
            tensor = at::from_blob(place, sizes, strides, at::TensorOptions().dtype(dtype));
        return tensor;
    }
};

class Code {
public:
    // Numbers: held, learns, is_checked, arguments; and for each dtype, dimensions, sizes, strides.
    Code(const char* path, const long* numbers) : runner_(path, 1) {
        held_ = numbers[0];
        learns_ = numbers[1];
        is_checked_ = numbers[2];
        arguments_.resize(numbers[3]);
        numbers += 4;
        for (auto& argument : arguments_) {
            argument.dtype = static_cast<at::ScalarType>(numbers[0]);
            const long dims = numbers[1];
            argument.sizes.assign(numbers + 2, numbers + 2 + dims);
            argument.strides.assign(numbers + 2 + dims, numbers + 2 + 2 * dims);
            numbers += 2 + 2 * dims;
        }
    }

    bool run(char* const* h, char* const* r, char* const* o, long num_threads) {
        const Threads threads(num_threads);
        const at::NoGradGuard no_gradients;
        std::vector<at::Tensor> given;
        given.reserve(arguments_.size());
        for (std::size_t i = 0; i < arguments_.size(); ++i)
            given.push_back(arguments_[i].at(i < held_ ? h[i] : r[i - held_]));
        const auto found = runner_.run(given);
        for (std::size_t i = 0; i + learns_ < found.size(); ++i) {
            const auto output = found[i].contiguous();
            std::memcpy(o[i], output.data_ptr(), output.nbytes());
        }
        return !is_checked_ || std::isfinite(found.back().item().toDouble());
    }

private:
    torch::inductor::AOTIModelContainerRunnerCpu runner_;
    std::vector<Argument> arguments_;
    std::size_t held_, learns_;
    bool is_checked_;
};

struct Stage {
    std::unique_ptr<Code> learn, forward;
    long num_threads = 0;
};

}

extern "C" {

bool learn(char* const* h, char* const* r, char* const* o, char* m) {
    auto& stage = *reinterpret_cast<Stage*>(m);
    return stage.learn->run(h, r, o, stage.num_threads);
}

bool forward(char* const* h, char* const* r, char* const* o, char* m) {
    auto& stage = *reinterpret_cast<Stage*>(m);
    return stage.forward->run(h, r, o, stage.num_threads);
}

void flush(char* const*, char*) {}

// Returns what the functions above take as memory, or null and a message.
void* library_open(const char* learn_path, const long* learn_numbers, const char* forward_path,
                   const long* forward_numbers, char* message, long size) {
    try {
        auto stage = std::make_unique<Stage>();
        stage->learn = std::make_unique<Code>(learn_path, learn_numbers);
        stage->forward = std::make_unique<Code>(forward_path, forward_numbers);
        return stage.release();
    } catch (const std::exception& error) {
        std::strncpy(message, error.what(), size - 1);
        return nullptr;
    }
}

void library_close(void* stage) { delete static_cast<Stage*>(stage); }

void library_limit(void* stage, long num_threads) {
    static_cast<Stage*>(stage)->num_threads = num_threads;
}

}
