"""Kernels of ours that compiled programs call where they are faster than PyTorch's, and what puts them there.

`processor` says which processors they are for; `attention` and `convolution` hold for each kernel the operation, its
eager equivalent and the pass over the compiler's graph; the kernels themselves are `*.h`, see `shims`.
"""
