// What the kernels take from the machine beyond plain C++: memory accesses, fp16, shared memory.
//
// Everything that differs between NVRTC and the CPU emulation of the tests stands here and nowhere
// else. The emulation defines CUDA_CPU and brings functions of the same names, which also check
// alignment and count bytes; so kernels reach global memory only through read, read_fresh and write.
// No CUDA header is included: a Jetson with NVRTC alone can compile.
#pragma once

using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;
using fp16 = unsigned short;  // the bits of an IEEE half

constexpr u32 ALL_LANES = 0xffffffffu;

#ifndef CUDA_CPU

#define SHARED(TYPE, name) __shared__ TYPE name

// Memory that no thread writes while the kernel runs.
template <class T> __device__ __forceinline__ T read(const T* address) { return __ldg(address); }

// Memory that another block of this launch wrote: past the L1 cache, which is not coherent.
template <class T> __device__ __forceinline__ T read_fresh(const T* address) { return __ldcg(address); }

template <class T> __device__ __forceinline__ void write(T* address, T value) { *address = value; }

__device__ __forceinline__ float to_float(fp16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ fp16 to_fp16(float value) {
  fp16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

#endif

__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ float negative_infinity() { return __int_as_float(0xff800000); }
