// What a call is told: one array of 64-bit integers (the rule, sizes, addresses, strides).
#pragma once
#include "shape.h"

#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
#endif

// Returns whether memory ran out.
template <class F>
inline int guarded(F f) noexcept {
  try {
    f();
    return 0;
  } catch (...) {
    return 1;
  }
}

// As in kernels.py. The last is FWM, its first write projected too.
enum Rule : Index { SUM, DELTA, FWM, FWM_PROJECTED };

class Arguments {
 public:
  explicit Arguments(const Index* p) : p_(p) {}
  Index number() { return *p_++; }
  double real() {
    double value;
    std::memcpy(&value, p_++, sizeof value);
    return value;
  }
  template <class T>
  T* pointer() {
    return reinterpret_cast<T*>(*p_++);
  }
  template <class T>
  Sequence<T> sequence() {
    T* data = pointer<T>();
    const Index b = number(), h = number(), t = number();
    return {data, b, h, t};
  }
  // The same where the last stride, which is not needed, is told too.
  template <class T>
  Sequence<T> vectors() {
    const Sequence<T> found = sequence<T>();
    number();
    return found;
  }

 private:
  const Index* p_;
};

struct Sizes {
  Index batch, heads, tokens, keys, values, every, rule, threads;
  Index writes;  // of one token of queries: the last one is read
  Index keys_pad, values_pad, slices, slice;  // `slice`: columns of each slice but the last
  bool projects_first;  // of the FWM rule: also the write into an empty memory

  explicit Sizes(Arguments& a)
      : batch(a.number()), heads(a.number()), tokens(a.number()), keys(a.number()),
        values(a.number()), every(a.number()), rule(a.number()), threads(a.number()),
        writes(a.number()), projects_first(rule == FWM_PROJECTED) {
    if (projects_first) rule = FWM;
    keys_pad = (keys + PAD - 1) / PAD * PAD;
    values_pad = (values + PAD - 1) / PAD * PAD;
    // Heads share the threads; where there are fewer, each is cut into slices of columns, which
    // the norm of the FWM rule ties together.
    const Index blocks = values_pad / PAD;
    const Index free = threads / std::max<Index>(1, batch * heads);
    const Index wanted = rule == FWM ? 1 : std::max<Index>(1, std::min(blocks, free));
    slice = (blocks + wanted - 1) / wanted * PAD;
    slices = (values_pad + slice - 1) / slice;
  }
  Index chunks() const { return (tokens + CHUNK - 1) / CHUNK; }
  Index groups() const { return (chunks() + every - 1) / every; }
  Index tasks() const { return batch * heads * slices; }

  // How many numbers the forward pass keeps of a head, in this order and as in kernels.py: a state
  // of every group; of every chunk what was missing, and the sizes n_t under the FWM rule; of every
  // chunk products. Nothing in them depends on the slices, whose number may change in between.
  Index state() const { return keys_pad * values_pad; }
  Index chunk_errors() const { return rule == SUM ? 0 : (values_pad + (rule == FWM)) * CHUNK; }
  Index chunk_products() const {
    return rule == FWM ? 0 : CHUNK * CHUNK * (1 + (rule == DELTA && sizeof(FW_REAL) < sizeof(double)));
  }
  Index kept() const {
    return groups() * state() + chunks() * (chunk_errors() + chunk_products());
  }
  Shape shape(Index part) const {
    const Index first = part * slice;
    const Index columns = std::min(slice, values_pad - first);
    return {tokens, keys, keys_pad, std::min(columns, values - first), columns};
  }
};
