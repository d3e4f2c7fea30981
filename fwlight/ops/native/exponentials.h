// The exponential function of whole vectors: 1 at 0, 0 where the format's exponent ends, right to
// the last digit or two in between.
#pragma once
#include <limits>

#include "simd.h"

template <class T>
struct Exponential;

template <>
struct Exponential<float> {
  using bits = std::int32_t;
  static constexpr int terms = 8, mantissa = 23, bias = 127;
  static constexpr float lowest = -87.33f, highest = 88.7f, shift = 12582912.0f;  // 1.5 2^23
  static constexpr float ln2 = 0.693359375f, ln2_rest = -2.12194440e-4f;
};

template <>
struct Exponential<double> {
  using bits = std::int64_t;
  static constexpr int terms = 14, mantissa = 52, bias = 1023;
  static constexpr double lowest = -708.3, highest = 709.7, shift = 6755399441055744.0;  // 1.5 2^52
  static constexpr double ln2 = 6.93145751953125e-1, ln2_rest = 1.42860682030941723212e-6;
};

// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, the latter by its power series.
template <class T>
FW_INLINE typename Simd<T>::vec exponential(typename Simd<T>::vec x) {
  using vec = typename Simd<T>::vec;
  using E = Exponential<T>;
  typedef typename E::bits bits __attribute__((vector_size(FW_VECTOR_BYTES)));
  const vec zero{}, all = x;
  x = x < E::lowest ? zero + E::lowest : x;
  x = x > E::highest ? zero + E::highest : x;
  const vec shifted = x * T(1.44269504088896340736) + E::shift, n = shifted - E::shift;
  const vec r = x - n * E::ln2 - n * E::ln2_rest;
  vec sum = zero + 1;
  FW_UNROLL for (int i = E::terms - 1; i > 0; --i) sum = 1 + sum * (r * T(1.0 / i));
  const vec start = zero + E::shift;
  const bits power = (bits)shifted - (bits)start + E::bias;
  const vec found = sum * (vec)(power << E::mantissa);
  const vec over = all > E::highest ? zero + std::numeric_limits<T>::infinity() : found;
  return all < E::lowest ? zero : over;
}
