"""BERT for several texts in one CPU pass, bitwise equal to one pass per text.

For short texts, reading the weights takes most of the time. So texts share the matrix products: the tokens of all texts
are the rows of one matrix, without padding. Only attention, which mixes tokens, runs text by text. With
sentence-transformers the same bits need one pass per text: 4 times the CPU time for memories of 15 words.

This needs a matrix product whose rows do not depend on the number or position of other rows. oneDNN's product with
reordered weights has this property (no change in thousands of texts, with AVX-512 and AVX2). The product behind torch's
``linear`` does not, because it selects its kernel by the number of rows. No library guarantees this, so
:meth:`PackedBert.is_batch_invariant` tests it on the current machine.

A pass has about 300 short operations. Called from Python, each of them releases the GIL and waits for it again, behind
an event loop that may be busy for milliseconds, and threads that wait like this end up on one core. As TorchScript, a
pass is one operation. It takes two thirds of the time, or a tenth next to a busy thread (docs/benchmarks.md). If
TorchScript fails, the modules run as ordinary modules.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from memskill_cli.utils import process

_MIN_BFLOAT16_ROWS = 64
"""Minimum number of rows for bfloat16. Below about 40 rows, oneDNN sums long rows in another order. (Also above 350,
but a pass never has so many.)"""
_TEST_LENGTHS = (2, 5, 16, 33, 64, 3, 21, 170)  # lengths of the test texts: as many tokens as a pass has


class PackedBert:
    """A ``transformers.BertModel`` with copied weights of the products, and pooling.

    Pooling is the mean of the tokens, or the first token (``mean=False``).
    """

    def __init__(self, model: Any, mean: bool) -> None:
        self._vocabulary, self._max_length = model.config.vocab_size, model.config.max_position_embeddings
        self._min_rows = 0 if model.dtype == torch.float32 else _MIN_BFLOAT16_ROWS
        self._pass = _script(_Pass(model, mean).eval())

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether ``model`` is a standard BERT, without the variants that its configuration allows."""
        import transformers

        config = model.config
        position_type = getattr(
            config, "position_embedding_type", "absolute"
        )  # removed in newer versions of transformers
        return (
            type(model) is transformers.BertModel
            and config.hidden_act == "gelu"
            and position_type == "absolute"
            and not config.is_decoder
        )

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Encode the token ids of N non-empty texts: (N, D), float32."""
        lengths = [len(ids) for ids in texts]
        filler = [0] * _filler(sum(lengths), self._min_rows)
        ids = torch.tensor([*itertools.chain.from_iterable(texts), *filler])
        positions = torch.tensor([*itertools.chain.from_iterable(map(range, lengths)), *filler])
        rows: Tensor = self._pass(ids, positions, lengths)
        return rows

    def is_batch_invariant(self) -> bool:
        """Whether, on this machine, texts in one pass give the same bits as each text alone."""
        sizes = [min(size, self._max_length) for size in _TEST_LENGTHS]
        texts = [[(7 + 31 * i * size) % self._vocabulary for i in range(size)] for size in sizes]
        return torch.equal(torch.cat([self([ids]) for ids in texts]), self(texts))


# --- one pass, in the subset of Python that TorchScript supports ----------------------------------------------------


class _Pass(nn.Module):
    def __init__(self, model: Any, mean: bool) -> None:
        super().__init__()
        self.words, self.positions = model.embeddings.word_embeddings, model.embeddings.position_embeddings
        self.norm = model.embeddings.LayerNorm
        self.kind = model.embeddings.token_type_embeddings.weight[0].detach()
        self.layers = nn.ModuleList(_Layer(layer, model.config.num_attention_heads) for layer in model.encoder.layer)
        self.mean = mean

    def forward(self, ids: Tensor, positions: Tensor, lengths: list[int]) -> Tensor:
        """Token ids (T,) and positions (T,) of all texts and the filler, lengths of the N texts, to (N, D)."""
        hidden = self.norm(self.words(ids) + self.kind + self.positions(positions))
        parts = lengths + [len(ids) - sum(lengths)]  # noqa: RUF005 (TorchScript has no star expression)
        for layer in self.layers:
            hidden = layer(hidden, parts)
        rows: list[Tensor] = []
        for text in hidden.split(parts)[: len(lengths)]:
            rows.append(text.float().mean(dim=0) if self.mean else text[0].float())
        return torch.stack(rows)


class _Layer(nn.Module):
    def __init__(self, layer: Any, heads: int) -> None:
        super().__init__()
        own, after = layer.attention.self, layer.attention.output
        self.qkv = _linear(own.query, own.key, own.value)
        self.out, self.norm = _linear(after.dense), after.LayerNorm
        self.up, self.down = _linear(layer.intermediate.dense, then="gelu"), _linear(layer.output.dense)
        self.last_norm = layer.output.LayerNorm
        self.heads = heads

    def forward(self, hidden: Tensor, parts: list[int]) -> Tensor:
        """(T, D) to (T, D). The last of ``parts`` is filler, without attention."""
        attended: list[Tensor] = []
        for text in self.qkv(hidden).split(parts)[:-1]:
            attended.append(self.attend(text))
        attended.append(torch.zeros(parts[-1], hidden.size(1), dtype=hidden.dtype))
        hidden = self.norm(self.out(torch.cat(attended)) + hidden)
        return self.last_norm(self.down(self.up(hidden)) + hidden)

    def attend(self, qkv: Tensor) -> Tensor:
        """Attention within one text: (tokens, 3 D) to (tokens, D)."""
        tokens = qkv.size(0)
        q, k, v = qkv.view(tokens, 3, self.heads, -1).permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
        return functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).reshape(tokens, -1)


class _OneDnnLinear(nn.Module):
    """A linear layer, followed by GELU if ``then`` is "gelu"."""

    def __init__(self, weight: Tensor, bias: Tensor, then: str) -> None:
        super().__init__()
        self.weight, self.bias, self.then = torch.ops.mkldnn._reorder_linear_weight(weight, None), bias, then

    def forward(self, rows: Tensor) -> Tensor:
        # "none": GELU by the error function, not by tanh
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, self.then, [], "none")


class _TorchLinear(nn.Module):
    """The same without oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor, then: str) -> None:
        super().__init__()
        self.weight, self.bias, self.then = weight, bias, then

    def forward(self, rows: Tensor) -> Tensor:
        rows = functional.linear(rows, self.weight, self.bias)
        return functional.gelu(rows) if self.then == "gelu" else rows


def _linear(*parts: Any, then: Literal["none", "gelu"] = "none") -> nn.Module:
    """One product for several layers with the same input. It concatenates their outputs."""
    weight = torch.cat([part.weight.detach() for part in parts])
    bias = torch.cat([part.bias.detach() for part in parts])
    kind = _OneDnnLinear if torch.backends.mkldnn.is_available() else _TorchLinear
    return kind(weight, bias, then)


def _script(module: nn.Module) -> Any:
    process.ignore_warnings(r"`torch\.jit\.script", DeprecationWarning)  # its successor needs a C++ compiler
    try:
        return torch.jit.script(module)
    except Exception:  # for features that a version or build of torch lacks: only speed depends on it
        return module


def _filler(rows: int, min_rows: int) -> int:
    """Number of filler rows. Few distinct sizes: oneDNN compiles code per size, 0.6 ms and 0.6 MB per product."""
    return max(min_rows - rows, -rows % (8 if rows <= 64 else 32))
