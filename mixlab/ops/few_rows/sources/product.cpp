// y = residual + f(W unit(x) + bias) for a few rows: unit divides by the root mean square, and f is
// the activation, if there is one.
#include "product.h"

struct Product {
    const void* panels;  // (panels, d_in, 2 LANES)
    const void* bias;    // (panels, 2 LANES) or null
    int64_t d_in, d_out;  // outputs behind f
    double eps;           // of the norm
    int32_t is_normed, activation;
};

extern "C" int lanes() { return LANES; }

extern "C" void product(
    const Product& p, const Real* x, int64_t n_rows, const Real* residual, Real* y, int n_threads) {
    static thread_local std::vector<Real> place;
    const int64_t n_blocks = (n_rows + MAX_ROWS - 1) / MAX_ROWS;
    const int64_t size = (n_rows + n_blocks - 1) / n_blocks;  // rows of a block, but for the last
    Real* blocks = scratch(place, n_rows * p.d_in);
    for (int64_t from = 0; from < n_rows; from += size) {
        const int n = int(std::min(size, n_rows - from));
        const Real* rows[MAX_ROWS];
        Real factors[MAX_ROWS];
        for (int r = 0; r < n; r++) {
            rows[r] = x + (from + r) * p.d_in;
            factors[r] = p.is_normed ? inverse_rms(rows[r], p.d_in, p.eps) : Real(1);
        }
        pack(rows, factors, p.d_in, n, blocks + from * p.d_in);
    }
    const int64_t width = panel_width(p.activation);
    const int64_t n_panels = (p.d_out + width - 1) / width;
#pragma omp parallel for num_threads(n_threads) if (n_threads > 1)
    for (int64_t i = 0; i < n_panels; i++) {
        const Real* panel = static_cast<const Real*>(p.panels) + i * p.d_in * PANEL;
        const Real* bias = p.bias ? static_cast<const Real*>(p.bias) + i * PANEL : nullptr;
        const int64_t n_here = std::min(width, p.d_out - i * width);
        Real out[MAX_ROWS * PANEL];
        for (int64_t from = 0; from < n_rows; from += size) {
            const int n = int(std::min(size, n_rows - from));
            panel_sums(n, blocks + from * p.d_in, panel, p.d_in, bias, out);
            for (int r = 0; r < n; r++) {
                Real* here = out + r * PANEL;
                activate(p.activation, here);
                const int64_t at = (from + r) * p.d_out + i * width;
                if (residual)
                    for (int64_t j = 0; j < n_here; j++) y[at + j] = residual[at + j] + here[j];
                else
                    std::memcpy(y + at, here, n_here * sizeof(Real));
            }
        }
    }
}
