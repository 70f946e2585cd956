// Each row through the experts that it has chosen: residual + sum of weight * down(f(up unit(x))).
//
// Rows are put together by expert, and every chosen expert's weights are read once. The second
// product goes panel by panel of the outputs, so that no two threads add to the same number.
#include "product.h"

struct Experts {
    const void* up;    // (experts, panels, d_model, 2 LANES)
    const void* down;  // (experts, panels, d_expert, 2 LANES)
    int64_t n_experts, d_model, d_expert;
    double eps;
    int32_t is_normed, activation;
};

// Rows of one expert that go together; their places among all choices, sorted by expert.
struct Block {
    int64_t expert, from;
    int n;
};

// All choices in the order of their experts, and how they are cut into blocks.
struct Order {
    std::vector<int64_t> starts, choices;
    std::vector<Block> blocks;

    void sort(const int64_t* chosen, int64_t n_choices, int64_t n_experts) {
        starts.assign(n_experts + 1, 0);
        choices.resize(n_choices);
        blocks.clear();
        for (int64_t i = 0; i < n_choices; i++) starts[chosen[i] + 1]++;
        for (int64_t e = 0; e < n_experts; e++) {
            starts[e + 1] += starts[e];
            for (int64_t from = starts[e]; from < starts[e + 1]; from += MAX_ROWS)
                blocks.push_back({e, from, int(std::min<int64_t>(MAX_ROWS, starts[e + 1] - from))});
        }
        for (int64_t i = 0; i < n_choices; i++) choices[starts[chosen[i]]++] = i;
    }
};

extern "C" void experts(
    const Experts& p, const Real* x, int64_t n_rows, const int64_t* chosen, const Real* weights,
    int64_t n_active, const Real* residual, Real* y, int n_threads) {
    static thread_local Order order_place;
    static thread_local std::vector<Real> inputs_place, hidden_place;
    Order& order = order_place;
    order.sort(chosen, n_rows * n_active, p.n_experts);
    Real* inputs = scratch(inputs_place, n_rows * n_active * p.d_model);
    Real* hidden = scratch(hidden_place, n_rows * n_active * p.d_expert);
    for (const Block& b : order.blocks) {
        const Real* rows[MAX_ROWS];
        Real factors[MAX_ROWS];
        for (int r = 0; r < b.n; r++) {
            rows[r] = x + order.choices[b.from + r] / n_active * p.d_model;
            factors[r] = p.is_normed ? inverse_rms(rows[r], p.d_model, p.eps) : Real(1);
        }
        pack(rows, factors, p.d_model, b.n, inputs + b.from * p.d_model);
    }
    const int64_t width = panel_width(p.activation);
    const int64_t n_up = (p.d_expert + width - 1) / width;
    const int64_t n_down = (p.d_model + PANEL - 1) / PANEL;
    const int64_t n_blocks = int64_t(order.blocks.size());
    const Block* blocks = order.blocks.data();
    const int64_t* choices = order.choices.data();
#pragma omp parallel num_threads(n_threads) if (n_threads > 1)
    {
        Real out[MAX_ROWS * PANEL];
#pragma omp for collapse(2)
        for (int64_t j = 0; j < n_blocks; j++)
            for (int64_t i = 0; i < n_up; i++) {
                const Block& b = blocks[j];
                const Real* panel = static_cast<const Real*>(p.up)
                    + (b.expert * n_up + i) * p.d_model * PANEL;
                panel_sums(b.n, inputs + b.from * p.d_model, panel, p.d_model, nullptr, out);
                Real* here = hidden + b.from * p.d_expert + i * width * b.n;  // (d_expert, R)
                const int64_t n_here = std::min(width, p.d_expert - i * width);
                for (int r = 0; r < b.n; r++) {
                    Real* row = out + r * PANEL;
                    activate(p.activation, row);
                    const Real weight = weights[choices[b.from + r]];
                    for (int64_t f = 0; f < n_here; f++) here[f * b.n + r] = row[f] * weight;
                }
            }
#pragma omp for
        for (int64_t i = 0; i < n_down; i++) {
            const int64_t n_here = std::min<int64_t>(PANEL, p.d_model - i * PANEL);
            for (int64_t row = 0; row < n_rows; row++)
                std::memcpy(
                    y + row * p.d_model + i * PANEL, residual + row * p.d_model + i * PANEL,
                    n_here * sizeof(Real));
            for (int64_t j = 0; j < n_blocks; j++) {
                const Block& b = blocks[j];
                const Real* panel = static_cast<const Real*>(p.down)
                    + (b.expert * n_down + i) * p.d_expert * PANEL;
                panel_sums(b.n, hidden + b.from * p.d_expert, panel, p.d_expert, nullptr, out);
                for (int r = 0; r < b.n; r++) {
                    Real* to = y + choices[b.from + r] / n_active * p.d_model + i * PANEL;
                    for (int64_t k = 0; k < n_here; k++) to[k] += out[r * PANEL + k];
                }
            }
        }
    }
}
