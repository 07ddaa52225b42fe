"""Folders that onnxruntime-genai and openvino-genai write texts with.

Tested in tests/model/language/graphs/test_folders.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.errors import MissingExtra, optional_import, warn_user
from octavo.model.language.graphs.decoder import DecoderParts
from octavo.model.language.graphs.proving import Step, prove

Write = Callable[[Any, Path, Any], None]

# Their cache and products in floats, as the model has them.
_EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def write_for_onnxruntime(model: Any, folder: Path, tokenizer: Any) -> None:
    """Write ``model.onnx``, its weights and ``genai_config.json``.

    Args:
        model: of transformers, quantized.
        folder: where; it is empty.
        tokenizer: of the model; not needed here.

    Raises:
        ExportError: it has no such graph, or the graph computes something else.
        MissingExtra: onnx is not installed.
    """
    from octavo.model.language.graphs.onnx_graph import write_onnx

    decoder = DecoderParts.of(model)
    write_onnx(decoder, folder)
    try:
        prove(model, decoder, _steps_of_onnxruntime(folder, decoder))
    except MissingExtra as error:
        warn_user(f"the graph is written and was not compared with the model: {error}")
    settings = json.dumps(_genai_config(model, decoder), indent=2) + "\n"
    (folder / "genai_config.json").write_text(settings)


def write_for_openvino(model: Any, folder: Path, tokenizer: Any) -> None:
    """Write ``openvino_model.xml`` and its weights, and the tokenizer as OpenVINO's models.

    Args:
        model: of transformers, quantized.
        folder: where; it is empty.
        tokenizer: of the model, of transformers; ``None`` for no models of it.

    Raises:
        ExportError: it has no such graph, or the graph computes something else.
        MissingExtra: openvino is not installed, or openvino_tokenizers, which tokenizers need.
    """
    from octavo.model.language.graphs.openvino_graph import write_openvino

    if tokenizer is not None:  # before the work
        with optional_import("openvino_tokenizers", "openvino-genai", "write a tokenizer"):
            import openvino_tokenizers
    decoder = DecoderParts.of(model)
    write_openvino(decoder, folder)
    prove(model, decoder, _steps_of_openvino(folder))
    if tokenizer is not None:
        import openvino

        both = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
        for name, one in zip(("tokenizer", "detokenizer"), both, strict=True):
            openvino.save_model(one, folder / f"openvino_{name}.xml")


FOLDERS: Mapping[str, Write] = {
    "onnxruntime-genai": write_for_onnxruntime,
    "openvino-genai": write_for_openvino,
}


def _genai_config(model: Any, decoder: DecoderParts) -> dict[str, Any]:
    """What onnxruntime-genai reads of a model."""
    config, generation = model.config, model.generation_config
    ends = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    pad = config.pad_token_id
    begin = config.bos_token_id
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": 0 if begin is None else begin,
            "eos_token_id": [] if ends is None else ends,
            "pad_token_id": pad if pad is not None else 0 if end is None else end,
            "vocab_size": decoder.tokens,
            "context_length": decoder.positions,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": decoder.channels,
                "hidden_size": decoder.hidden,
                "num_attention_heads": decoder.heads,
                "num_key_value_heads": decoder.shared_heads,
                "num_hidden_layers": len(decoder.blocks),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": decoder.positions,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def _steps_of_onnxruntime(folder: Path, decoder: DecoderParts) -> Step:
    """Products in floats: what the runtime rounds of their inputs is no matter of the graph."""
    from octavo.model.language.graphs.onnx_graph import in_floats

    with optional_import("onnxruntime", "onnxruntime", "compare the graph with the model"):
        import onnxruntime
    with in_floats(folder) as path:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [one.name for one in session.get_outputs()]
    nothing = torch.zeros(1, decoder.shared_heads, 0, decoder.channels).numpy()
    names = [one.name for one in session.get_inputs() if one.name.startswith("past")]
    kept = dict.fromkeys(names, nothing)

    def step(ids: Tensor, seen: int) -> Tensor:
        mask = torch.ones(1, seen + ids.shape[1], dtype=torch.int64)
        given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), **kept}
        logits, *grown = session.run(outputs, given)
        kept.update(zip(names, grown, strict=True))
        return torch.from_numpy(logits)

    return step


def _steps_of_openvino(folder: Path) -> Step:
    import openvino

    from octavo.model.language.graphs.openvino_graph import MODEL

    request = openvino.Core().compile_model(folder / MODEL, "CPU", _EXACT).create_infer_request()

    def step(ids: Tensor, seen: int) -> Tensor:
        total = seen + ids.shape[1]
        given = {
            "input_ids": ids.numpy(),
            "attention_mask": torch.ones(1, total, dtype=torch.int64).numpy(),
            "position_ids": torch.arange(seen, total)[None].numpy(),
            "beam_idx": torch.zeros(1, dtype=torch.int32).numpy(),
        }
        return torch.from_numpy(request.infer(given)["logits"].copy())

    return step
