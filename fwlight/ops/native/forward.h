// The forward pass of one head; the algebra is in shape.h.
#pragma once
#include "decays.h"

template <class T>
struct ForwardHead {
  const T *q, *k, *v, *beta;  // q and (sum rule) beta may be null
  Index q_ld, k_ld, v_ld, beta_ld;
  const T* initial;  // [keys, values], rows `state_ld` apart, as the last state; null is zeros
  T* last;
  Index state_ld;
  T* o;
  Index o_ld;
  T* states;  // null, or this slice's rows of St [state_rows, keys_pad], of every `every`-th chunk
  T* errors;  // null, or Xt [values_pad, CHUNK] of every chunk (delta rule)
  T* products;  // null, or P [CHUNK, CHUNK] of every chunk, above its diagonal b_j G (delta rule)
  Index states_step, state_rows, errors_step, products_step, every;
  const T *decay, *erase;  // either may be null
  Index decay_ld, erase_ld;
};

// One panel of X = (V - K S) - strict_tril(G) b X in place, U = b X, by forward substitution in
// registers. bG is b_i G[i, j], and under gates, where G is not symmetric, b_j G[i, j].
template <class T, bool GATED>
FW_INLINE void solve_lower(const T* bG, const T* b, T* X, T* U) {
  for (int v = 0; v < PAD; v += Simd<T>::width) {
    typename Simd<T>::vec x[CHUNK];
    FW_UNROLL for (int i = 0; i < CHUNK; ++i) x[i] = load(X + i * PAD + v);
    FW_UNROLL for (int j = 0; j < CHUNK; ++j) {
      store(X + j * PAD + v, x[j]);
      store(U + j * PAD + v, b[j] * x[j]);
      FW_UNROLL for (int i = 0; i < CHUNK; ++i) {
        if (i > j) x[i] -= (GATED ? bG[i * CHUNK + j] : bG[j * CHUNK + i]) * x[j];
      }
    }
  }
}

// b G and P = tril(Q K^T), where they are wanted; KT is the transpose of the keys. What the backward
// pass reads of both fits one matrix, which is `kept` unless that is null. Under gates L and E are
// given, and G b of `solve_lower` is made instead of b G.
template <class T>
FW_INLINE void key_products(
    const T* Q, const T* K, const T* KT, const T* b, Index keys_pad, T* bG, T* P, T* kept,
    const T* E = nullptr, const T* L = nullptr) {
  if (bG && L) {
    T bA[BLOCK];
    for_rows<T>(Panels<1>{}, CHUNK, FW_BLOCK {
      block.zero();
      block.template add<true>(E + i * PAD, BLOCK, KT, 0, keys_pad);
      block.each([&](auto& x, int m, int, int v) FW_ALWAYS {
        const Index at = (i + m) * PAD + v;
        x *= load(L + at);
        store(bG + at, load(b + v) * x);
        store(bA + at, b[i + m] * x);
      });
    });
    if (kept) transpose_block(bA, kept);
  } else if (bG) {
    for_rows<T>(Panels<1>{}, CHUNK, FW_BLOCK {
      block.zero();
      block.template add<true>(K + i * PAD, BLOCK, KT, 0, keys_pad);
      if (kept) {
        block.each([&](auto& x, int m, int, int v) FW_ALWAYS {
          store(kept + (i + m) * PAD + v, load(b + v) * x);
        });
      }
      block.each([&](auto& x, int m, int, int) FW_ALWAYS { x *= b[i + m]; });
      block.write(bG + i * PAD, PAD, 0);
    });
  }
  if (P) {
    for_rows<T>(Panels<1>{}, CHUNK, FW_BLOCK {
      block.zero();
      block.template add<true>(Q + i * PAD, BLOCK, KT, 0, keys_pad);
      block.each([&](auto& x, int m, int, int v) FW_ALWAYS {
        x = L ? x * load(L + (i + m) * PAD + v) : lower<T, false>(x, i + m, v);
      });
      block.write(P + i * PAD, PAD, 0);
      if (!kept) return;
      if (!bG) return block.write(kept + i * PAD, PAD, 0);
      block.each([&](auto& x, int m, int, int v) FW_ALWAYS {
        T* to = kept + (i + m) * PAD + v;
        store(to, lower<T, false>(x, i + m, v, load(to)));
      });
    });
  }
}

inline Index forward_scratch(const Shape& s) {
  return s.keys_pad * s.values_pad + 4 * CHUNK * s.keys_pad + 2 * BLOCK +
         2 * CHUNK * s.values_pad + CHUNK;
}

// All matrices are in panels.
template <class T, bool DELTA, bool GATED>
void forward_head(const Shape& s, const ForwardHead<T>& a, T* scratch) {
  const Index Kp = s.keys_pad, Vp = s.values_pad, C = CHUNK;
  const bool reads = a.q != nullptr;
  T* S = scratch;         // [Kp, Vp]
  T* K = S + Kp * Vp;     // [C, Kp]
  T* Q = K + C * Kp;
  T* KT = Q + C * Kp;     // [Kp, C]
  T* bG = KT + C * Kp;    // [C, C]
  T* P = bG + BLOCK;
  T* X = P + BLOCK;       // [C, Vp]
  T* U = X + C * Vp;
  T* b = U + C * Vp;
  T* E = GATED && a.erase ? b + C : K;  // [C, Kp]
  Decays<T> decays;
  if (a.initial) {
    to_panels(a.initial, a.state_ld, s.keys, s.values, S, Kp);
  } else {
    std::memset(S, 0, Kp * Vp * sizeof(T));
  }
  for (Index n = 0; n < s.chunks(); ++n) {
    const Index t = n * C, rows = s.rows(n);
    const bool empty = !a.initial && n == 0;  // then S is zero, and every product with it
    if (a.states && n % a.every == 0 && !empty) {
      transpose_panels(S, a.states + n / a.every * a.states_step, Kp, Vp, a.state_rows);
    }
    to_panels(a.k + t * a.k_ld, a.k_ld, rows, s.keys, K, C);
    to_panels(a.v + t * a.v_ld, a.v_ld, rows, s.values, X, C);
    load_beta(a.beta ? a.beta + t * a.beta_ld : nullptr, a.beta_ld, rows, b);
    if constexpr (GATED) {
      decays.load(offset(a.decay, t * a.decay_ld), a.decay_ld, rows);
      if (a.erase) to_panels(a.erase + t * a.erase_ld, a.erase_ld, rows, s.keys, E, C);
    }
    Prefetch<T> prefetch(s);
    if (Prefetch<T>::pays(s) && n + 1 < s.chunks()) {
      const Index after = t + C, more = s.rows(n + 1);
      prefetch.add(a.k + after * a.k_ld, a.k_ld, more, s.keys);
      prefetch.add(a.v + after * a.v_ld, a.v_ld, more, s.values);
      if (reads) prefetch.add(a.q + after * a.q_ld, a.q_ld, more, s.keys);
    }
    if (DELTA || reads) transpose_panels(K, KT, C, Kp);
    if (reads) to_panels(a.q + t * a.q_ld, a.q_ld, rows, s.keys, Q, C);
    key_products(
        Q, K, KT, b, Kp, DELTA ? bG : nullptr, reads ? P : nullptr,
        offset(a.products, n * a.products_step), GATED ? E : nullptr,
        GATED ? decays.pairs : nullptr);
    const Rows<T> O = {offset(a.o, t * a.o_ld), a.o_ld, rows, s.values};
    for_panels<T>(Vp, FW_PANELS {
      T *Xj = X + j * C, *Uj = U + j * C, *Sj = S + j * Kp;
      constexpr Index columns = panels.count * PAD;
      if constexpr (DELTA) {
        if (!empty) {
          for_rows<T>(panels, C, FW_BLOCK {
            if constexpr (GATED) {
              block.zero();
              block.template add_in_parts<true, -1>(E + i * PAD, BLOCK, Sj, Kp * PAD, Kp);
              block.scale_rows(decays.since + i);
              block.plus(Xj + i * PAD, PAD, BLOCK);
            } else {
              block.read(Xj + i * PAD, PAD, BLOCK);
              block.template add_in_parts<true, -1>(K + i * PAD, BLOCK, Sj, Kp * PAD, Kp);
            }
            block.write(Xj + i * PAD, PAD, BLOCK);
          });
        }
        for (Index v = 0; v < columns; v += PAD) {
          solve_lower<T, GATED>(bG, b, Xj + v * C, Uj + v * C);
        }
        if (a.errors) {
          transpose_panels(Xj, a.errors + n * a.errors_step + j * C, C, columns);
        }
      } else {
        for (Index v = 0; v < columns; v += PAD) scale_panel(b, Xj + v * C, Uj + v * C);
      }
      if (reads) {
        for_rows<T>(panels, C, FW_BLOCK {
          block.zero();
          if (!empty) block.template add<true>(Q + i * PAD, BLOCK, Sj, Kp * PAD, Kp);
          if constexpr (GATED) block.scale_rows(decays.since + i);
          block.template add<true>(P + i * PAD, BLOCK, Uj, BLOCK, i + block.rows);
          O.put(block, i, j);
        });
      }
      if constexpr (GATED) {
        for (Index v = 0; v < columns; v += PAD) {
          scale_panel(decays.left, Uj + v * C, Uj + v * C);
        }
      }
      for_rows<T>(panels, Kp, FW_BLOCK {
        block.zero();
        block.template add<false>(K + i / PAD * BLOCK + i % PAD, 0, Uj, BLOCK, C);
        if constexpr (GATED) {
          block.plus(Sj + i * PAD, PAD, Kp * PAD, decays.whole);
        } else {
          block.plus(Sj + i * PAD, PAD, Kp * PAD);
        }
        block.write(Sj + i * PAD, PAD, Kp * PAD);
        prefetch.step();
      });
    });
  }
  from_panels(S, Kp, s.keys, s.values, a.last, a.state_ld);
}
