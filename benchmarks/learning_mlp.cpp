// Online learning of a multilayer perceptron, written by hand: the limit that a compiler may reach.
//
// Tanh between layers (ReLU in a network of two), mean squared error, plain SGD, one update per
// sample. Backward walks each weight matrix once: a row's gradient, its part of the product with the
// transposed weights and its update are one pass.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

using Floats = std::vector<float>;

struct Layer {
  int in, out;
  Floats weight, bias, value, delta;
};

static void forward(Layer& layer, const float* x, bool is_last, bool is_relu) {
  for (int o = 0; o < layer.out; ++o) {
    const float* row = &layer.weight[size_t(o) * layer.in];
    float sum = layer.bias[o];
    for (int i = 0; i < layer.in; ++i) sum += row[i] * x[i];
    layer.value[o] = is_last ? sum : is_relu ? std::max(sum, 0.f) : sum;
  }
  if (!is_last && !is_relu)
    for (int o = 0; o < layer.out; ++o) layer.value[o] = std::tanh(layer.value[o]);
}

static void backward(Layer& layer, const float* x, float* below, float rate) {
  if (below) std::fill(below, below + layer.in, 0.f);
  for (int o = 0; o < layer.out; ++o) {
    float* __restrict row = &layer.weight[size_t(o) * layer.in];
    const float delta = layer.delta[o], step = rate * delta;
    if (below) {
      for (int i = 0; i < layer.in; ++i) {
        below[i] += row[i] * delta;
        row[i] -= step * x[i];
      }
    } else {
      for (int i = 0; i < layer.in; ++i) row[i] -= step * x[i];
    }
    layer.bias[o] -= step;
  }
}

static void activate_backward(Layer& layer, bool is_relu) {
  for (int o = 0; o < layer.out; ++o) {
    const float y = layer.value[o];
    layer.delta[o] *= is_relu ? float(y > 0.f) : 1.f - y * y;
  }
}

static void learn(std::vector<Layer>& layers, const float* x, const float* y, float rate, bool relu) {
  const int count = int(layers.size());
  for (int l = 0; l < count; ++l)
    forward(layers[l], l ? layers[l - 1].value.data() : x, l == count - 1, relu);
  Layer& last = layers.back();
  for (int o = 0; o < last.out; ++o) last.delta[o] = 2.f * (last.value[o] - y[o]) / last.out;
  for (int l = count - 1; l >= 0; --l) {
    float* below = l ? layers[l - 1].delta.data() : nullptr;
    backward(layers[l], l ? layers[l - 1].value.data() : x, below, rate);
    if (l) activate_backward(layers[l - 1], relu);
  }
}

// Arguments: seconds, relu (0 or 1), widths from the input to the output. Prints samples per second.
int main(int argc, char** argv) {
  const double seconds = std::atof(argv[1]);
  const bool relu = std::atoi(argv[2]);
  std::vector<Layer> layers;
  std::mt19937 random(0);
  for (int a = 3; a + 1 < argc; ++a) {
    const int in = std::atoi(argv[a]), out = std::atoi(argv[a + 1]);
    std::uniform_real_distribution<float> uniform(-1 / std::sqrt(float(in)), 1 / std::sqrt(float(in)));
    Layer layer{in, out, Floats(size_t(in) * out), Floats(out), Floats(out), Floats(out)};
    for (float& w : layer.weight) w = uniform(random);
    for (float& b : layer.bias) b = uniform(random);
    layers.push_back(layer);
  }
  std::normal_distribution<float> normal;
  const int rows = 64, in = layers.front().in, out = layers.back().out;
  Floats x(size_t(rows) * in), y(size_t(rows) * out);
  for (float& value : x) value = normal(random);
  for (float& value : y) value = normal(random);
  using Clock = std::chrono::steady_clock;
  long done = 0;
  double spent = 0;
  const auto start = Clock::now();
  while (spent < seconds) {
    for (int n = 0; n < rows; ++n, ++done)
      learn(layers, &x[size_t(n) * in], &y[size_t(n) * out], 0.001f, relu);
    spent = std::chrono::duration<double>(Clock::now() - start).count();
  }
  std::printf("%.1f\n", done / spent);
}
