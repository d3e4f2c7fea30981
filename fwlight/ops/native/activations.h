// What a feed-forward layer has between its products, of a = x + bias: ReLU, GELU, y = a Phi(a), or,
// of halves a and b, SwiGLU, y = a s b with s = sigma(a).
//
//     ReLU     dx = g where a > 0          GELU   dx = g (Phi(a) + a phi(a))
//     SwiGLU   da = g b s (1 + a (1 - s))         db = g a s
//
// The bias's gradient is the sum of dx over rows. These are cut into as many parts whatever the number
// of threads is, and the parts' sums added in their order, so that this number changes no bit.
#pragma once
#include <cmath>

#include "arguments.h"
#include "exponentials.h"

// x P(x^2) / Q(x^2) for |x| < `end`, beyond that half with the sign of x.
template <std::size_t N, std::size_t M>
FW_INLINE Simd<float>::vec sigmoidal(
    Simd<float>::vec x, const float (&p)[N], const float (&q)[M], float end) {
  using vec = Simd<float>::vec;
  const vec u = x * x;
  vec above = vec{} + p[0], below = vec{} + q[0];
  FW_UNROLL for (std::size_t i = 1; i < N; ++i) above = above * u + p[i];
  FW_UNROLL for (std::size_t i = 1; i < M; ++i) below = below * u + q[i];
  const vec inner = x * above / below;
  const vec lower = x <= -end ? vec{} - 0.5f : inner;
  return x >= end ? vec{} + 0.5f : lower;
}

// Phi(x), and the derivative of x Phi(x). In float32 by rational functions that were fitted here, to
// 7e-9 and 5e-9; rounding adds 2e-7. In float64 by the C library.
FW_INLINE Simd<float>::vec normal(Simd<float>::vec x) {
  constexpr float p[] = {2.27493309e-8f,  6.3521327e-6f, 1.68827117e-4f,
                         4.67726946e-3f, 3.38527829e-2f, 3.98942235e-1f};
  constexpr float q[] = {1.19750402e-6f, 7.36479908e-5f, 1.88445297e-3f,
                         2.86459508e-2f, 2.51522261e-1f, 1};
  return 0.5f + sigmoidal(x, p, q, 5.5f);
}
FW_INLINE Simd<float>::vec gelu_slope(Simd<float>::vec x) {
  constexpr float p[] = {-2.88803962e-11f, 1.30031505e-8f, 1.12194618e-6f, 3.20271554e-5f,
                         2.85228212e-4f,   1.35690012e-2f, -1.80377909e-2f, 7.97884522e-1f};
  constexpr float q[] = {3.63639856e-7f, 1.08122881e-5f, 2.58607183e-4f, 4.15023122e-3f,
                         4.55829012e-2f, 3.10725832e-1f, 1};
  return 0.5f + sigmoidal(x, p, q, 6.0f);
}
FW_INLINE Simd<double>::vec normal(Simd<double>::vec x) {
  FW_UNROLL for (int l = 0; l < Simd<double>::width; ++l) {
    x[l] = 0.5 * std::erfc(x[l] * -0.70710678118654752);
  }
  return x;
}
FW_INLINE Simd<double>::vec gelu_slope(Simd<double>::vec x) {
  Simd<double>::vec density;
  FW_UNROLL for (int l = 0; l < Simd<double>::width; ++l) {
    density[l] = 0.39894228040143268 * std::exp(-0.5 * x[l] * x[l]);
  }
  return normal(x) + x * density;
}

enum Kind : Index { RELU, GELU, SWIGLU };

template <class T>
struct Activation {
  using vec = typename Simd<T>::vec;
  static constexpr Index W = Simd<T>::width, PARTS = 16;

  Index rows, size, threads;  // of y
  Index kind;
  const T *x, *g;  // [rows, size], SwiGLU's x [rows, 2 size]; of g there is none forward
  T* to;           // as x backward
  const T* bias;   // [size] or none
  T* dbias;        // [size], backward where there is a bias

  explicit Activation(Arguments a)
      : rows(a.number()), size(a.number()), threads(a.number()), kind(a.number()),
        x(a.pointer<T>()), g(a.pointer<T>()), to(a.pointer<T>()), bias(a.pointer<T>()),
        dbias(a.pointer<T>()) {}

  // Numbers of one row; what follows takes whole vectors.
  template <class Work>
  FW_INLINE void vectors(Work work) const {
    Index i = 0;
    for (; i + W <= size; i += W) work(i, W);
    if (i < size) work(i, size - i);
  }
  static FW_INLINE vec at(const T* p, Index count) {
    if (count == W) return load(p);
    T last[W] = {};
    std::memcpy(last, p, count * sizeof(T));
    return load(last);
  }
  static FW_INLINE void put(T* p, vec value, Index count) {
    if (count == W) {
      store(p, value);
    } else {
      std::memcpy(p, &value, count * sizeof(T));
    }
  }

  template <Index KIND>
  void row(Index number, T* sums) const {
    if constexpr (KIND == SWIGLU) {
      const T *first = x + 2 * number * size, *second = first + size;
      T* out = to + (g ? 2 : 1) * number * size;
      vectors([&](Index i, Index n) FW_ALWAYS {
        const vec a = at(first + i, n), b = at(second + i, n), s = 1 / (1 + exponential<T>(-a));
        if (g) {
          const vec given = at(g + number * size + i, n);
          put(out + i, given * b * s * (1 + a * (1 - s)), n);
          put(out + size + i, given * a * s, n);
        } else {
          put(out + i, a * s * b, n);
        }
      });
    } else {
      vectors([&](Index i, Index n) FW_ALWAYS {
        const Index place = number * size + i;
        vec a = at(x + place, n);
        if (bias) a += at(bias + i, n);
        if (g) {
          const vec given = at(g + place, n);
          const vec dx = KIND == GELU ? given * gelu_slope(a) : a > 0 ? given : vec{};
          put(to + place, dx, n);
          if (sums) put(sums + i, at(sums + i, n) + dx, n);
        } else {
          put(to + place, KIND == GELU ? a * normal(a) : a < 0 ? vec{} : a, n);
        }
      });
    }
  }

  template <Index KIND>
  void all() const {
    const bool sum = g && bias;
    const Scratch<T> scratch(sum ? PARTS * size : 0);
    const Index used = rows * size < 16384 ? 1 : threads;
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index part = 0; part < PARTS; ++part) {
      T* sums = sum ? scratch.get() + part * size : nullptr;
      if (sums) std::memset(sums, 0, size * sizeof(T));
      for (Index i = rows * part / PARTS; i < rows * (part + 1) / PARTS; ++i) row<KIND>(i, sums);
    }
    if (!sum) return;
    std::memset(dbias, 0, size * sizeof(T));
    for (Index part = 0; part < PARTS; ++part) {
      for (Index i = 0; i < size; ++i) dbias[i] += scratch.get()[part * size + i];
    }
  }

  void run() const {
    if (kind == RELU) all<RELU>();
    if (kind == GELU) all<GELU>();
    if (kind == SWIGLU) all<SWIGLU>();
  }
};
