// Vectors at unit length, after s = silu(x) or s = x: y = f s with f = 1 / max(|s|, e), or, smoothly,
// f = 1 / sqrt(|s|^2 + e).
//
//     ds = f (g - f^2 (g.s) s)      where |s| < e, not smoothly, ds = f g
//     dx = sigma(x) (1 + x (1 - sigma(x))) ds
//
// `factor` holds f.
#pragma once
#include <cmath>

#include "arguments.h"
#include "exponentials.h"

template <class T>
struct L2Norm {
  using vec = typename Simd<T>::vec;
  static constexpr Index W = Simd<T>::width;

  Index batch, heads, tokens, size, threads;
  Sequence<T> x, g, to;  // of g there is none in the forward pass
  T* factor;             // [B, H, T]
  T eps;
  bool smooth, silu;

  explicit L2Norm(Arguments a)
      : batch(a.number()), heads(a.number()), tokens(a.number()), size(a.number()),
        threads(a.number()), x(a.sequence<T>()), g(a.sequence<T>()), to(a.sequence<T>()),
        factor(a.pointer<T>()), eps(T(a.real())), smooth(a.number() != 0), silu(a.number() != 0) {}

  // Numbers i and on, zeros behind the last.
  FW_INLINE vec at(const T* p, Index i) const {
    if (i + W <= size) return load(p + i);
    T last[W] = {};
    std::memcpy(last, p + i, (size - i) * sizeof(T));
    return load(last);
  }
  FW_INLINE void put(T* p, Index i, vec value) const {
    if (i + W <= size) {
      store(p + i, value);
    } else {
      std::memcpy(p + i, &value, (size - i) * sizeof(T));
    }
  }
  static FW_INLINE T total(vec a) {
    T sum = 0;
    FW_UNROLL for (int l = 0; l < W; ++l) sum += a[l];
    return sum;
  }
  static FW_INLINE vec sigmoid(vec a) { return 1 / (1 + exponential<T>(-a)); }
  FW_INLINE vec activated(vec a) const { return silu ? a * sigmoid(a) : a; }

  void forward(const T* x, T* y, T& factor) const {
    vec sum{};
    for (Index i = 0; i < size; i += W) {
      const vec s = activated(at(x, i));
      put(y, i, s);
      sum += s * s;
    }
    const T squares = total(sum);
    factor = 1 / (smooth ? std::sqrt(squares + eps) : std::max(std::sqrt(squares), eps));
    const vec f = vec{} + factor;
    for (Index i = 0; i < size; i += W) put(y, i, f * at(y, i));
  }

  void backward(const T* x, const T* g, T factor, T* dx) const {
    vec sum{};
    for (Index i = 0; i < size; i += W) {
      const vec s = activated(at(x, i));
      put(dx, i, s);
      sum += at(g, i) * s;
    }
    const bool grows = smooth || factor < 1 / eps;  // else no longer vector is divided by more
    const vec f = vec{} + factor;
    const vec less = vec{} + (grows ? factor * factor * total(sum) : T(0));
    for (Index i = 0; i < size; i += W) {
      vec ds = f * (at(g, i) - less * at(dx, i));
      if (silu) {
        const vec a = at(x, i), p = sigmoid(a);
        ds *= p * (1 + a * (1 - p));
      }
      put(dx, i, ds);
    }
  }

  void run() const {
    const Index rows = batch * heads * tokens, used = rows * size < 32768 ? 1 : threads;
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index i = 0; i < rows; ++i) {
      const Index n = i / tokens, b = n / heads, h = n % heads, t = i % tokens;
      const T* from = x.at(b, h) + t * x.token;
      T* out = to.at(b, h) + t * to.token;
      if (g.data) {
        backward(from, g.at(b, h) + t * g.token, factor[i], out);
      } else {
        forward(from, out, factor[i]);
      }
    }
  }
};
