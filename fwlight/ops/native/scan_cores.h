// Recurrent cores of one head: what they do at one token, and how that differentiates. Letters and
// equations as in fwlight/ops/recurrent_scans.py, which is their specification.
//
// A core has a state, matrices and then vectors, all padded. `forward` takes it to the next token in
// place; `backward` is given the states before and after, and turns the gradient of the latter into
// that of the former.
#pragma once
#include "scan_steps.h"

// One head of a tensor [B, H, T, D], contiguous; null where there is none.
template <class T>
FW_INLINE T* token(T* head, Index t, Index size) {
  return head ? head + t * size : nullptr;
}

// Delta RNN and, with three gates, Delta LSTM.
template <class T>
struct DeltaRecurrence {
  static constexpr Index MOST = 3;
  Index d, columns, gates, version;
  T eps;
  // By gates; of the gradients there are none in the forward pass.
  const T *z[MOST], *k[MOST], *v[MOST], *beta[MOST];
  T *dz[MOST], *dk[MOST], *dv[MOST], *dbeta[MOST];
  T* o;
  const T* d_o;

  bool lstm() const { return gates == 3; }
  Index matrix() const { return d * columns; }
  Index state() const { return gates * matrix() + 2 * columns; }
  Index scratch() const { return 16 * columns; }
  bool plain() const { return version == 1; }  // h is read with as it is

  void open(const T* h, T* s) const {
    plain() ? fetch(h, d, s, columns) : softmax(h, d, columns, eps, s);
  }
  // a_g = z_g + R_g^T s, after the gate's nonlinearity.
  void gate(const T* R, Index g, Index t, const T* s, T* a) const {
    read_rows(R + g * matrix(), d, columns, s, a);
    const T* given = token(z[g], t, d);
    for (Index i = 0; i < d; ++i) a[i] += given[i];
    if (lstm() && (g != 1 || version != 4)) sigmoids(a, d, columns);
  }

  void forward(T* state, Index t, T* w) const {
    T *h = state + gates * matrix(), *c = h + columns;
    T *key = w, *value = w + columns, *x = w + 2 * columns, *s = w + 3 * columns;
    T* a = w + 4 * columns;
    open(h, s);
    for (Index g = 0; g < gates; ++g) {
      fetch(token(k[g], t, d), d, key, columns);
      fetch(token(v[g], t, d), d, value, columns);
      delta_write(state + g * matrix(), d, columns, key, value, beta[g][t], x);
      gate(state, g, t, s, a + g * columns);
    }
    if (!lstm()) {
      plain() ? softmax(a, d, columns, T(0), h) : fetch(a, d, h, columns);
    } else {
      const T *i = a, *u = a + columns, *out = a + 2 * columns;
      for (Index j = 0; j < d; ++j) {
        c[j] = i[j] * u[j] + (1 - i[j]) * c[j];
        h[j] = c[j] * out[j];
      }
      if (version == 1) softmax(h, d, columns, T(0), h);
      if (version == 3) {
        const T* given = token(z[1], t, d);
        for (Index j = 0; j < d; ++j) h[j] += given[j];
      }
    }
    if (o) fetch(h, d, token(o, t, d), d);
  }

  void backward(const T* before, const T* after, T* dstate, Index t, T* w) const {
    const T *h = before + gates * matrix(), *c = h + columns;
    const T *h_new = after + gates * matrix(), *c_new = h_new + columns;
    T *dh = dstate + gates * matrix(), *dc = dh + columns;
    T *key = w, *value = w + columns, *x = w + 2 * columns, *s = w + 3 * columns;
    T *a = w + 4 * columns, *da = w + 7 * columns, *ds = w + 10 * columns;
    T *dkey = w + 11 * columns, *dvalue = w + 12 * columns;
    const T* given = token(d_o, t, d);
    for (Index j = 0; j < d && given; ++j) dh[j] += given[j];
    open(h, s);
    for (Index j = 0; j < 3 * columns; ++j) da[j] = T(0);
    if (!lstm()) {
      plain() ? softmax_backward(h_new, dh, d, columns, da) : fetch(dh, d, da, columns);
    } else {
      for (Index g = 0; g < gates; ++g) gate(after, g, t, s, a + g * columns);
      const T *i = a, *u = a + columns, *out = a + 2 * columns;
      T* dz_u = token(dz[1], t, d);
      for (Index j = 0; j < d; ++j) dz_u[j] = version == 3 ? dh[j] : T(0);
      if (version == 1) softmax_backward(h_new, dh, d, columns, dh);
      for (Index j = 0; j < d; ++j) {
        const T d_out = dh[j] * c_new[j], d_c = dc[j] + dh[j] * out[j];
        const T d_i = d_c * (u[j] - c[j]), d_u = d_c * i[j];
        dc[j] = d_c * (1 - i[j]);
        da[j] = d_i * i[j] * (1 - i[j]);
        da[columns + j] = version == 4 ? d_u : d_u * u[j] * (1 - u[j]);
        da[2 * columns + j] = d_out * out[j] * (1 - out[j]);
      }
    }
    for (Index j = 0; j < columns; ++j) ds[j] = T(0);
    for (Index g = 0; g < gates; ++g) {
      T *dR = dstate + g * matrix(), *da_g = da + g * columns;
      T* to = token(dz[g], t, d);
      for (Index j = 0; j < d; ++j) to[j] = da_g[j] + (lstm() && g == 1 ? to[j] : T(0));
      add_columns(after + g * matrix(), d, columns, da_g, T(1), ds);
      add_outer(dR, d, columns, s, da_g, T(1));
      fetch(token(k[g], t, d), d, key, columns);
      fetch(token(v[g], t, d), d, value, columns);
      for (Index j = 0; j < columns; ++j) dkey[j] = T(0);
      delta_write_backward(
          before + g * matrix(), dR, d, columns, key, value, beta[g][t], x, dvalue, dkey,
          dbeta[g][t]);
      fetch(dkey, d, token(dk[g], t, d), d);
      fetch(dvalue, d, token(dv[g], t, d), d);
    }
    plain() ? fetch(ds, d, dh, columns) : softmax_backward(s, ds, d, columns, dh);
  }
};

// Recurrent Delta Net. R_q, R_k, R_v are padded like the state.
template <class T>
struct RecurrentDelta {
  Index d, columns;
  const T *q, *k, *v, *b;
  T *dq, *dk, *dv, *db;
  const T *slow, *r_b;  // R_q, R_k, R_v
  T *dslow, *dr_b;
  T* o;
  const T* d_o;

  Index matrix() const { return d * columns; }
  Index state() const { return matrix() + columns; }
  Index scratch() const { return 16 * columns; }

  // g, q, k, v and b of a token.
  T emit(const T* y, Index t, T* g, T* query, T* key, T* value) const {
    hyperbolic_tangents(y, d, columns, g);
    T* to[3] = {query, key, value};
    const T* given[3] = {token(q, t, d), token(k, t, d), token(v, t, d)};
    for (int n = 0; n < 3; ++n) {
      read_rows(slow + n * matrix(), d, columns, g, to[n]);
      for (Index i = 0; i < d; ++i) to[n][i] += given[n][i];
      if (n < 2) softmax(to[n], d, columns, T(0), to[n]);
    }
    return 1 / (1 + std::exp(-(b[t] + dot(g, r_b, d))));
  }

  void forward(T* state, Index t, T* w) const {
    T *y = state + matrix(), *g = w, *query = w + columns, *key = w + 2 * columns;
    T *value = w + 3 * columns, *x = w + 4 * columns;
    const T strength = emit(y, t, g, query, key, value);
    delta_write(state, d, columns, key, value, strength, x);
    read_rows(state, d, columns, query, y);
    if (o) fetch(y, d, token(o, t, d), d);
  }

  void backward(const T* before, const T* after, T* dstate, Index t, T* w) const {
    T *dS = dstate, *dy = dstate + matrix();
    T *g = w, *query = w + columns, *key = w + 2 * columns, *value = w + 3 * columns;
    T *x = w + 4 * columns, *dquery = w + 5 * columns, *dkey = w + 6 * columns;
    T *dvalue = w + 7 * columns, *dg = w + 8 * columns;
    const T strength = emit(before + matrix(), t, g, query, key, value);
    const T* given = token(d_o, t, d);
    for (Index j = 0; j < d && given; ++j) dy[j] += given[j];
    for (Index j = 0; j < columns; ++j) dquery[j] = dkey[j] = dg[j] = T(0);
    add_columns(after, d, columns, dy, T(1), dquery);
    add_outer(dS, d, columns, query, dy, T(1));
    T dstrength;
    delta_write_backward(
        before, dS, d, columns, key, value, strength, x, dvalue, dkey, dstrength);
    softmax_backward(query, dquery, d, columns, dquery);
    softmax_backward(key, dkey, d, columns, dkey);
    const T dlogit = dstrength * strength * (1 - strength);
    const T* gradients[3] = {dquery, dkey, dvalue};
    T* to[3] = {token(dq, t, d), token(dk, t, d), token(dv, t, d)};
    for (int n = 0; n < 3; ++n) {
      fetch(gradients[n], d, to[n], d);
      add_columns(slow + n * matrix(), d, columns, gradients[n], T(1), dg);
      add_outer(dslow + n * matrix(), d, columns, g, gradients[n], T(1));
    }
    db[t] = dlogit;
    for (Index i = 0; i < d; ++i) {
      dr_b[i] += dlogit * g[i];
      dy[i] = (dg[i] + dlogit * r_b[i]) * (1 - g[i] * g[i]);
    }
  }
};

// Self-referential weights: the columns of one matrix are those of W_y, W_q, W_k and W_b.
template <class T>
struct SelfReference {
  static constexpr Index STRENGTHS = 4;
  Index d, columns;  // columns hold 3 d + STRENGTHS
  const T* x;
  T* dx;
  T* o;
  const T* d_o;

  Index state() const { return d * columns; }
  Index scratch() const { return 8 * columns; }
  Index column_of(Index m) const { return m * d; }
  Index end_of(Index m) const { return m == 3 ? 3 * d + STRENGTHS : (m + 1) * d; }

  // Everything that is read with x; q - k, k and the strengths of every column.
  void read(const T* W, const T* from, T* all, T* q, T* k, T* e, T* b) const {
    const Index wide = padded(d);
    read_rows(W, d, columns, from, all);
    softmax(all + d, d, wide, T(0), q);
    softmax(all + 2 * d, d, wide, T(0), k);
    for (Index i = 0; i < d; ++i) e[i] = q[i] - k[i];
    for (Index m = 0; m < STRENGTHS; ++m) {
      const T strength = 1 / (1 + std::exp(-all[3 * d + m]));
      for (Index j = column_of(m); j < end_of(m); ++j) b[j] = strength;
    }
    for (Index j = end_of(3); j < columns; ++j) b[j] = T(0);
  }

  void forward(T* W, Index t, T* w) const {
    T *all = w, *q = w + columns, *k = w + 2 * columns, *e = w + 3 * columns;
    T *b = w + 4 * columns, *r = w + 5 * columns;
    read(W, token(x, t, d), all, q, k, e, b);
    read_rows(W, d, columns, e, r);
    for (Index j = 0; j < columns; ++j) r[j] *= b[j];
    add_outer(W, d, columns, k, r, T(1));
    if (o) fetch(all, d, token(o, t, d), d);
  }

  void backward(const T* W, const T*, T* dW, Index t, T* w) const {
    T *all = w, *q = w + columns, *k = w + 2 * columns, *e = w + 3 * columns;
    T *b = w + 4 * columns, *r = w + 5 * columns, *du = w + 6 * columns, *dall = w + 7 * columns;
    T* dk = all;  // what was read is not needed once it is opened
    const T *from = token(x, t, d), *given = token(d_o, t, d);
    read(W, from, all, q, k, e, b);
    read_rows(W, d, columns, e, r);
    read_rows(dW, d, columns, k, du);
    for (Index j = 0; j < columns; ++j) dall[j] = dk[j] = T(0);
    for (Index m = 0; m < STRENGTHS; ++m) {
      const Index first = column_of(m), n = end_of(m) - first;
      const T strength = b[first];
      dall[3 * d + m] = dot(du + first, r + first, n) * strength * (1 - strength);
    }
    for (Index j = 0; j < columns; ++j) r[j] *= b[j], du[j] *= b[j];
    add_columns(dW, d, columns, r, T(1), dk);
    T* de = r;  // of q - k
    add_outer(dW, d, columns, e, du, T(1));
    for (Index i = 0; i < columns; ++i) de[i] = T(0);
    add_columns(W, d, columns, du, T(1), de);
    for (Index i = 0; i < d; ++i) dk[i] -= de[i];
    softmax_backward(q, de, d, d, dall + d);
    softmax_backward(k, dk, d, d, dall + 2 * d);
    for (Index i = 0; i < d; ++i) dall[i] = given ? given[i] : T(0);
    T* to = token(dx, t, d);
    for (Index i = 0; i < d; ++i) to[i] = T(0);
    add_columns(W, d, columns, dall, T(1), to);
    add_outer(dW, d, columns, from, dall, T(1));
  }
};
