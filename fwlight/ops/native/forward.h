// The forward pass of one head; the algebra is in shape.h.
#pragma once
#include "shape.h"

template <class T>
struct ForwardHead {
  const T *q, *k, *v, *beta;  // q and (sum rule) beta may be null
  Index q_ld, k_ld, v_ld, beta_ld;
  const T* initial;  // [keys, values], rows `state_ld` apart, as the last state
  T* last;
  Index state_ld;
  T* o;
  Index o_ld;
  T* states;  // null, or St [values_pad, keys_pad] before every `every`-th chunk
  T* errors;  // null, or Xt [values_pad, CHUNK] of every chunk (delta rule)
  Index states_step, errors_step, every;
};

// X = (V - K S) - strict_tril(G) b X in place, U = b X, by forward substitution in registers.
template <class T>
inline void solve_lower(const T* G, Index g_ld, const T* b, T* X, T* U, Index values_pad) {
  for (Index v = 0; v < values_pad; v += Simd<T>::width) {
    typename Simd<T>::vec x[CHUNK];
    FW_UNROLL for (int i = 0; i < CHUNK; ++i) x[i] = load(X + i * values_pad + v);
    FW_UNROLL for (int j = 0; j < CHUNK; ++j) {
      const auto u = b[j] * x[j];
      store(X + j * values_pad + v, x[j]);
      store(U + j * values_pad + v, u);
      FW_UNROLL for (int i = 0; i < CHUNK; ++i) {
        if (i > j) x[i] -= G[j * g_ld + i] * u;
      }
    }
  }
}

inline Index forward_scratch(const Shape& s) {
  return s.keys_pad * s.values_pad + 4 * CHUNK * s.keys_pad + 2 * CHUNK * CHUNK +
         3 * CHUNK * s.values_pad + CHUNK;
}

template <class T, bool DELTA>
void forward_head(const Shape& s, const ForwardHead<T>& a, T* scratch) {
  const Index Kp = s.keys_pad, Vp = s.values_pad, C = CHUNK;
  const bool reads = a.q != nullptr;
  T* S = scratch;          // [Kp, Vp]
  T* K = S + Kp * Vp;      // [C, Kp]
  T* KQt = K + C * Kp;     // [Kp, 2 C]: the chunk's keys, then its queries
  T* Q = KQt + 2 * C * Kp; // [C, Kp]
  T* GP = Q + C * Kp;      // [C, 2 C]: G, then P^T
  T* X = GP + 2 * C * C;   // [C, Vp]
  T* U = X + C * Vp;
  T* O = U + C * Vp;
  T* b = O + C * Vp;
  const T* Pt = GP + C;
  pack(a.initial, a.state_ld, s.keys, s.values, S, Kp, Vp);
  for (Index n = 0; n < s.chunks(); ++n) {
    const Index t = n * C, rows = s.rows(n);
    if (a.states && n % a.every == 0) {
      transpose(S, Vp, a.states + n / a.every * a.states_step, Kp, Kp, Vp);
    }
    pack(a.k + t * a.k_ld, a.k_ld, rows, s.keys, K, C, Kp);
    pack(a.v + t * a.v_ld, a.v_ld, rows, s.values, X, C, Vp);
    load_beta(a.beta ? a.beta + t * a.beta_ld : nullptr, a.beta_ld, rows, b);
    if (DELTA || reads) transpose(K, Kp, KQt, 2 * C, C, Kp);
    if (reads) {
      pack(a.q + t * a.q_ld, a.q_ld, rows, s.keys, Q, C, Kp);
      transpose(Q, Kp, KQt + C, 2 * C, C, Kp);
    }
    if constexpr (DELTA) {
      for_tiles<T>(C, reads ? 2 * C : C, FW_TILE {
        tile.zero();
        tile.add_columns_of(KQt + i, 2 * C, KQt + j, 2 * C, Kp);
        tile.write(GP + i * 2 * C + j, 2 * C);
      });
      for_tiles<T>(C, Vp, FW_TILE {
        tile.zero();
        tile.add_columns_of(KQt + i, 2 * C, S + j, Vp, Kp);
        tile.subtract_from(X + i * Vp + j, Vp);
      });
      solve_lower(GP, 2 * C, b, X, U, Vp);
      if (a.errors) transpose(X, Vp, a.errors + n * a.errors_step, C, C, Vp);
    } else {
      if (reads) {
        for_tiles<T>(C, C, FW_TILE {
          tile.zero();
          tile.add_columns_of(KQt + i, 2 * C, KQt + C + j, 2 * C, Kp);
          tile.write(GP + C + i * 2 * C + j, 2 * C);
        });
      }
      for (Index i = 0; i < C; ++i) {
        for (Index v = 0; v < Vp; ++v) U[i * Vp + v] = b[i] * X[i * Vp + v];
      }
    }
    if (reads) {
      for (Index j = 1; j < C; ++j) {
        for (Index i = 0; i < j; ++i) GP[j * 2 * C + C + i] = T(0);
      }
      for_tiles<T>(C, Vp, FW_TILE {
        tile.zero();
        tile.add_columns_of(KQt + C + i, 2 * C, S + j, Vp, Kp);
        tile.add_columns_of(Pt + i, 2 * C, U + j, Vp, i + tile.rows);
        tile.write(O + i * Vp + j, Vp);
      });
      unpack(O, Vp, rows, s.values, a.o + t * a.o_ld, a.o_ld);
    }
    for_tiles<T>(Kp, Vp, FW_TILE {
      tile.read(S + i * Vp + j, Vp);
      tile.add_columns_of(K + i, Kp, U + j, Vp, C);
      tile.write(S + i * Vp + j, Vp);
    });
  }
  unpack(S, Vp, s.keys, s.values, a.last, a.state_ld);
}
