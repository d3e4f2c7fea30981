// The passes of the rules over all heads, and how they are called. With GATED the rules take a decay
// and an erase key, and are compiled apart: who has no gates waits for no other code.
#pragma once
#include <memory>

#include "arguments.h"
#include "backward.h"
#include "denormals.h"
#include "forward.h"
#include "fwm_backward.h"
#include "fwm_forward.h"
#include "step.h"

namespace {

// What is kept of head n, for a slice of columns from `first` on; null if `all` is.
template <class T>
struct Kept {
  T *states, *errors, *products;

  Kept(const Sizes& s, T* all, Index n, Index first) {
    T* const head = offset(all, n * s.kept());
    T* const chunks = offset(head, s.groups() * s.state());
    states = offset(head, first * PAD);
    errors = offset(chunks, first * CHUNK);
    products = offset(chunks, s.chunks() * s.chunk_errors());
  }
};

template <class T, Gating GATES>
struct Forward {
  static constexpr bool GATED = GATES != UNGATED;
  Sizes s;
  Sequence<T> q, k, v, beta, o;
  T *initial, *last, *all_kept;
  Sequence<T> decay{}, erase{};

  explicit Forward(Arguments a)
      : s(a), q(a.vectors<T>()), k(a.vectors<T>()), v(a.vectors<T>()), beta(a.sequence<T>()),
        o(a.vectors<T>()), initial(a.pointer<T>()), last(a.pointer<T>()),
        all_kept(a.pointer<T>()) {
    if constexpr (!GATED) return;
    decay = GATES == BY_CHANNEL ? a.vectors<T>() : a.sequence<T>();
    erase = a.vectors<T>();
  }

  ForwardHead<T> head(Index n, Index part) const {
    const Index b = n / s.heads, h = n % s.heads, first = part * s.slice;
    const Kept<T> kept(s, all_kept, n, first);
    return {
        q.data ? q.at(b, h) : nullptr,
        k.at(b, h),
        v.at(b, h) + first,
        beta.data ? beta.at(b, h) : nullptr,
        q.token, k.token, v.token, beta.token,
        offset(initial, n * s.keys * s.values + first),
        last + n * s.keys * s.values + first,
        s.values,
        q.data ? o.at(b, h) + first : nullptr,
        o.token,
        kept.states, kept.errors,
        part == 0 ? kept.products : nullptr,  // the same in every slice: the first one keeps them
        s.state(), s.values_pad, s.chunk_errors(), s.chunk_products(), s.every,
        decay.data ? decay.at(b, h) : nullptr,
        erase.data ? erase.at(b, h) : nullptr,
        decay.token, erase.token,
        s.writes,
    };
  }

  template <Rule RULE>
  void run() const {
    const Index tasks = s.tasks();
    if (RULE != FWM && s.tokens <= 4 && !all_kept) {
      const bool alone = s.batch * s.heads * s.tokens * s.keys * s.values < 32768;
#pragma omp parallel for schedule(static) num_threads(alone ? 1 : s.threads)
      for (Index i = 0; i < tasks; ++i) {
        const FlushDenormals flush;
        step_head<T, RULE == DELTA, GATES>(s.shape(i % s.slices), head(i / s.slices, i % s.slices));
      }
      return;
    }
    const Index threads = std::max<Index>(1, std::min(s.threads, tasks));
    const Index size =
        RULE == FWM ? fwm_forward_scratch(s.shape(0))
                    : forward_scratch(s.shape(0)) +
                          (GATES == BY_CHANNEL ? channels_scratch(s.shape(0)) : 0);
    const Scratch<T> scratch(threads * size);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (Index i = 0; i < tasks; ++i) {
      const FlushDenormals flush;
      T* own = scratch.get() + omp_get_thread_num() * size;
      const Shape shape = s.shape(i % s.slices);
      const ForwardHead<T> a = head(i / s.slices, i % s.slices);
      if constexpr (RULE == FWM) {
        fwm_forward_head(shape, a, own, s.projects_first);
      } else {
        forward_head<T, RULE == DELTA, GATES>(shape, a, own);
      }
    }
  }
};

template <class T, Gating GATES>
struct Backward {
  static constexpr bool GATED = GATES != UNGATED;
  Sizes s;
  Sequence<T> q, k, v, beta, d_o, dq, dk, dv, dbeta;
  T *d_last, *d_initial, *all_kept;
  Sequence<T> decay{}, erase{}, ddecay{}, derase{};

  explicit Backward(Arguments a)
      : s(a), q(a.vectors<T>()), k(a.vectors<T>()), v(a.vectors<T>()), beta(a.sequence<T>()),
        d_o(a.vectors<T>()), dq(a.vectors<T>()), dk(a.vectors<T>()), dv(a.vectors<T>()),
        dbeta(a.sequence<T>()), d_last(a.pointer<T>()), d_initial(a.pointer<T>()),
        all_kept(a.pointer<T>()) {
    if constexpr (!GATED) return;
    decay = GATES == BY_CHANNEL ? a.vectors<T>() : a.sequence<T>();
    erase = a.vectors<T>();
    ddecay = GATES == BY_CHANNEL ? a.vectors<T>() : a.sequence<T>();
    derase = a.vectors<T>();
  }

  // `partial`: where slices after the first leave their share of dq, dk, dbeta and the gates.
  BackwardHead<T> head(Index n, Index part, T* partial) const {
    const Index b = n / s.heads, h = n % s.heads, first = part * s.slice, K = s.keys;
    const Kept<T> kept(s, all_kept, n, first);
    BackwardHead<T> a = {
        q.data ? q.at(b, h) : nullptr,
        k.at(b, h),
        v.at(b, h) + first,
        beta.data ? beta.at(b, h) : nullptr,
        q.data ? d_o.at(b, h) + first : nullptr,
        offset(d_last, n * s.keys * s.values + first),
        q.token, k.token, v.token, beta.token, d_o.token,
        s.values,
        kept.states, kept.errors, kept.products,
        s.state(), s.values_pad, s.chunk_errors(), s.chunk_products(), s.every,
        q.data ? dq.at(b, h) : nullptr,
        dk.at(b, h),
        dv.at(b, h) + first,
        dbeta.data ? dbeta.at(b, h) : nullptr,
        offset(d_initial, n * s.keys * s.values + first),
        dq.token, dk.token, dv.token, dbeta.token,
        decay.data ? decay.at(b, h) : nullptr,
        erase.data ? erase.at(b, h) : nullptr,
        decay.token, erase.token,
        ddecay.data ? ddecay.at(b, h) : nullptr,
        derase.data ? derase.at(b, h) : nullptr,
        ddecay.token, derase.token,
        s.writes,
    };
    if (part > 0) {
      T* own = partial + (n * (s.slices - 1) + part - 1) * share();
      a.dq = a.dq ? own : nullptr;
      a.dk = own + s.tokens * K;
      a.dbeta = a.dbeta ? own + 2 * s.tokens * K : nullptr;
      a.dq_ld = a.dk_ld = K;
      a.dbeta_ld = 1;
      if constexpr (GATED) {
        own += share() - s.tokens * (K + decays());
        a.derase = a.derase ? own : nullptr;
        a.ddecay = a.ddecay ? own + s.tokens * K : nullptr;
        a.derase_ld = K;
        a.ddecay_ld = decays();
      }
    }
    return a;
  }
  Index decays() const { return GATES == UNGATED ? 0 : GATES == BY_TOKEN ? 1 : s.keys; }
  Index share() const { return s.tokens * ((GATED ? 3 : 2) * s.keys + 1 + decays()); }

  template <Rule RULE>
  void run() const {
    const Index heads = s.batch * s.heads, tasks = s.tasks();
    const Index numbers = heads * (s.slices - 1) * share();
    const std::unique_ptr<T[]> partial(numbers ? new T[numbers] : nullptr);
    const Index threads = std::max<Index>(1, std::min(s.threads, tasks));
    const Index size = RULE == FWM ? fwm_backward_scratch(s.shape(0), s.every)
                                   : backward_scratch(s.shape(0), s.every) +
                                         (GATED ? gates_scratch<T>(s.shape(0), s.every) : 0);
    const Scratch<T> scratch(threads * size);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (Index i = 0; i < tasks; ++i) {
      const FlushDenormals flush;
      const Index part = i % s.slices;
      T* own = scratch.get() + omp_get_thread_num() * size;
      const BackwardHead<T> a = head(i / s.slices, part, partial.get());
      if constexpr (RULE == FWM) {
        fwm_backward_head(s.shape(part), a, own);
      } else {
        backward_head<T, RULE == DELTA, GATES>(s.shape(part), a, own);
      }
    }
    if (!partial) return;
    // In a fixed order, so that the sums are the same in every run.
#pragma omp parallel for schedule(static) num_threads(s.threads)
    for (Index i = 0; i < heads * s.tokens; ++i) {
      const Index n = i / s.tokens, t = i % s.tokens, K = s.keys;
      const Index b = n / s.heads, h = n % s.heads;
      for (Index part = 1; part < s.slices; ++part) {
        const T* own = partial.get() + (n * (s.slices - 1) + part - 1) * share();
        T* to_k = dk.at(b, h) + t * dk.token;
        for (Index j = 0; j < K; ++j) to_k[j] += own[s.tokens * K + t * K + j];
        if (q.data && t < s.tokens / s.writes) {
          T* to_q = dq.at(b, h) + t * dq.token;
          for (Index j = 0; j < K; ++j) to_q[j] += own[t * K + j];
        }
        if (dbeta.data) dbeta.at(b, h)[t * dbeta.token] += own[2 * s.tokens * K + t];
        if constexpr (!GATED) continue;
        own += share() - s.tokens * (K + decays());
        if (ddecay.data) {
          T* to_decay = ddecay.at(b, h) + t * ddecay.token;
          for (Index j = 0; j < decays(); ++j) to_decay[j] += own[s.tokens * K + t * decays() + j];
        }
        if (!derase.data) continue;
        T* to_erase = derase.at(b, h) + t * derase.token;
        for (Index j = 0; j < K; ++j) to_erase[j] += own[t * K + j];
      }
    }
  }
};

template <class Pass>
int call(const Index* arguments) noexcept {
  return guarded([&] {
    const Pass pass{Arguments(arguments)};
    switch (pass.s.rule) {
      case SUM: return pass.template run<SUM>();
      case DELTA: return pass.template run<DELTA>();
      case FWM:
        if constexpr (!Pass::GATED) return pass.template run<FWM>();
    }
  });
}

}  // namespace
