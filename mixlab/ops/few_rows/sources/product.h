// Products of a few rows with weights that lie in panels.
//
// A panel holds what two vectors of outputs need, input by input: (d_in, 2 LANES). Reading it from
// one end to the other, every number that comes from memory meets all rows at once.
// Shapes: R rows of a block, at most MAX_ROWS; blocks of inputs lie as (d_in, R).
#pragma once

#include <type_traits>
#include <vector>

#include "numbers.h"

constexpr int PANEL = 2 * LANES;
constexpr int AHEAD = 32;  // inputs by which memory is asked for early

// Numbers that outlive a call, so that a step asks for no memory.
static inline Real* scratch(std::vector<Real>& place, int64_t n) {
    if (int64_t(place.size()) < n) place.resize(n);
    return place.data();
}

// 1 / root mean square of n numbers.
static inline Real inverse_rms(const Real* x, int64_t n, double eps) {
    return Real(1) / std::sqrt(dot(x, x, n) / Real(n) + Real(eps));
}

// Rows from anywhere, each by a factor of its own, to a block (d_in, R).
static inline void pack(const Real* const* rows, const Real* factors, int64_t d_in, int n, Real* block) {
    for (int64_t k = 0; k < d_in; k++)
        for (int r = 0; r < n; r++) block[k * n + r] = rows[r][k] * factors[r];
}

// sums += block^T panel, for a panel whose inputs are `step` numbers apart.
template <int R>
static inline __attribute__((always_inline)) void multiply(
    const Real* __restrict block, const Real* __restrict panel, int64_t step, int64_t d_in,
    Vec (&sums)[R][2]) {
    for (int64_t k = 0; k < d_in; k++) {
        const Real* here = panel + k * step;
        if (R >= 4) {  // fewer rows wait for memory in any case
            __builtin_prefetch(here + AHEAD * step);
            __builtin_prefetch(here + AHEAD * step + LANES);
        }
        const Vec first = load(here), second = load(here + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            sums[r][0] += first * block[k * R + r];
            sums[r][1] += second * block[k * R + r];
        }
    }
}

// Call f with a number of rows as a constant, for which it then is compiled.
template <class F>
static inline void for_rows(int n_rows, const F& f) {
    switch (n_rows) {
        case 1: return f(std::integral_constant<int, 1>{});
        case 2: return f(std::integral_constant<int, 2>{});
        case 3: return f(std::integral_constant<int, 3>{});
        case 4: return f(std::integral_constant<int, 4>{});
    }
    if constexpr (MAX_ROWS > 4) switch (n_rows) {
        case 5: return f(std::integral_constant<int, 5>{});
        case 6: return f(std::integral_constant<int, 6>{});
        case 7: return f(std::integral_constant<int, 7>{});
        case 8: return f(std::integral_constant<int, 8>{});
    }
}

// What a panel (d_in, 2 LANES) gives for the rows of a block, (R, 2 LANES), added to `start`
// (2 LANES), if there is one.
static __attribute__((noinline)) void panel_sums(
    int n_rows, const Real* block, const Real* panel, int64_t d_in, const Real* start, Real* out) {
    for_rows(n_rows, [=](auto count) {
        constexpr int R = count();
        Vec sums[R][2];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2; i++) sums[r][i] = start ? load(start + i * LANES) : Vec{};
        multiply<R>(block, panel, PANEL, d_in, sums);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2; i++) store(out + r * PANEL + i * LANES, sums[r][i]);
    });
}

enum Activation : int32_t { NONE = 0, SWIGLU = 1, SILU = 2 };

// In place; SwiGLU of a panel of as many gates as ups leaves half of it.
static inline void activate(int32_t activation, Real* out) {
    if (activation == SWIGLU)
        for (int i = 0; i < LANES; i++) out[i] = silu(out[i]) * out[LANES + i];
    if (activation == SILU)
        for (int i = 0; i < PANEL; i++) out[i] = silu(out[i]);
}

// Outputs that a panel leaves.
static inline int64_t panel_width(int32_t activation) {
    return activation == SWIGLU ? LANES : PANEL;
}
