// IEEE half precision from its bits and back, rounding to nearest even as the hardware does.
#pragma once

#include <bit>
#include <cstdint>

inline float to_float(unsigned short half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000) << 16;
  // The exponents' biases differ by 112; the product is exact, also for denormals.
  const float magnitude = std::bit_cast<float>(std::uint32_t(half & 0x7fff) << 13) * 0x1p112f;
  std::uint32_t bits = std::bit_cast<std::uint32_t>(magnitude);
  if (magnitude >= 65536.0f) bits |= 0x7f800000;  // infinity and NaN
  return std::bit_cast<float>(bits | sign);
}

inline unsigned short to_fp16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;  // NaN, as cvt.rn.f16.f32 makes it
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // A denormal half counts steps of 2^-24, as the floats from 0.5 do.
    const float steps = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | (std::bit_cast<std::uint32_t>(steps) - 0x3f000000);
  }
  const std::uint32_t odd = magnitude >> 13 & 1;
  return sign | ((magnitude - (112u << 23) + 0xfff + odd) >> 13);
}
