// The forward pass of one head; the algebra is in shape.h.
#pragma once
#include "channels.h"
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
  T* products;  // null, or P [CHUNK, CHUNK] of every chunk; delta rule: above its diagonal A^T, then rest
  Index states_step, state_rows, errors_step, products_step, every;
  const T *decay, *erase;  // either may be null
  Index decay_ld, erase_ld;
  Index writes;  // of a token
};

// One panel of X = (V - K S) - A U in place, U = b X, by forward substitution, a block of rows in
// registers at a time.
template <class T, bool RESTS>
FW_INLINE void solve_lower(const Couplings<T>& by, const T* b, T* X, T* U) {
  for_rows<T>(Panels<1>{}, CHUNK, FW_BLOCK {
    const T *A = by.A + i * PAD, *rest = by.rest + i * PAD;
    block.read(X + i * PAD, PAD, 0);
    for (Index j = 0; j < i; ++j) {
      if constexpr (RESTS) block.template add_one<true, -1>(rest, U, 0, j);
      block.template add_one<true, -1>(A, U, 0, j);
    }
    FW_UNROLL for (int j = 0; j < block.rows; ++j) {
      FW_UNROLL for (int v = 0; v < block.vecs; ++v) {
        const Index at = (i + j) * PAD + v * block.W;
        const auto x = block.c[j][0][v], u = b[i + j] * x;
        store(X + at, x);
        store(U + at, u);
        FW_UNROLL for (int m = j + 1; m < block.rows; ++m) {
          auto& y = block.c[m][0][v];
          if constexpr (RESTS) y -= rest[m * PAD + i + j] * u;
          y -= A[m * PAD + i + j] * u;
        }
      }
    }
  });
}

// P = tril(Q K^T), or L Q K^T where there are gates; KT is the transpose of the keys. Its rows are
// kept in those of the writes after which is read, below what is kept of A, if there is any.
template <class T>
FW_INLINE void read_products(
    const T* Q, const T* KT, Index keys_pad, T* P, T* kept, bool with_A, const T* L,
    const Reads& asked) {
  for_rows<T>(Panels<1>{}, asked.count, FW_BLOCK {
    block.zero();
    block.template add<true>(Q + i * PAD, BLOCK, KT, 0, keys_pad);
    block.each([&](auto& x, int m, int, int v) FW_ALWAYS {
      const Index at = asked.at[i + m];
      x = L ? x * load(L + at * PAD + v) : lower<T, false>(x, at, v);
    });
    block.write(P + i * PAD, PAD, 0);
    if (!kept) return;
    block.each([&](auto& x, int m, int, int v) FW_ALWAYS {
      if (i + m >= asked.count) return;
      const Index at = asked.at[i + m];
      T* to = kept + at * PAD + v;
      store(to, with_A ? lower<T, false>(x, at, v, load(to)) : x);
    });
  });
}

// Keep A, transposed, and P below it.
template <class T, bool DELTA>
void keep_products(const T* A, const T* P, const Reads& asked, T* kept) {
  if (DELTA) transpose_block(A, kept);
  for (Index i = 0; P && i < asked.count; ++i) {
    const Index at = asked.at[i];
    for (int v = 0; v < PAD; v += Simd<T>::width) {
      T* to = kept + at * PAD + v;
      const auto x = load(P + i * PAD + v);
      store(to, DELTA ? lower<T, false>(x, at, v, load(to)) : x);
    }
  }
}

inline Index forward_scratch(const Shape& s) {
  return s.keys_pad * s.values_pad + 9 * CHUNK * s.keys_pad + BLOCK + 2 * CHUNK * s.values_pad + CHUNK;
}

// What decays by channels take beside it.
inline Index channels_scratch(const Shape& s) { return CHUNK * s.keys_pad + s.keys_pad; }

// All matrices are in panels.
template <class T, bool DELTA, Gating GATES>
void forward_head(const Shape& s, const ForwardHead<T>& a, T* scratch) {
  constexpr bool GATED = GATES != UNGATED, CHANNELS = GATES == BY_CHANNEL, SCALED = GATES == BY_TOKEN;
  const Index Kp = s.keys_pad, Vp = s.values_pad, C = CHUNK;
  const bool reads = a.q != nullptr;
  T* S = scratch;         // [Kp, Vp]
  T* K = S + Kp * Vp;     // [C, Kp]
  T* Q = K + C * Kp;
  T* KT = Q + C * Kp;     // [Kp, C]
  T* P = KT + C * Kp;     // [C, C]
  T* X = P + BLOCK;       // [C, Vp]
  T* U = X + C * Vp;
  T* b = U + C * Vp;
  auto* doubles = reinterpret_cast<double*>(b + C);  // 2 [Kp, C]
  T* ET = b + C + 4 * C * Kp;  // [Kp, C], of E where that is not K
  T* E = GATED && a.erase ? ET + C * Kp : K;  // [C, Kp]
  T* factors = ET + 2 * C * Kp;  // [C, Kp], of decays by channels
  T* whole = factors + C * Kp;   // [Kp]
  const Reads each_write;
  Reads asked(a.writes), next(a.writes);
  Couplings<T> couplings;
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
    if constexpr (SCALED) decays.load(offset(a.decay, t * a.decay_ld), a.decay_ld, rows);
    if constexpr (CHANNELS) {
      to_panels(a.decay + t * a.decay_ld, a.decay_ld, rows, s.keys, factors, C);
      to_factors(factors, Kp);
    }
    if constexpr (GATED) {
      if (a.erase) to_panels(a.erase + t * a.erase_ld, a.erase_ld, rows, s.keys, E, C);
    }
    Prefetch<T> prefetch(s);
    if (Prefetch<T>::pays(s) && n + 1 < s.chunks()) {
      const Index after = t + C, more = s.rows(n + 1);
      prefetch.add(a.k + after * a.k_ld, a.k_ld, more, s.keys);
      prefetch.add(a.v + after * a.v_ld, a.v_ld, more, s.values);
      if (reads) {
        next.move(after, more);
        prefetch.add(a.q + next.token * a.q_ld, a.q_ld, next.count, s.keys);
      }
    }
    if (DELTA || reads || CHANNELS) transpose_panels(K, KT, C, Kp);
    asked.move(t, rows);
    if (reads) to_panels(a.q + asked.token * a.q_ld, a.q_ld, asked.count, s.keys, Q, C);
    const T* L = SCALED ? decays.pairs : nullptr;
    T* kept = offset(a.products, n * a.products_step);
    const bool exact = DELTA && !CHANNELS && turns_signs(b);
    if constexpr (CHANNELS) {
      (reads ? channel_products<T, DELTA, true> : channel_products<T, DELTA, false>)(
          factors, E, Q, KT, Kp, asked, couplings.A, P);
      if (kept) keep_products<T, DELTA>(couplings.A, reads ? P : nullptr, asked, kept);
      for (Index j = 0; j < Kp; j += PAD) {
        const T* by = factors + j * C;
        if (DELTA) decayed_reads(by, each_write, E + j * C, E + j * C);
        if (reads) decayed_reads(by, asked, Q + j * C, Q + j * C);
        passed(by, whole + j);
      }
    } else if constexpr (DELTA) {
      if (exact) {
        if (E != K) transpose_panels(E, ET, C, Kp);
        couple_exactly(E == K ? KT : ET, KT, L, Kp, doubles, couplings, kept);
      } else {
        couple(E, KT, L, Kp, couplings.A, kept);
      }
    }
    if (reads && !CHANNELS) read_products(Q, KT, Kp, P, kept, DELTA, L, asked);
    const Rows<T> O = {a.o, a.o_ld, asked.token, asked.count, s.values};
    T since[CHUNK];
    if constexpr (SCALED) {
      for (Index i = 0; i < C; ++i) since[i] = decays.since[asked.at[i]];
    }
    for_panels<T>(Vp, FW_PANELS {
      T *Xj = X + j * C, *Uj = U + j * C, *Sj = S + j * Kp;
      constexpr Index columns = panels.count * PAD;
      if constexpr (DELTA) {
        if (!empty) {
          for_rows<T>(panels, C, FW_BLOCK {
            if constexpr (SCALED) {
              block.zero();
              block.template add_in_parts<true, -1>(E + i * PAD, BLOCK, Sj, Kp * PAD, Kp);
              block.scale_rows(decays.since + i);
              block.plus(Xj + i * PAD, PAD, BLOCK);
            } else {
              block.read(Xj + i * PAD, PAD, BLOCK);
              block.template add_in_parts<true, -1>(E + i * PAD, BLOCK, Sj, Kp * PAD, Kp);
            }
            block.write(Xj + i * PAD, PAD, BLOCK);
          });
        }
        for (Index v = 0; v < columns; v += PAD) {
          T *Xv = Xj + v * C, *Uv = Uj + v * C;
          exact ? solve_lower<T, true>(couplings, b, Xv, Uv)
                : solve_lower<T, false>(couplings, b, Xv, Uv);
        }
        if (a.errors) {
          transpose_panels(Xj, a.errors + n * a.errors_step + j * C, C, columns);
        }
      } else {
        for (Index v = 0; v < columns; v += PAD) scale_panel(b, Xj + v * C, Uj + v * C);
      }
      if (reads) {
        for_rows<T>(panels, asked.count, FW_BLOCK {
          block.zero();
          if (!empty) block.template add<true>(Q + i * PAD, BLOCK, Sj, Kp * PAD, Kp);
          if constexpr (SCALED) block.scale_rows(since + i);
          const Index depth = asked.at[i + block.rows - 1] + 1;
          block.template add<true>(P + i * PAD, BLOCK, Uj, BLOCK, depth);
          O.put(block, i, j);
        });
      }
      if constexpr (SCALED) {
        for (Index v = 0; v < columns; v += PAD) {
          scale_panel(decays.left, Uj + v * C, Uj + v * C);
        }
      }
      for_rows<T>(panels, Kp, FW_BLOCK {
        block.zero();
        if constexpr (CHANNELS) {
          block.template add<true>(KT + i * PAD, 0, Uj, BLOCK, C);
          block.plus_rows(Sj + i * PAD, PAD, Kp * PAD, whole + i);
        } else {
          block.template add<false>(K + i / PAD * BLOCK + i % PAD, 0, Uj, BLOCK, C);
        }
        if constexpr (SCALED) {
          block.plus(Sj + i * PAD, PAD, Kp * PAD, decays.whole);
        } else if constexpr (!GATED) {
          block.plus(Sj + i * PAD, PAD, Kp * PAD);
        }
        block.write(Sj + i * PAD, PAD, Kp * PAD);
        prefetch.step();
      });
    });
  }
  from_panels(S, Kp, s.keys, s.values, a.last, a.state_ld);
}
