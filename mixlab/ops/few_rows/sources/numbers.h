// Vectors of numbers, as wide as the processor's registers, and the functions of single numbers.
//
// GCC's and Clang's vector types are lowered to whatever the processor has, so there is one source
// for all of them. Real is float or double, as the compiler is told: the second is for tests, which
// can then be as exact as doubles are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

using Real = REAL;

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, MAX_ROWS = 8;  // 32 registers: 8 rows of 2 sums, and to spare
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, MAX_ROWS = 4;  // 16 registers
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, MAX_ROWS = 8;
#else
constexpr int VECTOR_BYTES = 16, MAX_ROWS = 4;
#endif

constexpr int LANES = VECTOR_BYTES / sizeof(Real);

typedef Real Vec __attribute__((vector_size(VECTOR_BYTES)));

static inline Vec load(const Real* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

static inline void store(Real* to, Vec v) {
    std::memcpy(to, &v, sizeof v);
}

static inline Real sum(Vec v) {
    Real parts[LANES];
    store(parts, v);
#pragma GCC unroll 16
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 16
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

static inline Real dot(const Real* a, const Real* b, int64_t n) {
    Vec total{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) total += load(a + i) * load(b + i);
    Real rest = 0;
    for (; i < n; i++) rest += a[i] * b[i];
    return sum(total) + rest;
}

// exp to 2 units in the last place, in operations that a compiler can do for a vector at once.
// Arguments are kept within what float can hold: 1e-38 and 2e38 instead of 0 and infinity.
static inline float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x;  // a NaN passes both
    x = x > 88.0f ? 88.0f : x;
    const float n = std::floor(x * 1.44269504f + 0.5f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    float p = 1.9875691500e-4f;  // Cephes, expf
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

static inline double exp_of(double x) { return std::exp(x); }

static inline Real sigmoid(Real x) {
    return Real(1) / (Real(1) + exp_of(-x));
}

static inline Real silu(Real x) {
    return x / (Real(1) + exp_of(-x));
}
