"""BERT over several texts in one pass on a CPU, each text to the last bit as if it were alone.

Most of a short text's time goes into reading weights. So texts share the matrix products: the tokens of all of them
are the rows of one matrix, not padded to one length, and only attention, which mixes tokens, runs text by text.

That needs a product whose rows do not depend on each other's number or place. oneDNN's, with weights put into its own
order beforehand, is one (no text of thousands changed, with AVX-512 and with AVX2); the one behind torch's ``linear``
is not, because it picks its kernel by the number of rows. No library promises this, so :meth:`PackedBert.keeps_bits`
tries it on the machine at hand.

A pass is some 300 short operations. Called from Python, each of them gives the interpreter away and waits for it again,
behind an event loop that may be busy for milliseconds, and threads that wait so for each other end up on one core. As
TorchScript a pass is one operation, and takes two thirds of the time, or a tenth beside a busy thread (docs/speed.md).
The modules are ordinary ones, and stay so where TorchScript can't take them.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_FEW = 64
"""Rows that are too few for bfloat16: below about 40, oneDNN adds up long rows in another order (and above 350 in yet
another, but so many do not share a pass)."""
_TRIAL = (2, 5, 16, 33, 64, 3, 21, 170)  # lengths of the texts that are tried: as many tokens as share a pass


class PackedBert:
    """A ``transformers.BertModel``, whose products are copied, and what makes one row of a text's tokens.

    That is their mean, or else (``mean=False``) the first.
    """

    def __init__(self, model: Any, mean: bool) -> None:
        self._vocabulary, self._longest = model.config.vocab_size, model.config.max_position_embeddings
        self._least = 0 if model.dtype == torch.float32 else _FEW
        self._pass = _scripted(_Pass(model, mean).eval())

    @staticmethod
    def fits(model: Any) -> bool:
        """Is ``model`` a BERT as published, without the variations that its configuration allows?"""
        import transformers

        config = model.config
        positions = getattr(config, "position_embedding_type", "absolute")  # gone from newer versions of transformers
        return (
            type(model) is transformers.BertModel
            and config.hidden_act == "gelu"
            and positions == "absolute"
            and not config.is_decoder
        )

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of N texts, none of them empty, to (N, D) in float32."""
        lengths = [len(ids) for ids in texts]
        filler = [0] * _filler(sum(lengths), self._least)
        ids = torch.tensor([*itertools.chain.from_iterable(texts), *filler])
        places = torch.tensor([*itertools.chain.from_iterable(map(range, lengths)), *filler])
        rows: Tensor = self._pass(ids, places, lengths)
        return rows

    def keeps_bits(self) -> bool:
        """Are texts in company the same, on this machine, as each of them alone?"""
        sizes = [min(size, self._longest) for size in _TRIAL]
        texts = [[(7 + 31 * place * size) % self._vocabulary for place in range(size)] for size in sizes]
        return torch.equal(torch.cat([self([ids]) for ids in texts]), self(texts))


# --- one pass, in what TorchScript knows of Python ------------------------------------------------------------------


class _Pass(nn.Module):
    def __init__(self, model: Any, mean: bool) -> None:
        super().__init__()
        self.words, self.places = model.embeddings.word_embeddings, model.embeddings.position_embeddings
        self.norm = model.embeddings.LayerNorm
        self.kind = model.embeddings.token_type_embeddings.weight[0].detach()
        self.layers = nn.ModuleList(_Layer(layer, model.config.num_attention_heads) for layer in model.encoder.layer)
        self.mean = mean

    def forward(self, ids: Tensor, places: Tensor, lengths: list[int]) -> Tensor:
        """(T) and (T) of all texts and a filler, the N texts' lengths, to (N, D)."""
        hidden = self.norm(self.words(ids) + self.kind + self.places(places))
        parts = lengths + [len(ids) - sum(lengths)]  # noqa: RUF005 (TorchScript knows no star)
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
        self.qkv = _product(own.query, own.key, own.value)
        self.out, self.norm = _product(after.dense), after.LayerNorm
        self.up, self.down = _product(layer.intermediate.dense, then="gelu"), _product(layer.output.dense)
        self.last_norm = layer.output.LayerNorm
        self.heads = heads

    def forward(self, hidden: Tensor, parts: list[int]) -> Tensor:
        """(T, D) to (T, D); the last of ``parts`` is filler, which is given no attention."""
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


class _OneDnn(nn.Module):
    """A linear layer, and GELU if that comes ``then``."""

    def __init__(self, weight: Tensor, bias: Tensor, then: str) -> None:
        super().__init__()
        self.weight, self.bias, self.then = torch.ops.mkldnn._reorder_linear_weight(weight, None), bias, then

    def forward(self, rows: Tensor) -> Tensor:
        # "none": GELU by the error function, not by tanh
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, self.then, [], "none")


class _Torch(nn.Module):
    """The same where there is no oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor, then: str) -> None:
        super().__init__()
        self.weight, self.bias, self.then = weight, bias, then

    def forward(self, rows: Tensor) -> Tensor:
        rows = functional.linear(rows, self.weight, self.bias)
        return functional.gelu(rows) if self.then == "gelu" else rows


def _product(*parts: Any, then: Literal["none", "gelu"] = "none") -> nn.Module:
    """One product for several layers with the same input, whose outputs stand side by side."""
    weight = torch.cat([part.weight.detach() for part in parts])
    bias = torch.cat([part.bias.detach() for part in parts])
    kind = _OneDnn if torch.backends.mkldnn.is_available() else _Torch
    return kind(weight, bias, then)


def _scripted(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what is to come after it needs a compiler of C++
        try:
            return torch.jit.script(module)
        except Exception:  # whatever a version or a build of torch lacks: only speed depends on it
            return module


def _filler(rows: int, least: int) -> int:
    """Rows that nobody reads, for few numbers of rows: oneDNN makes code for each, in 0.6 ms and 0.6 MB a product."""
    return max(least - rows, -rows % (8 if rows <= 64 else 32))
