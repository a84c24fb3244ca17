// The operations of simd.h as functions over arrays, compiled once for each instruction set, so that their bits can be
// compared.
#include "simd_probe.h"

#include "simd.h"

namespace gemmary::GEMMARY_ISA {

static void unary(int op, const float* in, float* out, int64_t n) {
  for (int64_t i = 0; i + 16 <= n; i += 16) {
    const F32x16 v = load(in + i);
    F32x16 r = v;
    switch (op) {
      case 0: r = exp(v); break;
      case 1: r = tanh(v); break;
      case 2: r = round(v); break;
      case 3: r = sqrt(abs(v)); break;
      case 4: r = to_f32(to_i32(min(max(v, broadcast(-1e9f)), broadcast(1e9f)))); break;
      case 5: r = max(v, broadcast(1.0f)); break;
      case 6: r = min(broadcast(1.0f), v); break;
      case 7: r = select(less(v, broadcast(0.5f)), neg(v), v / broadcast(3.0f)); break;
      case 8: r = broadcast(reduce_add(v)); break;
      case 9: r = broadcast(reduce_max(v)); break;
      case 10: r = fma(v, v, broadcast(-1.0f)) - v; break;
      case 11: r = load_n(in + i, static_cast<int>(i / 16 % 17)); break;
      case 12: {
        uint16_t b[16];
        store_bf16(b, v);
        r = load_bf16(b);
        break;
      }
      case 13: {
        uint16_t h[16];
        std::memcpy(h, in + i, 32);
        r = load_f16(h);
        break;
      }
      case 14: {
        const I32x16 u = bits(v);
        I32x16 s = shl<3>(u) + shr<5>(u) * sar<7>(u) - (u & broadcast_i32(0x0ff0)) + (u | broadcast_i32(5)) +
                   (u ^ broadcast_i32(77));
        s = select(less(s, u), max(s, broadcast_i32(-5)), s) + select(equal(u, s), u, broadcast_i32(1));
        s = s + broadcast_i32(reduce_add(u & broadcast_i32(0xffff)) ^ reduce_max(u)) +
            pair_dot(u & broadcast_i32(0x00ff00ff), broadcast_i32(0x7ffe8001));
        int8_t bytes[16];
        store_i8(bytes, sar<26>(u));
        r = to_f32(s + load_i8(bytes) + load_u8(reinterpret_cast<const uint8_t*>(bytes)));
        break;
      }
    }
    store(out + i, r);
  }
}

}  // namespace gemmary::GEMMARY_ISA

#define GEMMARY_JOIN2(a, b) a##b
#define GEMMARY_JOIN(a, b) GEMMARY_JOIN2(a, b)
void GEMMARY_JOIN(probe_, GEMMARY_ISA)(int op, const float* in, float* out, int64_t n) {
  gemmary::GEMMARY_ISA::unary(op, in, out, n);
}
