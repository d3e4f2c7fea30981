// The forward pass of one head under the FWM rule; the algebra is in fwm.h.
#pragma once
#include "forward.h"
#include "fwm.h"

inline Index fwm_forward_scratch(const Shape& s) {
  return s.keys_pad * s.values_pad + 4 * CHUNK * s.keys_pad + 2 * CHUNK * CHUNK +
         4 * CHUNK * s.values_pad + 2 * CHUNK + s.values_pad;
}

template <class T>
void fwm_forward_head(
    const Shape& s, const ForwardHead<T>& a, T* scratch, bool projects_first) {
  const Index Kp = s.keys_pad, Vp = s.values_pad, C = CHUNK;
  const bool reads = a.q != nullptr;
  T* S = scratch;           // [Kp, Vp]
  T* QK = S + Kp * Vp;      // [2 C, Kp]: keys, then queries
  T* K = QK;
  T* Q = QK + C * Kp;
  T* KQt = QK + 2 * C * Kp; // [Kp, 2 C]
  T* GP = KQt + 2 * C * Kp; // [2 C, C]: G, then P
  T* P = GP + C * C;
  T* X = GP + 2 * C * C;    // [C, Vp]
  T* Y = X + C * Vp;
  T* U = Y + C * Vp;
  T* O = U + C * Vp;
  T* b = O + C * Vp;
  T* sizes = b + C;
  T* row = sizes + C;
  pack(a.initial, a.state_ld, s.keys, s.values, S, Kp, Vp);
  for (Index n = 0; n < s.chunks(); ++n) {
    const Index t = n * C, rows = s.rows(n);
    if (a.states && n % a.every == 0) {
      transpose(S, Vp, a.states + n / a.every * a.states_step, Kp, Kp, Vp);
    }
    pack(a.k + t * a.k_ld, a.k_ld, rows, s.keys, K, C, Kp);
    pack(a.v + t * a.v_ld, a.v_ld, rows, s.values, X, C, Vp);
    load_beta(a.beta + t * a.beta_ld, a.beta_ld, rows, b);
    transpose(K, Kp, KQt, 2 * C, C, Kp);
    if (reads) {
      pack(a.q + t * a.q_ld, a.q_ld, rows, s.keys, Q, C, Kp);
      transpose(Q, Kp, KQt + C, 2 * C, C, Kp);
    }
    for_tiles<T>(reads ? 2 * C : C, C, FW_TILE {
      tile.zero();
      tile.add_columns_of(KQt + i, 2 * C, KQt + j, 2 * C, Kp);
      tile.write(GP + i * C + j, C);
    });
    for_tiles<T>(C, Vp, FW_TILE {
      tile.zero();
      tile.add_columns_of(KQt + i, 2 * C, S + j, Vp, Kp);
      tile.write(Y + i * Vp + j, Vp);
    });
    Remains<T> left;
    T square = dot(S, S, Kp * Vp);
    for (Index i = 0; i < C; ++i) {
      T *x = X + i * Vp, *y = Y + i * Vp, *u = U + i * Vp, weights[CHUNK];
      for (Index j = 0; j < i; ++j) weights[j] = left.write[i][j] * GP[i * C + j];
      combine(y, left.state[i], y, weights, U, 0, i, Vp);
      for (Index v = 0; v < Vp; ++v) x[v] -= y[v];
      for (Index v = 0; v < Vp; ++v) u[v] = b[i] * x[v];
      const T k_square = GP[i * C + i];
      sizes[i] = 1;
      if (b[i] != 0 && k_square != 0) {
        const T added = dot(u, u, Vp) * k_square;
        T after = square + 2 * dot(u, y, Vp) + added;
        if (after < (square + added) / 16) {
          T remains[CHUNK];
          for (Index j = 0; j <= i; ++j) remains[j] = j == i ? T(1) : left.write[i][j];
          after = measure(s, left.state[i], S, remains, K, U, i + 1, row);
        }
        // Also what is not a number spoils the whole state.
        if ((projects_first || square != 0) && !(after <= 1)) {
          sizes[i] = std::sqrt(after);
          after = 1;
        }
        square = after;
      }
      left.pass(i, sizes[i]);
    }
    if (a.errors) {
      T* errors = a.errors + n * a.errors_step;
      std::memcpy(errors, X, C * Vp * sizeof(T));
      std::memcpy(errors + C * Vp, sizes, C * sizeof(T));
    }
    if (reads) {
      for (Index i = 0; i < C; ++i) {
        for (Index j = 0; j < C; ++j) P[i * C + j] *= left.write[i + 1][j];
        for (Index d = 0; d < Kp; ++d) KQt[d * 2 * C + C + i] *= left.state[i + 1];
      }
      for_tiles<T>(C, Vp, FW_TILE {
        tile.zero();
        tile.add_columns_of(KQt + C + i, 2 * C, S + j, Vp, Kp);
        tile.add_rows_of(P + i * C, C, U + j, Vp, i + tile.rows);
        tile.write(O + i * Vp + j, Vp);
      });
      unpack(O, Vp, rows, s.values, a.o + t * a.o_ld, a.o_ld);
    }
    scale_rows(U, left.write[C], Vp);
    for_tiles<T>(Kp, Vp, FW_TILE {
      tile.read(S + i * Vp + j, Vp);
      tile.scale(left.state[C]);
      tile.add_columns_of(K + i, Kp, U + j, Vp, C);
      tile.write(S + i * Vp + j, Vp);
    });
  }
  unpack(S, Vp, s.keys, s.values, a.last, a.state_ld);
}
