"""Tiny transformers models with random weights, saved to a folder as the library saves real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIDE = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}


def enlarged(model: torch.nn.Module, seed: int = 0) -> Any:
    """Enlarge the initial weights, under which all inputs give almost the same output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


def save_bert(folder: Path) -> Path:
    """A BERT whose words are single letters, with its own tokenizer files. It has no pooling settings."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    config = BertConfig(vocab_size=len(tokens), max_position_embeddings=64, **SIDE)
    enlarged(BertModel(config)).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP whose words are single letters, with its own tokenizer and image processor files."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")).save_pretrained(folder)
    text = {**SIDE, "vocab_size": len(tokens), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    vision = {**SIDE, "image_size": 30, "patch_size": 6}
    enlarged(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))).save_pretrained(folder)
    crop = {"height": 30, "width": 30}
    CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size=crop).save_pretrained(folder)
    return folder


def save_vit(folder: Path, pooler: bool = True) -> Path:
    """A ViT; without `pooler`, a classifier's checkpoint."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = ViTConfig(image_size=32, patch_size=8, **SIDE)
    enlarged(ViTModel(config) if pooler else ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_resnet(folder: Path) -> Path:
    from transformers import ResNetConfig, ResNetModel
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 24], depths=[1, 1], layer_type="basic")
    enlarged(ResNetModel(config)).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 40}, crop_pct=0.875).save_pretrained(folder)
    return folder
