// Four neighbouring values in one access, float32 or stored (storage.hpp), in the portable kernel dialect;
// for .cu files. `aligned` says that every place that is accessed so is a multiple of four elements from an
// address that is aligned to four; other places take up to four accesses.
#pragma once

#include "kernels/context/storage.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {

VESAL_DEVICE inline float4 zero4() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }

// Four values of 16 bits.
template <class T>
struct alignas(8) StoredQuad {
  T x, y, z, w;
};

VESAL_DEVICE inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
template <class T>
VESAL_DEVICE float4 load4(const Reader<T>& p) {
  const StoredQuad<T> quad = *reinterpret_cast<const StoredQuad<T>*>(p.pointer);
  return make_float4(widen(quad.x), widen(quad.y), widen(quad.z), widen(quad.w));
}

VESAL_DEVICE inline void store4(float* p, const float4& value) { *reinterpret_cast<float4*>(p) = value; }
template <class T>
VESAL_DEVICE void store4(const Writer<T>& p, const float4& value) {
  *reinterpret_cast<StoredQuad<T>*>(p.pointer) =
      StoredQuad<T>{narrow<T>(value.x), narrow<T>(value.y), narrow<T>(value.z), narrow<T>(value.w)};
}

// The `count` (0 to 4, or more) first of four consecutive values, zeros for the rest.
template <class P>
VESAL_DEVICE float4 load_up_to_4(const P& p, int count, bool aligned) {
  if (aligned && count >= 4) {
    return load4(p);
  }
  float4 value = zero4();
  if (count > 0) value.x = p[0];
  if (count > 1) value.y = p[1];
  if (count > 2) value.z = p[2];
  if (count > 3) value.w = p[3];
  return value;
}
template <class P>
VESAL_DEVICE void store_up_to_4(const P& p, const float4& value, int count, bool aligned) {
  if (aligned && count >= 4) {
    store4(p, value);
    return;
  }
  if (count > 0) p[0] = value.x;
  if (count > 1) p[1] = value.y;
  if (count > 2) p[2] = value.z;
  if (count > 3) p[3] = value.w;
}

// Whether four consecutive elements of a row can be accessed at once.
template <class T>
bool aligned_quads(const T* pointer, int64_t stride) {
  return reinterpret_cast<uintptr_t>(pointer) % (4 * sizeof(T)) == 0 && stride % 4 == 0;
}

}  // namespace vesal::kernels::VESAL_BACKEND
