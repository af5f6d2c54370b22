// The GPU's side. No header of the toolkit is needed: conversions are inline PTX.

#define ROPEJIT_INLINE static __device__ __forceinline__
#define ROPEJIT_METHOD __device__ __forceinline__
#define ROPEJIT_CUDA 1

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif

ROPEJIT_INLINE float f16_to_f32(unsigned short word) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(word));
    return x;
}

ROPEJIT_INLINE unsigned short f32_to_f16(float x) {
    unsigned short word;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(word) : "f"(x));
    return word;
}

ROPEJIT_INLINE float ropejit_bits_f32(unsigned int bits) { return __uint_as_float(bits); }
ROPEJIT_INLINE unsigned int ropejit_f32_bits(float x) { return __float_as_uint(x); }
