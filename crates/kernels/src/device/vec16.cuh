// Elements of bf16 or f32 as floats, sixteen bytes at a time where their rows allow it.
#pragma once

#include "device.cuh"

// How many elements sixteen bytes hold.
template <typename T>
constexpr uint32_t VEC16_LEN = 16 / sizeof(T);

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return bf16_to_float(x); }
DEVICE void from_float(float& to, float x) { to = x; }
DEVICE void from_float(bf16& to, float x) { to = float_to_bf16(x); }

DEVICE uint32_t float_to_bits(float x) {
  union {
    float value;
    uint32_t bits;
  } both = {x};
  return both.bits;
}

// By value: of a reference to memory, nvcc makes four loads of four bytes each.
DEVICE void unpack(float (&values)[4], Vec16 v) {
  for (int i = 0; i < 4; ++i) values[i] = bits_to_float(v.words[i]);
}

DEVICE void unpack(float (&values)[8], Vec16 v) {
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = low_bf16(v.words[i]);
    values[2 * i + 1] = high_bf16(v.words[i]);
  }
}

DEVICE Vec16 pack(const float (&values)[4]) {
  Vec16 v;
  for (int i = 0; i < 4; ++i) v.words[i] = float_to_bits(values[i]);
  return v;
}

DEVICE Vec16 pack(const float (&values)[8]) {
  Vec16 v;
  for (int i = 0; i < 4; ++i) v.words[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
  return v;
}

// Reads the `len` (1 or more) elements that are left of a row from `from` on, as many as sixteen bytes hold; what is beyond
// the row becomes 0. `aligned`: rows are whole numbers of aligned sixteen bytes.
template <typename T>
DEVICE void load_floats(float (&values)[VEC16_LEN<T>], const T* from, uint32_t len, bool aligned) {
  if (aligned) {
    unpack(values, *(const Vec16*)from);
    return;
  }
  for (uint32_t i = 0; i < VEC16_LEN<T>; ++i) values[i] = i < len ? to_float(from[i]) : 0.0f;
}

// Writes, rounded to the nearest even, what `load_floats` would read.
template <typename T>
DEVICE void store_floats(T* to, const float (&values)[VEC16_LEN<T>], uint32_t len, bool aligned) {
  if (aligned) {
    *(Vec16*)to = pack(values);
    return;
  }
  for (uint32_t i = 0; i < VEC16_LEN<T>; ++i) {
    if (i < len) from_float(to[i], values[i]);
  }
}
