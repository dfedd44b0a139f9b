"""BERT over several texts in one pass on a CPU, each text to the last bit as if it were alone.

Most of a short text's time goes into reading weights. So texts share the matrix products: the tokens of all of them
are the rows of one matrix, not padded to one length, and only attention, which mixes tokens, runs text by text.

That needs a product whose rows do not depend on each other's number or place. oneDNN's, with weights put into its own
order beforehand, is one (no text of thousands changed, with AVX-512 and with AVX2); the one behind torch's ``linear``
is not, because it picks its kernel by the number of rows. No library promises this, so :meth:`PackedBert.keeps_bits`
tries it on the machine at hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

Tensor = torch.Tensor
Linear = Callable[[Tensor], Tensor]
_FEW = 64
"""Rows that are too few for bfloat16: below about 40, oneDNN adds up long rows in another order (and above 350 in yet
another, but so many do not share a pass)."""
_TRIAL = (2, 5, 16, 33, 64, 3, 21)  # lengths of the texts that are tried


class Layer(NamedTuple):
    """The parts of one layer; ``qkv`` makes queries, keys and values in one product."""

    qkv: Linear
    out: Linear
    norm: Linear
    up: Linear
    down: Linear
    last_norm: Linear


class PackedBert:
    """The layers of a ``transformers.BertModel``, whose weights are copied."""

    def __init__(self, model: Any) -> None:
        self._embeddings = model.embeddings
        self._heads = model.config.num_attention_heads
        self._least = 0 if model.dtype == torch.float32 else _FEW
        self._layers = [_layer(layer) for layer in model.encoder.layer]

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
    def __call__(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Token ids of texts, none of them empty, to their last hidden states, (tokens, D) each."""
        lengths = [len(ids) for ids in texts]
        lengths.append(_filler(sum(lengths), self._least))
        hidden_ND = self._embed(texts, lengths[-1])
        for layer in self._layers:
            *own, _ = layer.qkv(hidden_ND).split(lengths)
            attended_ND = functional.pad(torch.cat([self._attend(part) for part in own]), (0, 0, 0, lengths[-1]))
            hidden_ND = layer.norm(layer.out(attended_ND) + hidden_ND)
            hidden_ND = layer.last_norm(layer.down(functional.gelu(layer.up(hidden_ND))) + hidden_ND)
        return list(hidden_ND.split(lengths)[:-1])

    def keeps_bits(self) -> bool:
        """Are texts in company the same, on this machine, as each of them alone?"""
        many = self._embeddings.word_embeddings.num_embeddings
        longest = self._embeddings.position_embeddings.num_embeddings
        texts = [[(7 + 31 * place * size) % many for place in range(min(size, longest))] for size in _TRIAL]
        return all(torch.equal(self([ids])[0], row) for ids, row in zip(texts, self(texts), strict=True))

    def _embed(self, texts: Sequence[Sequence[int]], filler: int) -> Tensor:
        parts = self._embeddings
        ids_N = torch.tensor([*itertools.chain.from_iterable(texts), *[0] * filler])
        places_N = torch.tensor([*itertools.chain.from_iterable(range(len(ids)) for ids in texts), *[0] * filler])
        words_ND = parts.word_embeddings(ids_N) + parts.token_type_embeddings.weight[0]
        return parts.LayerNorm(words_ND + parts.position_embeddings(places_N))

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attention within one text: (tokens, 3 D) to (tokens, D)."""
        tokens = len(qkv)
        q, k, v = qkv.view(tokens, 3, self._heads, -1).permute(1, 2, 0, 3).unsqueeze(1)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return mixed[0].transpose(0, 1).reshape(tokens, -1)


def _filler(rows: int, least: int) -> int:
    """Rows that nobody reads, for few numbers of rows: oneDNN makes code for each, in 0.6 ms and 0.6 MB a product."""
    return max(least - rows, -rows % (8 if rows <= 64 else 32))


def _layer(layer: Any) -> Layer:
    own, after = layer.attention.self, layer.attention.output
    return Layer(
        _linear(own.query, own.key, own.value),
        _linear(after.dense),
        after.LayerNorm,
        _linear(layer.intermediate.dense),
        _linear(layer.output.dense),
        layer.output.LayerNorm,
    )


def _linear(*parts: Any) -> Linear:
    """One product for several layers with the same input, whose outputs stand side by side."""
    weight = torch.cat([part.weight.detach() for part in parts])
    bias = torch.cat([part.bias.detach() for part in parts])
    if not torch.backends.mkldnn.is_available():
        return lambda rows: functional.linear(rows, weight, bias)
    ordered = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, ordered, bias, "none", [], "")
