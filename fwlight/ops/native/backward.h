// The backward pass of one head; the algebra is in shape.h.
#pragma once
#include "forward.h"

template <class T>
struct BackwardHead {
  const T *q, *k, *v, *beta, *d_o, *d_last;  // q and d_o may be null together
  Index q_ld, k_ld, v_ld, beta_ld, do_ld;
  Index state_ld;
  const T *states, *errors, *products;
  Index states_step, state_rows, errors_step, products_step, every;
  // A null d_last is zeros; dbeta may be null (sum rule), and d_initial where the state begins at zero.
  T *dq, *dk, *dv, *dbeta, *d_initial;
  Index dq_ld, dk_ld, dv_ld, dbeta_ld;
  const T *decay, *erase;  // either may be null, and the gradient of the one that is
  Index decay_ld, erase_ld;
  T *ddecay, *derase;
  Index ddecay_ld, derase_ld;
  Index writes;  // of a token
};

// One panel of dR = dU - A^T dV in place and dV = b dR, by back substitution. Above the diagonal of
// `kept` stands the transpose of A; what is missing of A comes after that. Terms are subtracted from
// the last to the first, as one token after the other would: in another order more digits cancel.
template <class T, bool RESTS>
FW_INLINE void solve_upper(const T* kept, const T* b, T* R, T* dV) {
  const T* rest = kept + BLOCK;
  for_rows<T>(Panels<1>{}, CHUNK, [&](auto& block, Index from_start) FW_ALWAYS {
    const Index j = CHUNK - block.rows - from_start;
    block.read(R + j * PAD, PAD, 0);
    for (Index i = CHUNK - 1; i >= j + block.rows; --i) {
      if constexpr (RESTS) block.template add_one<false, -1>(rest + j, dV, 0, i);
      block.template add_one<true, -1>(kept + j * PAD, dV, 0, i);
    }
    FW_UNROLL for (int i = block.rows - 1; i >= 0; --i) {
      FW_UNROLL for (int v = 0; v < block.vecs; ++v) {
        const Index at = (j + i) * PAD + v * block.W;
        const auto r = block.c[i][0][v], dv = b[j + i] * r;
        store(R + at, r);
        store(dV + at, dv);
        FW_UNROLL for (int m = 0; m < i; ++m) {
          auto& y = block.c[m][0][v];
          if constexpr (RESTS) y -= rest[(j + i) * PAD + j + m] * dv;
          y -= kept[(j + m) * PAD + j + i] * dv;
        }
      }
    }
  });
}

inline Index backward_scratch(const Shape& s, Index every) {
  return (every + 1) * s.keys_pad * s.values_pad + (every + 2) * CHUNK * s.keys_pad + 5 * BLOCK +
         (2 * every + 3) * CHUNK * s.values_pad + every * CHUNK;
}

// What gates take beside it.
template <class T>
Index gates_scratch(const Shape& s, Index every) {
  const Index by_token = CHUNK + sizeof(Decays<T>) / sizeof(T);
  const Index by_channel = (CHUNK + 1) * s.keys_pad;
  return 2 * CHUNK * s.keys_pad + BLOCK + every * (by_token + by_channel);
}

// All matrices are in panels.
template <class T, bool DELTA, Gating GATES>
void backward_head(const Shape& s, const BackwardHead<T>& a, T* scratch) {
  constexpr bool GATED = GATES != UNGATED, CHANNELS = GATES == BY_CHANNEL, SCALED = GATES == BY_TOKEN;
  const Index Kp = s.keys_pad, Vp = s.values_pad, C = CHUNK, KV = Kp * Vp;
  constexpr int W = Simd<T>::width;
  const bool reads = a.q != nullptr;
  T* dSt = scratch;              // [Vp, Kp]
  T* group = dSt + KV;           // St of the chunks of a group after its first, [every, Vp, Kp]
  T* Q = group + a.every * KV;   // [C, Kp]
  T* KT = Q + C * Kp;            // [Kp, C]
  T* H = KT + C * Kp;            // [C, C]
  T* Ht = H + BLOCK;
  T* lowerP = Ht + BLOCK;
  T* dP = lowerP + BLOCK;
  T* R = dP + BLOCK;            // [C, Vp]: dR
  T* dO = R + C * Vp;
  T* dV = dO + C * Vp;
  T* dUt = dV + C * Vp;          // [PAD, C]
  T* Ks = dUt + BLOCK;           // of every chunk of a group, [every, C, Kp]
  T* Uts = Ks + a.every * C * Kp;     // [every, Vp, C]
  T* Xts = Uts + a.every * C * Vp;    // the same, under the sum rule alone
  T* bs = Xts + a.every * C * Vp;     // [every, C]
  T* bls = bs + a.every * C;          // b l, where there are gates, which the rest is for
  auto* all_decays = reinterpret_cast<Decays<T>*>(bls + a.every * C);
  T* E = reinterpret_cast<T*>(all_decays + a.every);  // [C, Kp]
  T* lowerH = E + C * Kp;                             // [C, C], L H
  T* left = lowerH + BLOCK;                           // [C, Kp], l K, of decays by channels
  T* all_factors = left + C * Kp;                     // [every, C, Kp]
  T* wholes = all_factors + a.every * C * Kp;         // [every, Kp]
  const Reads each_write;
  Reads asked(a.writes), next(a.writes);
  Crossing<T> crossing;
  ChannelGradients<T> within;

  // Keys of chunk n, and what it wrote.
  const auto load_writes = [&](Index n) {
    const Index t = n * C, rows = s.rows(n), at = n % a.every;
    T* b = bs + at * C;
    to_panels(a.k + t * a.k_ld, a.k_ld, rows, s.keys, Ks + at * C * Kp, C);
    load_beta(a.beta ? a.beta + t * a.beta_ld : nullptr, a.beta_ld, rows, b);
    if constexpr (CHANNELS) {
      T* factors = all_factors + at * C * Kp;
      to_panels(a.decay + t * a.decay_ld, a.decay_ld, rows, s.keys, factors, C);
      to_factors(factors, Kp);
      left_keys(Ks + at * C * Kp, factors, Kp, left, wholes + at * Kp);
    }
    if constexpr (SCALED) {
      Decays<T>& decays = all_decays[at];
      decays.load(offset(a.decay, t * a.decay_ld), a.decay_ld, rows);
      for (int i = 0; i < C; ++i) bls[at * C + i] = b[i] * decays.left[i];
      b = bls + at * C;
    }
    const T* X = a.errors + n * a.errors_step;
    if constexpr (!DELTA) {
      to_panels(a.v + t * a.v_ld, a.v_ld, rows, s.values, dV, C);
      transpose_panels(dV, Xts + at * C * Vp, C, Vp);
      X = Xts + at * C * Vp;
    }
    for (Index v = 0; v < Vp * C; v += C) {
      for (int i = 0; i < C; i += W) {
        store(Uts + at * C * Vp + v + i, load(b + i) * load(X + v + i));
      }
    }
  };

  if (a.d_last) {
    for (Index i = 0; i < Kp; i += PAD) {
      for (Index j = 0; j < Vp; j += PAD) {
        to_panels(
            a.d_last + i * a.state_ld + j, a.state_ld, std::min<Index>(PAD, s.keys - i),
            std::min<Index>(PAD, s.values - j), dUt, PAD);
        transpose_block(dUt, dSt + i * Vp + j * PAD);
      }
    }
  } else {
    std::memset(dSt, 0, KV * sizeof(T));
  }
  for (Index last = s.chunks() - 1; last >= 0;) {
    const Index first = last / a.every * a.every;
    const T* saved = a.states + first / a.every * a.states_step;
    for (Index n = first; n < last; ++n) {
      load_writes(n);
      Prefetch<T> prefetch(s);
      if (Prefetch<T>::pays(s)) {
        const Index t = (n + 1) * C, rows = s.rows(n + 1);
        prefetch.add(a.k + t * a.k_ld, a.k_ld, rows, s.keys);
        if constexpr (DELTA) {
          prefetch.add(a.errors + (n + 1) * a.errors_step, 0, 1, Vp * C);
        } else {
          prefetch.add(a.v + t * a.v_ld, a.v_ld, rows, s.values);
        }
      }
      const T* before = n == first ? saved : group + (n - first - 1) * KV;
      const Index before_rows = n == first ? a.state_rows : Vp;
      T* after = group + (n - first) * KV;
      const T *K = CHANNELS ? left : Ks + (n - first) * C * Kp, *Ut = Uts + (n - first) * C * Vp;
      for_panels<T>(Kp, FW_PANELS {
        for_rows<T>(panels, Vp, FW_BLOCK {
          block.zero();
          block.template add<true>(Ut + i * PAD, 0, K + j * C, BLOCK, C);
          if (a.d_initial || n > 0) {
            const T* from = before + j * before_rows + i * PAD;
            if constexpr (CHANNELS) {
              block.plus_columns(from, PAD, before_rows * PAD, wholes + (n - first) * Kp + j);
            } else if constexpr (SCALED) {
              block.plus(from, PAD, before_rows * PAD, all_decays[n - first].whole);
            } else {
              block.plus(from, PAD, before_rows * PAD);
            }
          }
          block.write(after + j * Vp + i * PAD, PAD, Vp * PAD);
          prefetch.step();
        });
      });
    }
    for (Index n = last; n >= first; --n) {
      const T* St = n == first ? saved : group + (n - first - 1) * KV;
      const Index St_rows = n == first ? a.state_rows : Vp;
      const Index t = n * C, rows = s.rows(n);
      // Then dS' is zero, or S is and nobody asks for dS.
      const bool ends = !a.d_last && n == s.chunks() - 1, begins = !a.d_initial && n == 0;
      if (n == last) load_writes(n);
      const T *K = Ks + (n - first) * C * Kp, *Ut = Uts + (n - first) * C * Vp;
      const T *b = bs + (n - first) * C;
      const T* X = DELTA ? a.errors + n * a.errors_step : Xts + (n - first) * C * Vp;
      const T *factors = all_factors + (n - first) * C * Kp, *whole = wholes + (n - first) * Kp;
      if constexpr (CHANNELS) {
        if (n != last) left_keys(K, factors, Kp, left, wholes + (n - first) * Kp);
      }
      transpose_panels(CHANNELS ? left : K, KT, C, Kp);
      const Decays<T>& decays = all_decays[n - first];
      asked.move(t, rows);
      const T* erased = K;
      if constexpr (GATED) {
        if (a.erase) {
          to_panels(a.erase + t * a.erase_ld, a.erase_ld, rows, s.keys, E, C);
          erased = E;
        }
        if (SCALED) crossing.clear();
      }
      if (reads) {
        to_panels(a.q + asked.token * a.q_ld, a.q_ld, asked.count, s.keys, Q, C);
        to_panels(a.d_o + asked.token * a.do_ld, a.do_ld, asked.count, s.values, dO, C);
      }
      Prefetch<T> prefetch(s);  // keys and what was written are there, but for a group's last chunk
      if (Prefetch<T>::pays(s) && n > 0) {
        const Index before = t - C;
        prefetch.add(a.products + (n - 1) * a.products_step, 0, 1, BLOCK);
        if (reads) {
          next.move(before, C);
          prefetch.add(a.q + next.token * a.q_ld, a.q_ld, next.count, s.keys);
          prefetch.add(a.d_o + next.token * a.do_ld, a.do_ld, next.count, s.values);
        }
      }
      const T* products = a.products + n * a.products_step;
      const bool exact = DELTA && !CHANNELS && turns_signs(b);
      const T* P = lowerP;  // without what stands above the diagonal, and in other writes' rows
      for (Index i = 0; reads && i < C; ++i) {
        const Index at = asked.at[i];
        for (int v = 0; v < PAD; v += W) {
          const auto x = load(products + at * PAD + v);
          store(lowerP + i * PAD + v, i < asked.count ? lower<T, false>(x, at, v) : typename Simd<T>::vec{});
        }
      }
      T sums[CHUNK] = {};
      for (Index v = 0; v < Vp; v += PAD) {
        for_rows<T>(Panels<1>{}, PAD, FW_BLOCK {
          block.zero();
          if constexpr (SCALED) {
            if (!ends) block.template add_in_parts<true>(dSt + (v + i) * PAD, Vp * PAD, KT, 0, Kp);
            block.each([&](auto& x, int, int, int token) FW_ALWAYS {
              x *= load(decays.left + token);
            });
            crossing.write(block, X + (v + i) * C);
            if (reads) block.template add<false>(dO + v * C + i, 0, P, 0, asked.count);
          } else {
            if (reads) block.template add<false>(dO + v * C + i, 0, P, 0, asked.count);
            if (!ends) block.template add_in_parts<true>(dSt + (v + i) * PAD, Vp * PAD, KT, 0, Kp);
          }
          block.write(dUt + i * PAD, PAD, 0);
        });
        transpose_block(dUt, R + v * C);
        if constexpr (DELTA) {
          T *Rv = R + v * C, *dVv = dV + v * C;
          exact ? solve_upper<T, true>(products, b, Rv, dVv)
                : solve_upper<T, false>(products, b, Rv, dVv);
        } else {
          scale_panel(b, R + v * C, dV + v * C);
          if (a.dbeta) {
            for (Index l = 0; l < BLOCK; ++l) sums[l % PAD] += dUt[l] * X[v * C + l];
          }
        }
      }
      from_panels(dV, C, rows, s.values, a.dv + t * a.dv_ld, a.dv_ld);
      if constexpr (DELTA) {
        for_rows<T>(Panels<1>{}, C, FW_BLOCK {
          block.zero();
          block.template add<true>(R + i * PAD, BLOCK, X, 0, Vp);
          block.write(Ht + i * PAD, PAD, 0);
          block.each([&](auto& x, int m, int, int v) FW_ALWAYS {
            x = lower<T, true>(-b[i + m] * load(b + v) * x, i + m, v);
          });
          block.write(H + i * PAD, PAD, 0);
        });
        for (Index i = 0; i < C; ++i) sums[i] = Ht[i * PAD + i];
        if constexpr (SCALED) {
          // Above the diagonal, products holds A[i, j] at [j, i].
          transpose_block(products, lowerH);
          for (Index i = 0; i < C; ++i) {
            for (int v = 0; v < PAD; v += W) {
              const Index l = i * PAD + v;
              const auto pairs = b[i] * load(b + v) * load(Ht + l) * load(lowerH + l);
              store(crossing.pairs + l, lower<T, true>(-pairs, i, v));
              store(H + l, load(H + l) * load(decays.pairs + l));
            }
          }
          std::memcpy(lowerH, H, BLOCK * sizeof(T));
        }
        if (erased == K && !CHANNELS) {
          transpose_block(H, Ht);
          for (Index i = 0; i < BLOCK; i += W) store(H + i, load(H + i) + load(Ht + i));
        }
      }
      if (a.dbeta) {
        for (Index i = 0; i < rows; ++i) a.dbeta[(t + i) * a.dbeta_ld] = sums[i];
      }
      if (reads) {
        for_rows<T>(Panels<1>{}, asked.count, FW_BLOCK {
          block.zero();
          block.template add<true>(dO + i * PAD, BLOCK, X, 0, Vp);
          block.each([&](auto& x, int m, int, int v) FW_ALWAYS {
            const Index at = asked.at[i + m], l = at * PAD + v;
            x = lower<T, false>(load(b + v) * x, at, v);
            if constexpr (SCALED) {
              const auto pairs = x * load(P + (i + m) * PAD + v);
              store(crossing.pairs + l, load(crossing.pairs + l) + pairs);
              x *= load(decays.pairs + l);
            }
          });
          block.write(dP + i * PAD, PAD, 0);
        });
      }
      if constexpr (SCALED) {  // from here on a dO and a dV are wanted alone
        T since[CHUNK];
        for (Index i = 0; i < C; ++i) since[i] = decays.since[asked.at[i]];
        for (Index v = 0; v < Vp; v += PAD) {
          if (reads) scale_panel(since, dO + v * C, dO + v * C);
          if (DELTA) scale_panel(decays.since, dV + v * C, dV + v * C);
        }
      }
      const Rows<T> dQ = {a.dq, a.dq_ld, asked.token, asked.count, s.keys};
      const Rows<T> dK = {a.dk, a.dk_ld, t, rows, s.keys};
      const Rows<T> dE = {a.derase, a.derase_ld, t, rows, s.keys};
      if constexpr (CHANNELS) {
        for (Index j = 0; j < Kp; j += PAD) {
          const T *Qj = Q + j * C, *Ej = erased + j * C, *Kj = K + j * C, *by = factors + j * C;
          const T* Sj = St + j * St_rows;
          T* dSj = dSt + j * Vp;
          const Index step = Vp * PAD, S_step = St_rows * PAD;  // to the next panel of a state
          if (reads) {
            within.template pairs<DELTA, true>(by, asked, dP, H, Qj, Ej, Kj);
          } else {
            within.template pairs<DELTA, false>(by, asked, dP, H, Qj, Ej, Kj);
          }
          if (reads) {
            for_rows<T>(Panels<1>{}, asked.count, FW_BLOCK {
              block.zero();
              if (!begins) block.template add<true>(dO + i * PAD, BLOCK, Sj, S_step, Vp);
              within.read(block, i, asked, Qj, within.dQ);
              dQ.put(block, i, j);
            });
          }
          if constexpr (DELTA) {
            for_rows<T>(Panels<1>{}, C, FW_BLOCK {
              block.zero();
              if (!begins) block.template add<true, -1>(dV + i * PAD, BLOCK, Sj, S_step, Vp);
              within.read(block, i, each_write, Ej, within.dE);
              if (erased != K) return dE.put(block, i, j);
              block.write(within.dE + i * PAD, PAD, 0);
            });
          }
          for_rows<T>(Panels<1>{}, C, FW_BLOCK {
            block.zero();
            if (!ends) block.template add<false>(Ut + i, BLOCK, dSj, step, Vp);
            within.write(block, i, Kj);
            if (DELTA && erased == K) block.plus(within.dE + i * PAD, PAD, 0);
            dK.put(block, i, j);
          });
          if (!begins) {
            T reading[BLOCK], erasing[BLOCK];
            if (reads) decayed_reads(by, asked, Qj, reading);
            if (DELTA) decayed_reads(by, each_write, Ej, erasing);
            for_rows<T>(Panels<1>{}, Vp, FW_BLOCK {
              const Index at = i / PAD * BLOCK + i % PAD, row = i * PAD;
              block.zero();
              if (reads) block.template add<false>(dO + at, 0, reading, 0, asked.count);
              if (DELTA) block.template add<false, -1>(dV + at, 0, erasing, 0, C);
              within.pass(block, whole + j, dSj + row, Sj + row);
              block.write(dSj + row, PAD, 0);
              prefetch.step();
            });
          }
          if (!a.ddecay) continue;
          const Index columns = std::min<Index>(PAD, s.keys - j);
          T* to = a.ddecay + t * a.ddecay_ld + j;
          from_panels(within.finish(whole + j), C, rows, columns, to, a.ddecay_ld);
        }
        continue;
      }
      for_panels<T>(Kp, FW_PANELS {
        const T *Qj = Q + j * C, *Kj = K + j * C, *Sj = St + j * St_rows;
        T* dSj = dSt + j * Vp;
        const Index step = Vp * PAD, S_step = St_rows * PAD;  // to the next panel of a state
        if (reads) {
          for_rows<T>(panels, asked.count, FW_BLOCK {
            block.zero();
            if (!begins) block.template add<true>(dO + i * PAD, BLOCK, Sj, S_step, Vp);
            if constexpr (GATED) crossing.read(block, i, asked, Qj, BLOCK);
            const Index depth = asked.at[i + block.rows - 1] + 1;
            block.template add<true>(dP + i * PAD, 0, Kj, BLOCK, depth);
            dQ.put(block, i, j);
          });
        }
        if constexpr (DELTA && GATED) {
          if (erased != K) {
            for_rows<T>(panels, C, FW_BLOCK {
              block.zero();
              if (!begins) block.template add<true, -1>(dV + i * PAD, BLOCK, Sj, S_step, Vp);
              crossing.read(block, i, each_write, E + j * C, BLOCK);
              block.template add<true>(lowerH + i * PAD, 0, Kj, BLOCK, i + block.rows);
              dE.put(block, i, j);
            });
          }
        }
        for_rows<T>(panels, C, FW_BLOCK {
          block.zero();
          if constexpr (DELTA && GATED) {
            if (erased == K && !begins) {
              block.template add<true, -1>(dV + i * PAD, BLOCK, Sj, S_step, Vp);
              crossing.read(block, i, each_write, Kj, BLOCK);
            }
            block.template add<false>(H + i, 0, erased + j * C, BLOCK, C);
          }
          if (!ends) block.template add<false>(Ut + i, BLOCK, dSj, step, Vp);
          const Index r = asked.from[i], later = asked.count - r;
          if (reads) block.template add<false>(dP + r * PAD + i, 0, Qj + r * PAD, BLOCK, later);
          if constexpr (DELTA && !GATED) {
            if (!begins) block.template add<true, -1>(dV + i * PAD, BLOCK, Sj, S_step, Vp);
            block.template add<false>(H + i, 0, Kj, BLOCK, C);
          }
          dK.put(block, i, j);
        });
        if (begins || (!reads && !DELTA && !GATED)) return;
        for_rows<T>(panels, Vp, FW_BLOCK {
          const Index at = i / PAD * BLOCK + i % PAD;
          block.zero();
          if (reads) block.template add<false>(dO + at, 0, Qj, BLOCK, asked.count);
          if constexpr (DELTA) {
            block.template add<false, -1>(dV + at, 0, GATED ? erased + j * C : Kj, BLOCK, C);
          }
          if constexpr (GATED) {
            const Index row = i * PAD;
            crossing.pass(block, decays.whole, dSj + row, step, Sj + row, S_step);
          } else {
            block.plus(dSj + i * PAD, PAD, step);
          }
          block.write(dSj + i * PAD, PAD, step);
          prefetch.step();
        });
      });
      if constexpr (SCALED) {
        if (a.ddecay) {
          crossing.finish(decays, b, rows, a.ddecay + t * a.ddecay_ld, a.ddecay_ld);
        }
      }
    }
    last = first - 1;
  }
  if (!a.d_initial) return;
  transpose_panels(dSt, group, Vp, Kp);
  from_panels(group, Kp, s.keys, s.values, a.d_initial, a.state_ld);
}
