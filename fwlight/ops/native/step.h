// A few tokens of one head, one by one, as in decoding.
#pragma once
#include <cmath>
#include <optional>

#include "forward.h"

// Columns v to v + VECS vectors of one token: write S' = S + k u, read o. S and S' may be one.
// Under gates `left` is of S, or of every row of it, what is there, and p what u leaves out; p is k
// otherwise.
template <class T, bool DELTA, Gating GATES, int VECS>
FW_INLINE void step_columns(
    const T* S, T* S_new, Index ld, Index keys, const T* q, const T* k, const T* v, T b, T* o,
    const T* p, const T* left) {
  constexpr bool GATED = GATES != UNGATED;
  constexpr int W = Simd<T>::width;
  typename Simd<T>::vec u[VECS], y[VECS];
  FW_UNROLL for (int j = 0; j < VECS; ++j) u[j] = load(v + j * W);
  if constexpr (DELTA) {
    for (Index i = 0; i < keys; ++i) {
      const T p_i = GATED ? left[GATES == BY_CHANNEL ? i : 0] * p[i] : k[i];
      FW_UNROLL for (int j = 0; j < VECS; ++j) u[j] -= p_i * load(S + i * ld + j * W);
    }
  }
  FW_UNROLL for (int j = 0; j < VECS; ++j) u[j] *= b, y[j] = typename Simd<T>::vec{};
  for (Index i = 0; i < keys; ++i) {
    const T q_i = q ? q[i] : T(0);
    FW_UNROLL for (int j = 0; j < VECS; ++j) {
      auto x = load(S + i * ld + j * W);
      if (GATED) x *= left[GATES == BY_CHANNEL ? i : 0] - typename Simd<T>::vec{};
      x += k[i] * u[j];
      store(S_new + i * ld + j * W, x);
      y[j] += q_i * x;
    }
  }
  if (o) {
    FW_UNROLL for (int j = 0; j < VECS; ++j) store(o + j * W, y[j]);
  }
}

// Token by token, for a few tokens without a backward pass; it works in place on the last state.
template <class T, bool DELTA, Gating GATES>
void step_head(const Shape& s, const ForwardHead<T>& a) {
  constexpr bool GATED = GATES != UNGATED, CHANNELS = GATES == BY_CHANNEL;
  constexpr int W = Simd<T>::width;
  T one = 1;
  std::optional<Scratch<T>> factors;  // a new one takes as long as a small step
  if (CHANNELS) factors.emplace(s.keys);
  T* left = CHANNELS ? factors->get() : &one;
  if (!a.initial) {
    for (Index i = 0; i < s.keys; ++i) {
      std::memset(a.last + i * a.state_ld, 0, s.values * sizeof(T));
    }
  }
  for (Index t = 0; t < s.tokens; ++t) {
    const T* S = t == 0 && a.initial ? a.initial : a.last;
    const Index token = t / a.writes;
    const T* q = a.q && (t + 1) % a.writes == 0 ? a.q + token * a.q_ld : nullptr;
    const T* k = a.k + t * a.k_ld;
    const T* v = a.v + t * a.v_ld;
    T* o = q ? a.o + token * a.o_ld : nullptr;
    const T b = a.beta ? a.beta[t * a.beta_ld] : T(1);
    const T* p = GATED && a.erase ? a.erase + t * a.erase_ld : k;
    if (GATED && a.decay) {
      for (Index i = 0; i < (CHANNELS ? s.keys : 1); ++i) {
        left[i] = std::exp(a.decay[t * a.decay_ld + i]);
      }
    }
    const auto remains = [=](Index i, T x) { return GATED ? left[CHANNELS ? i : 0] * x : x; };
    Index j = 0;
    for (; j + 4 * W <= s.values; j += 4 * W) {
      step_columns<T, DELTA, GATES, 4>(
          S + j, a.last + j, a.state_ld, s.keys, q, k, v + j, b, offset(o, j), p, left);
    }
    for (; j + W <= s.values; j += W) {
      step_columns<T, DELTA, GATES, 1>(
          S + j, a.last + j, a.state_ld, s.keys, q, k, v + j, b, offset(o, j), p, left);
    }
    for (; j < s.values; ++j) {
      T u = v[j], y = 0;
      if (DELTA) {
        for (Index i = 0; i < s.keys; ++i) u -= p[i] * remains(i, S[i * a.state_ld + j]);
      }
      u *= b;
      for (Index i = 0; i < s.keys; ++i) {
        const T x = remains(i, S[i * a.state_ld + j]) + k[i] * u;
        a.last[i * a.state_ld + j] = x;
        if (q) y += q[i] * x;
      }
      if (o) o[j] = y;
    }
  }
}
