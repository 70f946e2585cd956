// One token of every row through softmax attention, over keys and values that stay in place.
//
// Both halves are products of few rows: of the queries that share keys with these, which lie in
// panels of 2 LANES slots, and of their weights with values, which lie slot by slot. Each row looks
// at as many slots as it has tokens, so rows of different lengths need no mask.
// Shapes: B rows, G heads of keys and values, n queries of each, K head_dim, V width of values, in
//         groups of at most MAX_ROWS queries.
#include <limits>

#include "product.h"

constexpr int64_t STRETCH = 128;  // slots whose values stay near while all queries pass

// Scores of one query to weights that do not add up to 1 yet; their sum.
static Real to_weights(Real* scores, int64_t n) {
    Vec high = Vec{} - std::numeric_limits<Real>::infinity();
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const Vec here = load(scores + i);
        high = here > high ? here : high;
    }
    Real most = high[0];
    for (int lane = 1; lane < LANES; lane++) most = std::max(most, high[lane]);
    for (; i < n; i++) most = std::max(most, scores[i]);
    for (i = 0; i < n; i++) scores[i] = exp_of(scores[i] - most);
    Vec sums{};
    for (i = 0; i + LANES <= n; i += LANES) sums += load(scores + i);
    Real total = sum(sums);
    for (; i < n; i++) total += scores[i];
    return total;
}

// out (n, V) += weights (slots, n) of values (slots, V)
template <int R>
static void add_values(
    const Real* weights, const Real* values, int64_t n_slots, int64_t v_dim, int64_t step,
    Real* out) {
    int64_t c = 0;
    for (; c + PANEL <= v_dim; c += PANEL) {
        Vec sums[R][2];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2; i++) sums[r][i] = load(out + r * v_dim + c + i * LANES);
        multiply<R>(weights, values + c, step, n_slots, sums);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2; i++) store(out + r * v_dim + c + i * LANES, sums[r][i]);
    }
    for (int64_t s = 0; s < n_slots && c < v_dim; s++)
        for (int r = 0; r < R; r++)
            for (int64_t i = c; i < v_dim; i++)
                out[r * v_dim + i] += values[s * step + i] * weights[s * R + r];
}

// What n queries (n, K) find: (n, V). `panel_of` gives the keys of a panel, (K, 2 LANES).
template <class Panels>
static void attend(
    const Real* q, int64_t n, int64_t k_dim, const Panels& panel_of, const Real* values,
    int64_t step, int64_t v_dim, int64_t n_slots, Real* out) {
    static thread_local std::vector<Real> query_place, score_place, weight_place;
    const int64_t n_panels = (n_slots + PANEL - 1) / PANEL, width = n_panels * PANEL;
    Real* queries = scratch(query_place, n * k_dim);
    Real* scores = scratch(score_place, n * width);
    Real* weights = scratch(weight_place, MAX_ROWS * STRETCH);
    const auto size = [n](int64_t from) { return int(std::min<int64_t>(MAX_ROWS, n - from)); };
    for (int64_t from = 0; from < n; from += MAX_ROWS)
        for (int64_t k = 0; k < k_dim; k++)
            for (int r = 0; r < size(from); r++)
                queries[from * k_dim + k * size(from) + r] = q[(from + r) * k_dim + k];
    Real tile[MAX_ROWS * PANEL];
    for (int64_t i = 0; i < n_panels; i++) {
        const Real* panel = panel_of(i);
        for (int64_t from = 0; from < n; from += MAX_ROWS) {
            panel_sums(size(from), queries + from * k_dim, panel, k_dim, nullptr, tile);
            for (int r = 0; r < size(from); r++)
                std::memcpy(
                    scores + (from + r) * width + i * PANEL, tile + r * PANEL,
                    PANEL * sizeof(Real));
        }
    }
    for (int64_t j = 0; j < n; j++) {
        const Real total = to_weights(scores + j * width, n_slots);
        for (int64_t s = 0; s < n_slots; s++) scores[j * width + s] /= total;
    }
    std::fill(out, out + n * v_dim, Real(0));
    for (int64_t first = 0; first < n_slots; first += STRETCH) {
        const int64_t n_here = std::min(STRETCH, n_slots - first);
        for (int64_t from = 0; from < n; from += MAX_ROWS) {
            const int rows = size(from);
            for (int r = 0; r < rows; r++)
                for (int64_t s = 0; s < n_here; s++)
                    weights[s * rows + r] = scores[(from + r) * width + first + s];
            for_rows(rows, [&](auto count) {
                add_values<count()>(
                    weights, values + first * step, n_here, v_dim, step, out + from * v_dim);
            });
        }
    }
}

struct Attention {
    const void* scale;  // (H + G, K) by which normed queries and keys are multiplied, or null
    int64_t n_heads, n_kv_heads, head_dim;
    int64_t rope_dim;  // first channels, which turn in pairs of neighbours
    int64_t window;    // 0: none
    double eps;
    int32_t norms_all;  // over all heads together instead of each
    int32_t is_gated;
};

// Queries and keys (., K) of one row to unit length times their weights, and turned by angles
// (R / 2) of cosine and sine.
static void prepare(const Attention& p, Real* heads, const Real* angles) {
    const int64_t counts[2] = {p.n_heads, p.n_kv_heads}, dim = p.head_dim;
    const Real* scale = static_cast<const Real*>(p.scale);
    for (int part = 0; part < 2; part++) {
        Real* from = heads + (part ? p.n_heads * dim : 0);
        const int64_t n = counts[part] * dim, size = p.norms_all ? n : dim;
        for (int64_t i = 0; scale && i < n; i += size) {
            const Real factor = inverse_rms(from + i, size, p.eps);
            for (int64_t c = i; c < i + size; c++) from[c] *= factor * scale[from - heads + c];
        }
    }
    for (int64_t head = 0; head < counts[0] + counts[1]; head++)
        for (int64_t i = 0; i < p.rope_dim; i += 2) {
            Real* pair = heads + head * dim + i;
            const Real x = pair[0], y = pair[1], cos = angles[i], sin = angles[i + 1];
            pair[0] = x * cos - y * sin;
            pair[1] = y * cos + x * sin;
        }
}

// Keys (rows, G, panels, K, 2 LANES) and values (rows, G, slots, K), and how far apart rows and
// heads of each begin.
struct Cache {
    Real* keys;
    int64_t key_row, key_head;
    Real* values;
    int64_t value_row, value_head;
};

// heads (B, H + 2 G or 2 H + 2 G, K) are queries, keys, values, gates; the first two are changed.
extern "C" void attention(
    const Attention& p, Real* heads, int64_t n_rows, const Real* angles, int64_t angles_step,
    const int64_t* n_seen, const Cache& cache, Real* out, int n_threads) {
    const int64_t dim = p.head_dim, n = p.n_heads / p.n_kv_heads;
    const int64_t n_all = p.n_heads * (p.is_gated ? 2 : 1) + 2 * p.n_kv_heads;
#pragma omp parallel num_threads(n_threads) if (n_threads > 1)
    {
#pragma omp for
        for (int64_t row = 0; row < n_rows; row++)
            prepare(p, heads + row * n_all * dim, angles + row * angles_step);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t row = 0; row < n_rows; row++)
            for (int64_t head = 0; head < p.n_kv_heads; head++) {
                const Real* mine = heads + row * n_all * dim;
                Real* keys = cache.keys + row * cache.key_row + head * cache.key_head;
                Real* values = cache.values + row * cache.value_row + head * cache.value_head;
                const int64_t seen = n_seen[row];
                const int64_t slot = p.window ? seen % p.window : seen;
                const int64_t n_slots = p.window ? std::min(seen + 1, p.window) : seen + 1;
                const Real* key = mine + (p.n_heads + head) * dim;
                Real* place = keys + slot / PANEL * dim * PANEL + slot % PANEL;
                for (int64_t k = 0; k < dim; k++) place[k * PANEL] = key[k];
                std::memcpy(
                    values + slot * dim, key + p.n_kv_heads * dim, dim * sizeof(Real));
                const Real* q = mine + head * n * dim;
                Real* to = out + (row * p.n_heads + head * n) * dim;
                const auto panel_of = [=](int64_t i) { return keys + i * dim * PANEL; };
                attend(q, n, dim, panel_of, values, dim, dim, n_slots, to);
                const Real* gates = q + (p.n_heads + 2 * p.n_kv_heads) * dim;
                for (int64_t i = 0; p.is_gated && i < n * dim; i++) to[i] *= sigmoid(gates[i]);
            }
    }
}

// Queries (B, n, K) over slots (B, slots, K), whose first V channels are values: (B, n, V). Their
// keys are put in panels on the way, since they would be kept twice otherwise.
extern "C" void latent_attention(
    const Real* q, int64_t n_rows, int64_t n, int64_t k_dim, int64_t v_dim, const Real* kept,
    int64_t row_step, const int64_t* n_seen, Real* out, int n_threads) {
#pragma omp parallel for num_threads(n_threads) if (n_threads > 1) schedule(dynamic)
    for (int64_t row = 0; row < n_rows; row++) {
        static thread_local std::vector<Real> place;
        Real* panel = scratch(place, k_dim * PANEL);
        const Real* slots = kept + row * row_step;
        const int64_t n_slots = n_seen[row] + 1;
        const auto panel_of = [=](int64_t i) {
            const int64_t n_here = std::min<int64_t>(PANEL, n_slots - i * PANEL);
            for (int64_t s = 0; s < n_here; s++)
                for (int64_t k = 0; k < k_dim; k++)
                    panel[k * PANEL + s] = slots[(i * PANEL + s) * k_dim + k];
            return panel;
        };
        attend(
            q + row * n * k_dim, n, k_dim, panel_of, slots, k_dim, v_dim, n_slots,
            out + row * n * v_dim);
    }
}
