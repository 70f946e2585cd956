"""The kernels as objects that hold weights and settings; see the package.

All tensors are on the CPU, contiguous, and in one dtype, float32 or float64.
Shapes: B rows, D d_in, F d_out or expert width, E experts, k experts per row, S slots, H query
        heads, G heads of keys and values, K head_dim, V value width, L lanes of a vector.
"""

import ctypes
from ctypes import byref, c_double, c_int, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from mixlab.ops.few_rows.library import load
from mixlab.ops.moe import Activation

ACTIVATIONS: dict[Activation | None, int] = {None: 0, "swiglu": 1, "silu": 2}
PARALLEL_FROM = 2**19
"""Multiplications from which on several threads are worth waking."""


def _n_threads(n_products: int) -> int:
    return torch.get_num_threads() if n_products >= PARALLEL_FROM else 1


def _function(library: ctypes.CDLL, name: str, n_arguments: str):
    """A kernel, whose arguments are given by a letter each: pointer, number, or int."""
    kinds = {"p": c_void_p, "n": c_int64, "i": c_int}
    function = library[name]  # its own object, unlike an attribute
    function.argtypes, function.restype = [kinds[letter] for letter in n_arguments], None
    return function


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def in_panels(weight: Tensor, n_lanes: int, *, pairs: bool) -> Tensor:
    """(..., F, D) as (..., panels, D, 2 L): inputs first, for 2 L outputs at a time.

    With `pairs` the first half of F are gates of the second, and L of each make a panel.
    """
    parts = weight.chunk(2, dim=-2) if pairs else (weight,)
    width = n_lanes * 2 // len(parts)
    n_panels = -(-parts[0].shape[-2] // width)
    places = weight.new_zeros(*weight.shape[:-2], n_panels, weight.shape[-1], 2 * n_lanes)
    for i, part in enumerate(parts):
        n_more = n_panels * width - part.shape[-2]
        whole = torch.nn.functional.pad(part, (0, 0, 0, n_more)).unflatten(-2, (n_panels, width))
        places[..., i * width : (i + 1) * width] = whole.mT
    return places


class _Product(ctypes.Structure):
    _fields_ = [
        ("panels", c_void_p), ("bias", c_void_p), ("d_in", c_int64), ("d_out", c_int64),
        ("eps", c_double), ("is_normed", c_int32), ("activation", c_int32),
    ]  # fmt: skip


class ProductKernel:
    """x -> f(W unit(x) + bias) for W (F, D); f is the activation, if any, over both halves of F if
    it is gated; unit divides a row by its root mean square, if there is an `eps`."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, eps: float | None = None,
        activation: Activation | None = None, library: ctypes.CDLL | None = None,
    ) -> None:  # fmt: skip
        assert weight.device.type == "cpu", "kernels of a CPU"
        library = library or load(weight.dtype)
        n_lanes = library.lanes()
        gated = activation == "swiglu"
        self.d_out = weight.shape[0] // (2 if gated else 1)
        self._n_products = weight.numel()
        self._panels = in_panels(weight, n_lanes, pairs=gated)
        self._bias = None if bias is None else in_panels(bias[:, None], n_lanes, pairs=gated)
        self._given = _Product(
            self._panels.data_ptr(), _pointer(self._bias), weight.shape[1], self.d_out,
            eps or 0.0, eps is not None, ACTIVATIONS[activation],
        )  # fmt: skip
        self._here = byref(self._given)
        self._run = _function(library, "product", "ppnppi")

    def __call__(self, x: Tensor) -> Tensor:
        """(B, D) to (B, F), or F / 2 behind a gated activation."""
        return self._add(x, None)

    def add_to(self, stream: Tensor, y: Tensor) -> Tensor:
        """The stream (B, F) with what y (B, D) gives added."""
        return self._add(y, stream)

    def _add(self, x: Tensor, residual: Tensor | None) -> Tensor:
        n_rows, x = x.shape[0], x.contiguous()
        if residual is not None:
            residual = residual.contiguous()
        y = x.new_empty(n_rows, self.d_out)
        self._run(
            self._here, x.data_ptr(), n_rows, _pointer(residual), y.data_ptr(),
            _n_threads(self._n_products * n_rows),
        )  # fmt: skip
        return y


class _Experts(ctypes.Structure):
    _fields_ = [
        ("up", c_void_p), ("down", c_void_p), ("n_experts", c_int64), ("d_model", c_int64),
        ("d_expert", c_int64), ("eps", c_double), ("is_normed", c_int32), ("activation", c_int32),
    ]  # fmt: skip


class ExpertsKernel:
    """Up (E, F or 2 F, D) and down (E, D, F) with SiLU or SwiGLU between them, behind a norm."""

    def __init__(self, up: Tensor, down: Tensor, *, eps: float, activation: Activation) -> None:
        library = load(up.dtype)
        n_lanes = library.lanes()
        self._up = in_panels(up, n_lanes, pairs=activation == "swiglu")
        self._down = in_panels(down, n_lanes, pairs=False)
        self._n_products = up[0].numel() + down[0].numel()
        n_experts, d_model, d_expert = down.shape
        self._given = _Experts(
            self._up.data_ptr(), self._down.data_ptr(), n_experts, d_model, d_expert, eps, True,
            ACTIVATIONS[activation],
        )  # fmt: skip
        self._here = byref(self._given)
        self._run = _function(library, "experts", "ppnppnppi")

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x (B, D) with what its chosen experts (B, k) give by their weights (B, k) added."""
        n_rows, n_active = chosen.shape
        x, chosen, weights = x.contiguous(), chosen.contiguous(), weights.contiguous()
        y = torch.empty_like(x)
        self._run(
            self._here, x.data_ptr(), n_rows, chosen.data_ptr(), weights.data_ptr(), n_active,
            x.data_ptr(), y.data_ptr(),
            _n_threads(self._n_products * n_rows * n_active),
        )  # fmt: skip
        return y


class _Attention(ctypes.Structure):
    _fields_ = [
        ("scale", c_void_p), ("n_heads", c_int64), ("n_kv_heads", c_int64), ("head_dim", c_int64),
        ("rope_dim", c_int64), ("window", c_int64), ("eps", c_double), ("norms_all", c_int32),
        ("is_gated", c_int32),
    ]  # fmt: skip


class _Cache(ctypes.Structure):
    _fields_ = [
        ("keys", c_void_p), ("key_row", c_int64), ("key_head", c_int64),
        ("values", c_void_p), ("value_row", c_int64), ("value_head", c_int64),
    ]  # fmt: skip


class AttentionKernel:
    """Norm and turn of queries and keys, and attention over slots that stay in place."""

    def __init__(
        self, like: Tensor, *, n_heads: int, n_kv_heads: int, head_dim: int, rope_dim: int,
        window: int | None, scale: Tensor | None, norms_all: bool, eps: float, gated: bool,
    ) -> None:  # fmt: skip
        """Without `scale` (H + G, K) queries and keys are not normed."""
        self._scale = None if scale is None else scale.contiguous()
        self._given = _Attention(
            _pointer(self._scale), n_heads, n_kv_heads, head_dim, rope_dim, window or 0, eps,
            norms_all, gated,
        )  # fmt: skip
        self._here = byref(self._given)
        self._width, self._window = n_heads * head_dim, window
        library = load(like.dtype)
        self.panel = 2 * library.lanes()
        """Slots of a panel of keys."""
        self._run = _function(library, "attention", "ppnpnpppi")

    def __call__(
        self, heads: Tensor, angles: Tensor | None, n_seen: Tensor, n_most: int, keys: Tensor,
        values: Tensor,
    ) -> Tensor:  # fmt: skip
        """(B, H K): what the first B rows find in their slots, once these hold the new token.

        Args:
            heads: (B, H + 2 G or 2 H + 2 G, K) queries, keys, values, gates; changed in place.
            angles: complex (R / 2,), or (B, 1, R / 2), by which neighbouring channels turn.
            n_seen: (B,) int64 tokens before this one; `n_most` the largest, this one included.
            keys: (rows, G, panels, K, 2 L), slot by slot of a panel; a window's are a ring.
            values: (rows, G, S, K).
        """
        n_rows = heads.shape[0]
        out = heads.new_empty(n_rows, self._width)
        angles_step = 0 if angles is None or angles.dim() == 1 else 2 * angles.shape[-1]
        cache = _Cache(
            keys.data_ptr(), keys.stride(0), keys.stride(1),
            values.data_ptr(), values.stride(0), values.stride(1),
        )  # fmt: skip
        n_slots = min(n_most, self._window or n_most)
        self._run(
            self._here, heads.data_ptr(), n_rows, _pointer(angles), angles_step,
            n_seen.data_ptr(), byref(cache), out.data_ptr(),
            _n_threads(2 * n_rows * self._width * n_slots),
        )  # fmt: skip
        return out


def latent_attention(q: Tensor, kept: Tensor, v_dim: int, n_seen: Tensor, n_most: int) -> Tensor:
    """(B, n, V): queries (B, n, K) over the slots (rows, S, K), of which the first V channels are
    values; each row has `n_seen` (B,) tokens and the current one."""
    (n_rows, n_queries, k_dim), q = q.shape, q.contiguous()
    out = q.new_empty(n_rows, n_queries, v_dim)
    run = _function(load(q.dtype), "latent_attention", "pnnnnpnppi")
    run(
        q.data_ptr(), n_rows, n_queries, k_dim, v_dim, kept.data_ptr(),
        kept.stride(0), n_seen.data_ptr(), out.data_ptr(),
        _n_threads(2 * n_rows * n_queries * k_dim * n_most),
    )  # fmt: skip
    return out


class _DeltaRule(ctypes.Structure):
    _fields_ = [
        ("taps", c_void_p), ("decay", c_void_p), ("dt_bias", c_void_p), ("n_heads", c_int64),
        ("n_values", c_int64), ("head_dim", c_int64), ("v_dim", c_int64), ("n_taps", c_int64),
        ("length_eps", c_double), ("norm_eps", c_double), ("is_gated", c_int32),
        ("is_doubled", c_int32), ("b_at", c_int64), ("a_at", c_int64), ("g_at", c_int64),
    ]  # fmt: skip


class DeltaRuleKernel:
    """The convolution, the gated delta rule with G key heads of R value heads each, and the norm
    and gate behind them."""

    def __init__(
        self, like: Tensor, *, n_heads: int, v_heads: int, head_dim: int, v_dim: int,
        taps: Tensor | None, decay: Tensor | None, dt_bias: Tensor | None, length_eps: float,
        norm_eps: float, gated: bool, doubled: bool, places: dict[str, int],
    ) -> None:  # fmt: skip
        """taps (W, C); decay and dt_bias (G R,); where b, a and g begin in a row of inputs."""
        self._kept = taps, decay, dt_bias
        self._given = _DeltaRule(
            _pointer(taps), _pointer(decay), _pointer(dt_bias), n_heads, v_heads // n_heads,
            head_dim, v_dim, 0 if taps is None else len(taps), length_eps, norm_eps, gated, doubled,
            *(places.get(name, 0) for name in "bag"),
        )  # fmt: skip
        self._here = byref(self._given)
        self._width = v_heads * v_dim
        self._n_products = 4 * head_dim * self._width
        self._run = _function(load(like.dtype), "delta_rule", "ppnnpppi")

    def __call__(self, x: Tensor, tail: Tensor, memory: Tensor) -> Tensor:
        """(B, G R V) of the projections (B, width): channels q0 k0 q1 k1 ... v, then the others.

        The first B rows of tail (rows, W - 1, C) and memory (rows, G, K, R V) have then seen it.
        """
        n_rows, width = x.shape
        out = x.new_empty(n_rows, self._width)
        self._run(
            self._here, x.data_ptr(), n_rows, width, tail.data_ptr(), memory.data_ptr(),
            out.data_ptr(), _n_threads(self._n_products * n_rows),
        )  # fmt: skip
        return out
