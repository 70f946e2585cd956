// One token of every row through the convolution and the memories of Gated DeltaNet.
//
// With S the faded memory, r = S^T k what it recalls and e = b (v - r), the new memory is S + k e^T,
// and reading it with q gives S^T q + (k . q) e: the first pass over S recalls for both, the second
// writes, and between them it stays in the nearest cache.
// Shapes: B rows, G key heads, R value heads of each, K head_dim, V width of a value head, W taps,
//         C = 2 G K + G R V channels, in the order q0 k0 q1 k1 ... v.
#include <vector>

#include "numbers.h"

struct DeltaRule {
    const void* taps;   // (W, C) or null
    const void* decay;  // (G R), negative, or null
    const void* dt_bias;
    int64_t n_heads, n_values, head_dim, v_dim;  // G, R, K, V
    int64_t n_taps;                              // W
    double length_eps, norm_eps;
    int32_t is_gated;
    int32_t is_doubled;         // correction strengths up to 2
    int64_t b_at, a_at, g_at;  // where strengths, decays and gates begin in a row
};

// Channels [from, from + n) of the row x and of its tail (W - 1, C), which moves on by one.
static void convolve(
    const DeltaRule& p, const Real* x, Real* tail, int64_t from, int64_t n, int64_t n_channels, Real* out) {
    const Real* taps = static_cast<const Real*>(p.taps) + from;
    const int64_t last = p.n_taps - 1;
    tail += from, x += from;
    if (!p.taps) {
        for (int64_t c = 0; c < n; c++) out[c] = silu(x[c]);
        return;
    }
    for (int64_t c = 0; c < n; c++) out[c] = x[c] * taps[last * n_channels + c];
    for (int64_t w = 0; w < last; w++) {
        Real* here = tail + w * n_channels;
        const Real* next = w + 1 < last ? here + n_channels : x;
        for (int64_t c = 0; c < n; c++) {
            out[c] += here[c] * taps[w * n_channels + c];
            here[c] = next[c];
        }
    }
    for (int64_t c = 0; c < n; c++) out[c] = silu(out[c]);
}

// Some columns, at most 4 LANES, of the memory (K, step) of one value head, and of its output.
static void recall(
    const Real* q, const Real* k, Real overlap, Real fade, Real strength, int64_t k_dim, const Real* v, Real* memory,
    int64_t step, int64_t n, Real* out) {
    constexpr int MOST = 4 * LANES;
    Real for_q[MOST] = {}, for_k[MOST] = {};
    if (n == MOST) {
        Vec a[4] = {}, b[4] = {};
        for (int64_t i = 0; i < k_dim; i++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                const Vec row = load(memory + i * step + c * LANES);
                a[c] += row * q[i], b[c] += row * k[i];
            }
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++)
            store(for_q + c * LANES, a[c]), store(for_k + c * LANES, b[c]);
    } else {
        for (int64_t i = 0; i < k_dim; i++)
            for (int64_t c = 0; c < n; c++) {
                for_q[c] += memory[i * step + c] * q[i];
                for_k[c] += memory[i * step + c] * k[i];
            }
    }
    Real error[MOST];
    for (int64_t c = 0; c < n; c++) {
        error[c] = (v[c] - fade * for_k[c]) * strength;
        out[c] = fade * for_q[c] + overlap * error[c];
    }
    for (int64_t i = 0; i < k_dim; i++)
        for (int64_t c = 0; c < n; c++)
            memory[i * step + c] = fade * memory[i * step + c] + k[i] * error[c];
}

// One row's key head: its q, k and R values.
static void one_head(const DeltaRule& p, const Real* x, int64_t head, Real* tail, Real* memory, Real* out) {
    static thread_local std::vector<Real> place;
    const int64_t k_dim = p.head_dim, v_width = p.n_values * p.v_dim;
    const int64_t n_qk = 2 * p.n_heads * k_dim, n_channels = n_qk + p.n_heads * v_width;
    if (int64_t(place.size()) < 2 * k_dim + v_width) place.resize(2 * k_dim + v_width);
    Real *q = place.data(), *k = q + k_dim, *v = k + k_dim;
    convolve(p, x, tail, 2 * head * k_dim, 2 * k_dim, n_channels, q);
    convolve(p, x, tail, n_qk + head * v_width, v_width, n_channels, v);
    const Real eps = Real(p.length_eps);
    const Real for_q = Real(1) / std::sqrt((dot(q, q, k_dim) + eps) * Real(k_dim));
    const Real for_k = Real(1) / std::sqrt(dot(k, k, k_dim) + eps);
    for (int64_t i = 0; i < k_dim; i++) q[i] *= for_q, k[i] *= for_k;
    const Real overlap = dot(q, k, k_dim);
    for (int64_t r = 0; r < p.n_values; r++) {
        const int64_t i = head * p.n_values + r;
        const Real strength = sigmoid(x[p.b_at + i]) * Real(p.is_doubled ? 2 : 1);
        Real fade = 1;
        if (p.decay) {
            const Real z = x[p.a_at + i] + static_cast<const Real*>(p.dt_bias)[i];
            const Real dt = z > Real(20) ? z : std::log1p(std::exp(z));
            fade = std::exp(dt * static_cast<const Real*>(p.decay)[i]);
        }
        Real* to = out + i * p.v_dim;
        for (int64_t c = 0; c < p.v_dim; c += 4 * LANES)
            recall(
                q, k, overlap, fade, strength, k_dim, v + r * p.v_dim + c,
                memory + r * p.v_dim + c, v_width,
                std::min<int64_t>(4 * LANES, p.v_dim - c), to + c);
        const Real* gate = x + p.g_at + i * p.v_dim;
        const Real unit = Real(1) / std::sqrt(dot(to, to, p.v_dim) / Real(p.v_dim) + Real(p.norm_eps));
        for (int64_t c = 0; c < p.v_dim; c++) to[c] *= p.is_gated ? unit * silu(gate[c]) : unit;
    }
}

// x (B, width) of which rows begin `x_step` apart; memory (rows, G, K, R V); out (B, G R V).
extern "C" void delta_rule(
    const DeltaRule& p, const Real* x, int64_t n_rows, int64_t x_step, Real* tail, Real* memory, Real* out,
    int n_threads) {
    const int64_t v_width = p.n_values * p.v_dim, n_out = p.n_heads * v_width;
    const int64_t n_tail = std::max<int64_t>(0, p.n_taps - 1) * (2 * p.n_heads * p.head_dim + n_out);
    const int64_t n_memory = p.head_dim * v_width;
#pragma omp parallel for collapse(2) num_threads(n_threads) if (n_threads > 1)
    for (int64_t row = 0; row < n_rows; row++)
        for (int64_t head = 0; head < p.n_heads; head++)
            one_head(
                p, x + row * x_step, head, tail + row * n_tail,
                memory + (row * p.n_heads + head) * n_memory, out + row * n_out);
}
