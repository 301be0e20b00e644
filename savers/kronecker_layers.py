"""Layers whose matrix is a sum of Kronecker products, of rows and columns in another order.

With the input as a matrix ``X [n1, n2]``, a product gives ``A X B^T [m1, m2]``: two small matrix
products in place of a large one, in the order that costs less. All terms take part in the same two:
stacked in the first, side by side in the second. An order costs a gather and no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from savers.kronecker_fit import Decomposition, Index
from savers.kronecker_shapes import Factoring, Shape


class Factored(nn.Module):
    """A matrix ``[m, n]`` in factors.

    Attributes
    ----------
    left, right
        ``f32 [r, m1, n1]`` and ``f32 [r, m2, n2]``.
    outputs
        ``i64 [m]``: place in the product of each row of the matrix; None where that is its own.
    inputs
        ``i64 [n]``: column of the matrix that each column of the product is; None as above.
    """

    inputs: Tensor | None
    outputs: Tensor | None

    def __init__(self, found: Decomposition) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.tensor(found.left, dtype=torch.float32))
        self.right = nn.Parameter(torch.tensor(found.right, dtype=torch.float32))
        self.register_buffer("inputs", order_or_none(found.columns))
        self.register_buffer("outputs", order_or_none(np.argsort(found.rows)))

    @property
    def factoring(self) -> Factoring:
        """Shape and number of terms."""
        terms, m1, n1 = self.left.shape
        return Factoring(Shape(m1, n1, *self.right.shape[1:]), terms)

    def matrix(self) -> Tensor:
        """Return the dense matrix ``f32 [m, n]`` that the factors stand for."""
        shape = self.factoring.shape
        product = torch.einsum("rij,rkl->ikjl", self.left, self.right)
        product = product.reshape(shape.rows, shape.columns)
        product = product if self.outputs is None else product[self.outputs]
        return product if self.inputs is None else product[:, torch.argsort(self.inputs)]

    def macs(self, output: Tensor) -> int:
        """Return the multiply-accumulates that gave ``output``."""
        vectors: int = output.numel() // self.factoring.shape.rows
        return vectors * self.factoring.macs

    def extra_repr(self) -> str:
        """Return what ``print(network)`` says."""
        return f"{self.factoring.terms} terms of {self.factoring.shape.text()}"


class KroneckerLinear(Factored):
    """In place of ``nn.Linear``: ``f32 [b, ..., n]`` to ``f32 [b, ..., m]``."""

    def __init__(self, found: Decomposition, bias: Tensor | None) -> None:
        super().__init__(found)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``."""
        shape, middle = self.factoring.shape, _numbers(x.shape[1:-1])
        x = x if self.inputs is None else x[..., self.inputs]
        x = self._product(x.reshape(-1, shape.n1, shape.n2)).reshape(-1, *middle, shape.rows)
        x = x if self.outputs is None else x[..., self.outputs]
        return x if self.bias is None else x + self.bias

    def merged(self) -> nn.Linear:
        """Return the dense layer of the same function."""
        rows, columns = self.factoring.shape.rows, self.factoring.shape.columns
        layer = nn.Linear(columns, rows, bias=self.bias is not None)
        return _filled(layer, self.matrix(), self.bias)

    def _product(self, x: Tensor) -> Tensor:
        """Return ``sum_s A_s X B_s^T``, ``f32 [b, m1, m2]`` of ``f32 [b, n1, n2]``."""
        (m1, n1, m2, n2), terms = self.factoring.shape, self.factoring.terms
        if self.factoring.order == "left":
            x = (self.left.reshape(terms * m1, n1) @ x).reshape(-1, terms, m1, n2)
            x = x.transpose(1, 2).reshape(-1, m1, terms * n2)
            return x @ self.right.transpose(1, 2).reshape(terms * n2, m2)
        x = (x @ self.right.reshape(terms * m2, n2).T).reshape(-1, n1 * terms, m2)
        return self.left.transpose(0, 1).transpose(1, 2).reshape(m1, n1 * terms) @ x


class KroneckerConv(Factored):
    """In place of a 1x1 ``nn.Conv2d``: ``f32 [b, n, h, w]`` to ``f32 [b, m, h', w']``."""

    def __init__(self, found: Decomposition, bias: Tensor | None, stride: tuple[int, int]) -> None:
        super().__init__(found)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of each place."""
        shape = self.factoring.shape
        down, right = self.stride
        x = x[:, :, ::down, ::right] if max(self.stride) > 1 else x
        height, width = _numbers(x.shape[-2:])
        x = x if self.inputs is None else x[:, self.inputs]
        x = self._product(x.reshape(-1, shape.n1, shape.n2, height * width))
        x = x.reshape(-1, shape.rows, height, width)
        x = x if self.outputs is None else x[:, self.outputs]
        return x if self.bias is None else x + self.bias[:, None, None]

    def merged(self) -> nn.Conv2d:
        """Return the dense layer of the same function."""
        rows, columns = self.factoring.shape.rows, self.factoring.shape.columns
        layer = nn.Conv2d(columns, rows, 1, self.stride, bias=self.bias is not None)
        return _filled(layer, self.matrix()[:, :, None, None], self.bias)

    def _product(self, x: Tensor) -> Tensor:
        """Return ``sum_s A_s X B_s^T`` at each place, ``f32 [b, m1, m2 * p]``."""
        (m1, n1, m2, n2), terms = self.factoring.shape, self.factoring.terms
        (places,) = _numbers(x.shape[-1:])
        if self.factoring.order == "left":
            x = self.left.reshape(terms * m1, n1) @ x.reshape(-1, n1, n2 * places)
            x = x.reshape(-1, terms, m1, n2, places).transpose(1, 2)
            side = self.right.transpose(0, 1).reshape(m2, terms * n2)
            return (side @ x.reshape(-1, m1, terms * n2, places)).reshape(-1, m1, m2 * places)
        x = self.right.reshape(terms * m2, n2) @ x
        x = x.reshape(-1, n1 * terms, m2 * places)
        return self.left.transpose(0, 1).transpose(1, 2).reshape(m1, n1 * terms) @ x


class KroneckerEmbedding(Factored):
    """In place of ``nn.Embedding``: numbers ``i64 [...]`` below m to ``f32 [..., n]``."""

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the row of each number."""
        shape = self.factoring.shape
        rows = numbers if self.outputs is None else self.outputs[numbers]
        left = self.left[:, torch.div(rows, shape.m2, rounding_mode="floor")]
        right = self.right[:, rows % shape.m2]
        x = (left[..., :, None] * right[..., None, :]).sum(0).flatten(-2)
        return x if self.inputs is None else x[..., torch.argsort(self.inputs)]

    def macs(self, output: Tensor) -> int:
        """Return the multiply-accumulates that gave ``output``."""
        return int(output.numel()) * self.factoring.terms

    def merged(self) -> nn.Embedding:
        """Return the dense layer of the same function."""
        shape = self.factoring.shape
        return _filled(nn.Embedding(shape.rows, shape.columns), self.matrix(), None)


def order_or_none(order: Index) -> Tensor | None:
    """Return an order ``i64 [n]`` as a tensor; None for the one that changes nothing."""
    same = np.array_equal(order, np.arange(len(order)))
    return None if same else torch.from_numpy(np.ascontiguousarray(order))


def _numbers(sizes: Iterable[int]) -> list[int]:
    """Return sizes as plain numbers, so that an exported graph computes no shapes."""
    return [int(size) for size in sizes]


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
