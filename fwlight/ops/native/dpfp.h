// The feature map DPFP of one head vector after the other, every number touched once.
//
// With r = [relu(x); relu(-x)] of size n = 2 d, block j = 1..nu is r_i r_{i-j}, indices cyclic in n.
// From the gradients g_j of the blocks,
//
//     dr_i = sum_j g_j,i r_{i-j} + g_j,{i+j} r_{i+j}      dx_i = [x_i > 0] dr_i - [x_i < 0] dr_{d+i}
//
// Features may be divided by their sum s = eps + sum_i r_i R_i / 2, R_i = sum_j r_{i-j} + r_{i+j}
// (where s is 0, or no normal number, they stay as they are). Then, with dr as above,
//
//     dr'_i = (dr_i - R_i c / s) / s      c = sum_j g_j . block_j = sum_i r_i dr_i / 2
#pragma once
#include <cmath>
#include <limits>

#include "arguments.h"

template <class T>
struct DpfpMap {
  Index nu;  // 0: there is no map, vectors are features already
  bool divided;
  T eps;
  Index size;  // d

  explicit DpfpMap(Arguments& a)
      : nu(a.number()), divided(a.number() != 0), eps(T(a.real())), size(a.number()) {}

  Index features() const { return nu ? 2 * size * nu : size; }
  Index scratch() const { return nu ? 2 * nu + 6 * size : 0; }

  // r between its last nu numbers and its first, so that r[i - j] and r[i + j] are there for all i.
  T* rectify(const T* x, T* memory) const {
    T* r = memory + nu;
    for (Index i = 0; i < size; ++i) r[i] = x[i] < 0 ? T(0) : x[i];
    for (Index i = 0; i < size; ++i) r[size + i] = x[i] > 0 ? T(0) : -x[i];
    for (Index j = 1; j <= nu; ++j) r[-j] = r[2 * size - j], r[2 * size + j - 1] = r[j - 1];
    return r;
  }

  void forward(const T* x, T* y, T* memory) const {
    const Index n = 2 * size;
    const T* __restrict__ r = rectify(x, memory);
    T sum = 0;
    for (Index j = 1; j <= nu; ++j) {
      T* __restrict__ block = y + (j - 1) * n;
#pragma omp simd reduction(+ : sum)
      for (Index i = 0; i < n; ++i) {
        block[i] = r[i] * r[i - j];
        sum += block[i];
      }
    }
    sum += eps;
    if (!divided || vanishes(sum)) return;
    const T factor = 1 / sum;
#pragma omp simd
    for (Index i = 0; i < nu * n; ++i) y[i] *= factor;
  }

  void backward(const T* x, const T* g, T* dx, T* memory) const {
    const Index n = 2 * size;
    const T* __restrict__ r = rectify(x, memory);
    T* __restrict__ dr = memory + 2 * nu + n;
    for (Index i = 0; i < n; ++i) dr[i] = 0;
    for (Index j = 1; j <= nu; ++j, g += n) {
      for (Index i = 0; i < n - j; ++i) dr[i] += g[i] * r[i - j] + g[i + j] * r[i + j];
      for (Index i = n - j; i < n; ++i) dr[i] += g[i] * r[i - j] + g[i + j - n] * r[i + j];
    }
    if (divided) divide(r, dr, dr + n);
    // Vectors written out: compilers branch here, which random signs make slow.
    constexpr Index W = Simd<T>::width;
    const typename Simd<T>::vec zero{};
    Index i = 0;
    for (; i + W <= size; i += W) {
      const auto at = load(x + i), plus = load(dr + i), minus = load(dr + size + i);
      store(dx + i, (at > zero ? plus : zero) - (at < zero ? minus : zero));
    }
    for (; i < size; ++i) dx[i] = (x[i] > 0 ? dr[i] : T(0)) - (x[i] < 0 ? dr[size + i] : T(0));
  }

 private:
  // Forward and backward add in different orders; below this they could disagree about zero.
  static bool vanishes(T sum) { return std::abs(sum) < std::numeric_limits<T>::min(); }

  void divide(const T* __restrict__ r, T* __restrict__ dr, T* __restrict__ R) const {
    const Index n = 2 * size;
    for (Index i = 0; i < n; ++i) R[i] = 0;
    for (Index j = 1; j <= nu; ++j) {
      for (Index i = 0; i < n; ++i) R[i] += r[i - j] + r[i + j];
    }
    T sum = 0, c = 0;
#pragma omp simd reduction(+ : sum, c)
    for (Index i = 0; i < n; ++i) {
      sum += r[i] * R[i];
      c += r[i] * dr[i];
    }
    sum = sum / 2 + eps;
    if (vanishes(sum)) return;
    const T factor = 1 / sum, less = c / 2 * factor;
#pragma omp simd
    for (Index i = 0; i < n; ++i) dr[i] = factor * (dr[i] - less * R[i]);
  }
};

template <class T>
struct Dpfp {
  DpfpMap<T> map;
  Index batch, heads, tokens, threads;
  Sequence<T> x, features, dx;  // of dx there is none in the forward pass

  explicit Dpfp(Arguments a)
      : map(a), batch(a.number()), heads(a.number()), tokens(a.number()), threads(a.number()),
        x(a.sequence<T>()), features(a.sequence<T>()), dx(a.sequence<T>()) {}

  void run() const {
    const Index rows = batch * heads * tokens, numbers = map.scratch();
    const Index used = rows * map.size * map.nu < 32768 ? 1 : threads;
    const Scratch<T> scratch(used * numbers);
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index i = 0; i < rows; ++i) {
      const Index n = i / tokens, b = n / heads, h = n % heads, t = i % tokens;
      T* own = scratch.get() + omp_get_thread_num() * numbers;
      const T* from = x.at(b, h) + t * x.token;
      T* blocks = features.at(b, h) + t * features.token;
      if (dx.data) {
        map.backward(from, blocks, dx.at(b, h) + t * dx.token, own);
      } else {
        map.forward(from, blocks, own);
      }
    }
  }
};
