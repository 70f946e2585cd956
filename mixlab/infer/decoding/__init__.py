"""Writing text for several sequences at once: one token for each, from caches that stay in place.

The modules of `nn` say what a model computes; here the same function is computed again for single
tokens, with few and large operations: projections of one input are one product, norms are folded
into the weights behind them, caches are written in place. What has no such form here is run by
its module, row by row, so a new mixer needs nothing in this package.
"""
