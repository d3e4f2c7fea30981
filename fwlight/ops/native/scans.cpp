// The C interface of the recurrent cores, and how they run over time: heads in parallel, the state of
// every KEPT-th token kept for the backward pass, which computes those between again.
#include "arguments.h"
#include "denormals.h"
#include "scan_cores.h"

namespace {

constexpr Index KEPT = 16;  // as in scans.py
enum Kind : Index { RECURRENCE, RECURRENT_DELTA, SELF_REFERENCE };

// What one call is told.
template <class T>
struct Scan {
  Index kind, backward, batch, heads, tokens, d, gates, version, threads;
  T eps;
  T* at[24];  // addresses, as scans.py lists them

  explicit Scan(Arguments a)
      : kind(a.number()), backward(a.number()), batch(a.number()), heads(a.number()),
        tokens(a.number()), d(a.number()), gates(a.number()), version(a.number()),
        threads(a.number()), eps(T(a.real())) {
    for (T*& p : at) p = a.pointer<T>();
  }
  Index columns() const { return padded(kind == SELF_REFERENCE ? 3 * d + 4 : d); }
  Index groups() const { return (tokens + KEPT - 1) / KEPT; }

  // Move a state between its tensor and the padded one.
  void pack_state(const T* from, Index rows, Index width, T* to) const {
    pack(from, width, rows, width, to, rows, columns());
  }
  void unpack_state(const T* from, Index rows, Index width, T* to) const {
    unpack(from, columns(), rows, width, to, width);
  }

  template <class Make>
  void run(Make make) const {
    if (batch * heads == 0) return;
    const auto sizes = make(0);
    const Index state = sizes.core.state(), extra = sizes.core.scratch() + sizes.more;
    const Index own = (backward ? KEPT + 3 : 1) * state + extra;
    const Scratch<T> scratch(std::max<Index>(1, threads) * own);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (Index n = 0; n < batch * heads; ++n) {
      const FlushDenormals flush;
      T* mine = scratch.get() + omp_get_thread_num() * own;
      auto head = make(n, mine + own - sizes.more);
      T *kept = at[0] + n * groups() * state, *work = mine + own - extra;
      if (!backward) {
        head.begin(mine);
        for (Index t = 0; t < tokens; ++t) {
          if (at[0] && t % KEPT == 0) std::memcpy(kept + t / KEPT * state, mine, state * sizeof(T));
          head.core.forward(mine, t, work);
        }
        head.end(mine);
        continue;
      }
      T *dstate = mine, *states = mine + state;
      head.begin_backward(dstate);
      for (Index group = groups() - 1; group >= 0; --group) {
        const Index first = group * KEPT, count = std::min(KEPT, tokens - first);
        std::memcpy(states, kept + group * state, state * sizeof(T));
        for (Index i = 0; i < count; ++i) {
          T* next = states + (i + 1) * state;
          std::memcpy(next, states + i * state, state * sizeof(T));
          head.core.forward(next, first + i, work);
        }
        for (Index i = count - 1; i >= 0; --i) {
          head.core.backward(
              states + i * state, states + (i + 1) * state, dstate, first + i, work);
        }
      }
      head.end_backward(dstate);
    }
  }

  // Delta RNN and Delta LSTM. Addresses: kept; z k v beta R h c; o R' h' c'; in the backward pass
  // d_o dR' dh' dc' instead of the last, and dz dk dv dbeta dR dh dc.
  struct Recurrence {
    DeltaRecurrence<T> core;
    Index more;
    const Scan& s;
    Index b, h;

    Index of_gate(Index g) const { return b * s.gates * s.heads + g * s.heads + h; }
    Index of_head() const { return b * s.heads + h; }
    void load(T* const* p, T* state) const {
      const Index d = s.d, columns = core.columns;
      for (Index g = 0; g < s.gates; ++g) {
        T* to = state + g * core.matrix();
        if (p[0]) {
          s.pack_state(p[0] + of_gate(g) * d * d, d, d, to);
        } else {
          std::memset(to, 0, core.matrix() * sizeof(T));
        }
      }
      T* vectors = state + s.gates * core.matrix();
      for (int i = 0; i < 2; ++i) {
        const T* from = p[1 + i] ? p[1 + i] + of_head() * d : nullptr;
        fetch(from, from ? d : 0, vectors + i * columns, columns);
      }
    }
    void save(const T* state, T* const* p) const {
      const Index d = s.d;
      for (Index g = 0; g < s.gates; ++g) {
        s.unpack_state(state + g * core.matrix(), d, d, p[0] + of_gate(g) * d * d);
      }
      const T* vectors = state + s.gates * core.matrix();
      for (int i = 0; i < 2; ++i) {
        if (p[1 + i]) fetch(vectors + i * core.columns, d, p[1 + i] + of_head() * d, d);
      }
    }
    void begin(T* state) const { load(s.at + 5, state); }
    void end(const T* state) const { save(state, s.at + 9); }
    void begin_backward(T* dstate) const { load(s.at + 9, dstate); }
    void end_backward(const T* dstate) const { save(dstate, s.at + 16); }
  };

  Recurrence recurrence(Index n, T* = nullptr) const {
    const Index b = n / heads, h = n % heads;
    Recurrence made{{}, 0, *this, b, h};
    auto& core = made.core;
    core.d = d, core.columns = columns(), core.gates = gates, core.version = version, core.eps = eps;
    for (Index g = 0; g < gates; ++g) {
      const Index at_gate = made.of_gate(g) * tokens;
      core.z[g] = at[1] + at_gate * d, core.k[g] = at[2] + at_gate * d;
      core.v[g] = at[3] + at_gate * d, core.beta[g] = at[4] + at_gate;
      if (!backward) continue;
      core.dz[g] = at[12] + at_gate * d, core.dk[g] = at[13] + at_gate * d;
      core.dv[g] = at[14] + at_gate * d, core.dbeta[g] = at[15] + at_gate;
    }
    core.o = backward ? nullptr : at[8] + made.of_head() * tokens * d;
    core.d_o = backward ? offset(at[8], made.of_head() * tokens * d) : nullptr;
    return made;
  }

  // Recurrent Delta Net. Addresses: kept; q k v b S y; R_q R_k R_v r_b; o S' y'; in the backward
  // pass d_o dS' dy' instead, and dq dk dv db dS dy, dR_q dR_k dR_v dr_b of every sequence.
  struct Delta {
    RecurrentDelta<T> core;
    Index more;
    const Scan& s;
    Index n, h;

    void load(T* const* p, T* state) const {
      const Index d = s.d;
      if (p[0]) {
        s.pack_state(p[0] + n * d * d, d, d, state);
      } else {
        std::memset(state, 0, core.matrix() * sizeof(T));
      }
      fetch(p[1] ? p[1] + n * d : nullptr, p[1] ? d : 0, state + core.matrix(), core.columns);
    }
    void save(const T* state, T* const* p) const {
      const Index d = s.d;
      s.unpack_state(state, d, d, p[0] + n * d * d);
      fetch(state + core.matrix(), d, p[1] + n * d, d);
    }
    void begin(T* state) const { load(s.at + 5, state); }
    void end(const T* state) const { save(state, s.at + 12); }
    void begin_backward(T* dstate) const { load(s.at + 12, dstate); }
    void end_backward(const T* dstate) const {
      save(dstate, s.at + 18);
      for (int i = 0; i < 3; ++i) {
        s.unpack_state(core.dslow + i * core.matrix(), s.d, s.d, s.at[20 + i] + n * s.d * s.d);
      }
    }
  };

  Delta recurrent_delta(Index n, T* more = nullptr) const {
    const Index all = n * tokens, h = n % heads, wide = columns(), matrix = d * wide;
    Delta made{{}, 6 * matrix, *this, n, h};
    auto& core = made.core;
    core.d = d, core.columns = wide;
    core.q = at[1] + all * d, core.k = at[2] + all * d, core.v = at[3] + all * d;
    core.b = at[4] + all, core.r_b = at[10] + h * d;
    if (more) {
      for (int i = 0; i < 3; ++i) pack_state(at[7 + i] + h * d * d, d, d, more + i * matrix);
      core.slow = more, core.dslow = more + 3 * matrix;
      std::memset(core.dslow, 0, 3 * matrix * sizeof(T));
    }
    core.o = backward ? nullptr : at[11] + all * d;
    core.d_o = backward ? offset(at[11], all * d) : nullptr;
    if (backward) {
      core.dq = at[14] + all * d, core.dk = at[15] + all * d, core.dv = at[16] + all * d;
      core.db = at[17] + all, core.dr_b = at[23] + n * d;
      std::memset(core.dr_b, 0, d * sizeof(T));
    }
    return made;
  }

  // Self-referential weights. Addresses: kept; x W; o W'; in the backward pass d_o dW' instead, and
  // dx dW. W holds the columns of all matrices.
  struct Reference {
    SelfReference<T> core;
    Index more;
    const Scan& s;
    Index n;

    Index width() const { return 3 * s.d + 4; }
    void load(const T* p, T* state) const {
      if (p) {
        s.pack_state(p + n * s.d * width(), s.d, width(), state);
      } else {
        std::memset(state, 0, core.state() * sizeof(T));
      }
    }
    void save(const T* state, T* p) const {
      s.unpack_state(state, s.d, width(), p + n * s.d * width());
    }
    void begin(T* state) const { load(s.at[2], state); }
    void end(const T* state) const { save(state, s.at[4]); }
    void begin_backward(T* dstate) const { load(s.at[4], dstate); }
    void end_backward(const T* dstate) const { save(dstate, s.at[6]); }
  };

  Reference self_reference(Index n, T* = nullptr) const {
    const Index all = n * tokens * d;
    Reference made{{}, 0, *this, n};
    made.core.d = d, made.core.columns = columns(), made.core.x = at[1] + all;
    made.core.o = backward ? nullptr : at[3] + all;
    made.core.d_o = backward ? offset(at[3], all) : nullptr;
    made.core.dx = backward ? at[5] + all : nullptr;
    return made;
  }

  void go() const {
    switch (kind) {
      case RECURRENCE: return run([this](Index n, T* w = nullptr) { return recurrence(n, w); });
      case RECURRENT_DELTA:
        return run([this](Index n, T* w = nullptr) { return recurrent_delta(n, w); });
      default: return run([this](Index n, T* w = nullptr) { return self_reference(n, w); });
    }
  }
};

}  // namespace

extern "C" int fwlight_scan(const Index* arguments) {
  return guarded([&] { Scan<FW_REAL>{Arguments(arguments)}.go(); });
}
