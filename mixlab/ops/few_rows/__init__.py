"""Single tokens of a few sequences on a CPU, by kernels of our own.

    y = residual + f(W unit(x) + bias)      product of B rows; unit divides by the root mean square
    y = residual + sum_e w_e D_e f(U_e x)   experts, each on the rows that chose it
    o = softmax(q K^T) V                    attention over slots that stay in place
    S' = a S + k e^T, o = S'^T q            the gated delta rule, with the convolution before it

For few rows PyTorch's products wait for memory or for themselves: BLAS packs the weights in every
call, oneDNN takes twice as long as these kernels for eight rows. Around the products are dozens of
operations on a few thousand numbers each, which here are part of four kernels.

The kernels are C++ without any library, compiled on first use; `obstacle` says why they cannot
be. What they compute is the matter of `mixlab.infer.decoding`, which does the same in PyTorch's
operations where they cannot run.
Cost:   one copy of the weights, in panels; a second or two for the compiler, once per machine.
Source: Gated DeltaNet [arXiv:2412.06464]; panels as in BLIS [10.1145/2764454].
"""

from mixlab.ops.few_rows.kernels import (
    AttentionKernel,
    DeltaRuleKernel,
    ExpertsKernel,
    ProductKernel,
    latent_attention,
)
from mixlab.ops.few_rows.library import obstacle

__all__ = [
    "AttentionKernel",
    "DeltaRuleKernel",
    "ExpertsKernel",
    "ProductKernel",
    "latent_attention",
    "obstacle",
]
