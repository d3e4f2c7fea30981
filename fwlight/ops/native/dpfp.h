// The feature map DPFP of one head vector after the other, every number touched once.
//
// With r = [relu(x); relu(-x)] of size n = 2 d, block j = 1..nu is r_i r_{i-j}, indices cyclic in n.
// From the gradients g_j of the blocks,
//
//     dr_i = sum_j g_j,i r_{i-j} + g_j,{i+j} r_{i+j}      dx_i = [x_i > 0] dr_i - [x_i < 0] dr_{d+i}
#pragma once
#include "arguments.h"

template <class T>
struct Dpfp {
  Index nu, batch, heads, tokens, size, threads;
  Sequence<T> x, features, dx;  // of dx there is none in the forward pass

  explicit Dpfp(Arguments a)
      : nu(a.number()), batch(a.number()), heads(a.number()), tokens(a.number()),
        size(a.number()), threads(a.number()), x(a.sequence<T>()), features(a.sequence<T>()),
        dx(a.sequence<T>()) {}

  // r behind its last nu numbers, so that r[i - j] is there for all i.
  T* rectify(const T* x, T* memory) const {
    T* r = memory + nu;
    for (Index i = 0; i < size; ++i) r[i] = x[i] < 0 ? T(0) : x[i];
    for (Index i = 0; i < size; ++i) r[size + i] = x[i] > 0 ? T(0) : -x[i];
    for (Index j = 1; j <= nu; ++j) r[-j] = r[2 * size - j];
    return r;
  }

  void forward(const T* x, T* y, T* memory) const {
    const Index n = 2 * size;
    const T* __restrict__ r = rectify(x, memory);
    for (Index j = 1; j <= nu; ++j, y += n) {
      T* __restrict__ block = y;
      for (Index i = 0; i < n; ++i) block[i] = r[i] * r[i - j];
    }
  }

  void backward(const T* x, const T* g, T* dx, T* memory) const {
    const Index n = 2 * size;
    const T* __restrict__ r = rectify(x, memory);
    T* __restrict__ dr = memory + nu + n;
    for (Index i = 0; i < n; ++i) dr[i] = 0;
    for (Index j = 1; j <= nu; ++j, g += n) {
      for (Index i = 0; i < n - j; ++i) dr[i] += g[i] * r[i - j] + g[i + j] * r[i + j];
      for (Index i = n - j; i < n; ++i) dr[i] += g[i] * r[i - j] + g[i + j - n] * r[i + j - n];
    }
    for (Index i = 0; i < size; ++i) {
      dx[i] = (x[i] > 0 ? dr[i] : T(0)) - (x[i] < 0 ? dr[size + i] : T(0));
    }
  }

  void run() const {
    const Index rows = batch * heads * tokens, numbers = nu + 4 * size;
    const Index used = rows * size * nu < 32768 ? 1 : threads;
    const Scratch<T> scratch(used * numbers);
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index i = 0; i < rows; ++i) {
      const Index n = i / tokens, b = n / heads, h = n % heads, t = i % tokens;
      T* own = scratch.get() + omp_get_thread_num() * numbers;
      const T* from = x.at(b, h) + t * x.token;
      T* blocks = features.at(b, h) + t * features.token;
      if (dx.data) {
        backward(from, blocks, dx.at(b, h) + t * dx.token, own);
      } else {
        forward(from, blocks, own);
      }
    }
  }
};
