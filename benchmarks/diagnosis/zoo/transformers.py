"""Models of the library transformers, from tiny configurations, on text, on MNIST and on tones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.diagnosis.program import Setup
from benchmarks.diagnosis.zoo.entry import Entry, Factory, adamw, books, digits, optimizer, text
from benchmarks.torchvision import define_what_torchvision_lacks

__all__ = ["entries"]

VOCABULARY, PAD, BEGIN, END, MASK = 96, 0, 1, 2, 4
TOKENS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
VISION: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_channels": 1}
LANGUAGE = adamw(1e-3, 0.1, betas=(0.9, 0.95))
MASKED = adamw(1e-3, 0.01)


@dataclass(frozen=True, slots=True)
class Kind:
    """A model, what it is given, and its optimizer."""

    config: str
    model: str
    batches: Callable[[], Sequence[Any]]
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: Factory = LANGUAGE
    data: str = "King James Bible"


def causal() -> list[dict[str, Tensor]]:
    return [{"input_ids": tokens, "labels": tokens} for tokens in text()]


def masked() -> list[dict[str, Tensor]]:
    """Hide 15 % of the characters, which are to be told."""
    found = []
    for tokens in text(rows=16):
        hidden = torch.rand(tokens.shape) < 0.15
        labels = tokens.masked_fill(~hidden, -100)
        found.append({"input_ids": tokens.masked_fill(hidden, MASK), "labels": labels})
    return found


def replaced() -> list[dict[str, Tensor]]:
    """Replace 15 % of the characters by others, which are to be found."""
    found = []
    for tokens in text(rows=16):
        swapped = torch.rand(tokens.shape) < 0.15
        other = tokens.flatten()[torch.randperm(tokens.numel())].view_as(tokens)
        found.append({"input_ids": torch.where(swapped, other, tokens), "labels": (swapped & (other != tokens)).long()})
    return found


def classified() -> list[dict[str, Tensor]]:
    return [{"input_ids": tokens, "labels": labels} for tokens, labels in books()]


def translated() -> list[dict[str, Tensor]]:
    """Give text to an encoder, and the same text in upper case, as it were, to a decoder."""
    return [{"input_ids": tokens, "labels": (tokens - 5 + 13) % 80 + 5} for tokens in text(32)]


def images(size: int = 32) -> list[dict[str, Tensor]]:
    return [{"pixel_values": pixels, "labels": labels} for pixels, labels in digits(size)]


def unlabelled() -> list[dict[str, Tensor]]:
    return [{"pixel_values": pixels} for pixels, _ in digits(32)]


def described() -> list[dict[str, Any]]:
    """Pair images with a text that tells the digit."""
    found = []
    for pixels, labels in digits(32):
        words = (labels[:, None] * 7 + torch.arange(6) * 3) % 80 + 5
        words = torch.cat([torch.full((len(labels), 1), BEGIN), words, torch.full((len(labels), 1), END)], 1)
        found.append({"pixel_values": pixels, "input_ids": words, "return_loss": True})
    return found


def sounds(length: int = 3200) -> tuple[Tensor, Tensor]:
    """Return sequences of four tones of eight, with harmonics and noise, and which tones they are; 16 kHz."""
    tones = torch.randint(8, (48, 4))
    pitch = 200.0 * 2 ** (tones / 6.0)
    time = torch.arange(length // 4) / 16000
    wave = sum(torch.sin(2 * math.pi * k * pitch[..., None] * time) / k for k in (1, 2, 3))
    wave = wave.flatten(1) + 0.1 * torch.randn(48, length)
    return (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True), tones


def spoken() -> list[dict[str, Tensor]]:
    waves, tones = sounds()
    return [{"input_values": w, "labels": t + 5} for w, t in zip(waves.split(8), tones.split(8), strict=True)]


def heard() -> list[dict[str, Tensor]]:
    """Return logarithms of spectra, as Whisper takes them, and the tones as text."""
    waves, tones = sounds(128 * 50)
    spectra = torch.stft(waves, 158, 50, window=torch.hann_window(158), return_complex=True).abs().square()[..., :128]
    logs = spectra.clamp(min=1e-10).log10()
    logs = (torch.maximum(logs, logs.amax((1, 2), keepdim=True) - 8) + 4) / 4
    return [{"input_features": x, "labels": t + 5} for x, t in zip(logs.split(8), tones.split(8), strict=True)]


SPEECH: dict[str, Any] = {
    **{k: v for k, v in SIZES.items() if k != "max_position_embeddings"},
    "vocab_size": 16,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 4, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "ctc_loss_reduction": "mean",
    "layerdrop": 0.0,
}
ENCODER_DECODER: dict[str, Any] = {
    **TOKENS,
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "decoder_start_token_id": BEGIN,
}
TOWERS: dict[str, Any] = {
    "text_config": {**SIZES, **TOKENS, "projection_dim": 32},
    "vision_config": {**SIZES, **VISION, "projection_dim": 32},
    "projection_dim": 32,
}
EXPERTS = {**GROUPED, **TOKENS, "num_experts_per_tok": 2, "output_router_logits": True}
T5_OPTIONS = {**TOKENS, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4}
T5_OPTIONS["decoder_start_token_id"] = PAD

MODELS: dict[str, Kind] = {
    "bert": Kind("BertConfig", "BertForMaskedLM", masked, {**SIZES, **TOKENS}, MASKED),
    "roberta": Kind("RobertaConfig", "RobertaForMaskedLM", masked, {**SIZES, **TOKENS}, MASKED),
    "distilbert": Kind(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        classified,
        {**TOKENS, "dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 128, "num_labels": 3},
        adamw(5e-4, 0.01),
    ),
    "albert": Kind("AlbertConfig", "AlbertForMaskedLM", masked, {**SIZES, **TOKENS, "embedding_size": 32}, MASKED),
    "electra": Kind(
        "ElectraConfig", "ElectraForPreTraining", replaced, {**SIZES, **TOKENS, "embedding_size": 64}, MASKED
    ),
    "deberta-v2": Kind(
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        classified,
        {**SIZES, **TOKENS, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "num_labels": 3},
        adamw(5e-4, 0.01),
    ),
    "gpt2": Kind("GPT2Config", "GPT2LMHeadModel", causal, {**TOKENS, "n_embd": 64, "n_layer": 4, "n_head": 4}),
    "gpt-neox": Kind("GPTNeoXConfig", "GPTNeoXForCausalLM", causal, {**SIZES, **TOKENS}),
    "opt": Kind("OPTConfig", "OPTForCausalLM", causal, {**SIZES, **TOKENS, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": Kind("BloomConfig", "BloomForCausalLM", causal, {**TOKENS, "hidden_size": 64, "n_layer": 4, "n_head": 4}),
    "falcon": Kind("FalconConfig", "FalconForCausalLM", causal, {**SIZES, **TOKENS}),
    "llama": Kind("LlamaConfig", "LlamaForCausalLM", causal, {**GROUPED, **TOKENS}),
    "mistral": Kind("MistralConfig", "MistralForCausalLM", causal, {**GROUPED, **TOKENS, "sliding_window": 32}),
    "qwen2": Kind("Qwen2Config", "Qwen2ForCausalLM", causal, {**GROUPED, **TOKENS, "tie_word_embeddings": True}),
    "qwen3": Kind("Qwen3Config", "Qwen3ForCausalLM", causal, {**GROUPED, **TOKENS, "head_dim": 16}),
    "gemma": Kind("GemmaConfig", "GemmaForCausalLM", causal, {**GROUPED, **TOKENS, "head_dim": 16}),
    "gemma2": Kind("Gemma2Config", "Gemma2ForCausalLM", causal, {**GROUPED, **TOKENS, "head_dim": 16}),
    "phi": Kind("PhiConfig", "PhiForCausalLM", causal, {**SIZES, **TOKENS}),
    "olmo2": Kind("Olmo2Config", "Olmo2ForCausalLM", causal, {**GROUPED, **TOKENS}),
    "mixtral": Kind("MixtralConfig", "MixtralForCausalLM", causal, {**EXPERTS, "num_local_experts": 4}),
    "qwen2-moe": Kind(
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        causal,
        {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    ),
    "mamba": Kind(
        "MambaConfig",
        "MambaForCausalLM",
        causal,
        {**TOKENS, "hidden_size": 48, "num_hidden_layers": 4, "state_size": 8},
    ),
    "rwkv": Kind("RwkvConfig", "RwkvForCausalLM", causal, {**TOKENS, "hidden_size": 64, "num_hidden_layers": 4}),
    "xlnet": Kind(
        "XLNetConfig",
        "XLNetForSequenceClassification",
        classified,
        {**TOKENS, "d_model": 64, "n_layer": 4, "n_head": 4, "d_inner": 128, "num_labels": 3},
        adamw(5e-4, 0.01),
    ),
    "t5": Kind("T5Config", "T5ForConditionalGeneration", translated, T5_OPTIONS, optimizer("Adafactor", lr=1e-2)),
    "bart": Kind("BartConfig", "BartForConditionalGeneration", translated, ENCODER_DECODER),
    "whisper": Kind(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        heard,
        {**ENCODER_DECODER, "max_source_positions": 64, "begin_suppress_tokens": [], "suppress_tokens": []},
        data="synthetic tones",
    ),
    "wav2vec2": Kind("Wav2Vec2Config", "Wav2Vec2ForCTC", spoken, SPEECH, adamw(1e-3, 0.005), data="synthetic tones"),
    "hubert": Kind("HubertConfig", "HubertForCTC", spoken, SPEECH, adamw(1e-3, 0.005), data="synthetic tones"),
    "vit": Kind(
        "ViTConfig",
        "ViTForImageClassification",
        images,
        {**SIZES, **VISION, "num_labels": 10},
        adamw(1e-3, 0.05),
        "MNIST",
    ),
    "swin": Kind(
        "SwinConfig",
        "SwinForImageClassification",
        images,
        {**VISION, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
        | {"num_labels": 10},
        adamw(1e-3, 0.05),
        "MNIST",
    ),
    "convnext": Kind(
        "ConvNextConfig",
        "ConvNextForImageClassification",
        images,
        {"num_channels": 1, "hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 2, 1], "num_labels": 10},
        adamw(2e-3, 0.05),
        "MNIST",
    ),
    "vit-mae": Kind(
        "ViTMAEConfig",
        "ViTMAEForPreTraining",
        unlabelled,
        {**SIZES, **VISION, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
        | {"decoder_intermediate_size": 64},
        adamw(1e-3, 0.05, betas=(0.9, 0.95)),
        "MNIST",
    ),
    "clip": Kind(
        "CLIPConfig",
        "CLIPModel",
        described,
        TOWERS,
        adamw(1e-3, 0.2, betas=(0.9, 0.98), eps=1e-6),
        "MNIST, and a made-up text for each digit",
    ),
}


def build(name: str) -> Setup:
    """Return a model of transformers that gives its loss itself."""
    define_what_torchvision_lacks()
    import transformers

    kind = MODELS[name]
    config = getattr(transformers, kind.config)(**kind.options)
    model = getattr(transformers, kind.model)(config).train()
    return Setup(model, kind.batches(), "output", kind.optimizer)


def entries() -> list[Entry]:
    """Return the entries; rates rise linearly from 0, as `get_linear_schedule_with_warmup` does it; clipped at 1."""
    return [
        Entry(f"transformers/{name}", functools.partial(build, name), kind.data, steps=40, warmup=8, clip=1.0)
        for name, kind in MODELS.items()
    ]
