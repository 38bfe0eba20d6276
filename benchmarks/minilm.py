"""MiniLM with a head as a module of token ids alone, and sentences as such rows."""

from __future__ import annotations

from pathlib import Path

import language
from safetensors.torch import load_file
from torch import Tensor, nn


class Ids(nn.Module):
    """[n, tokens] ids, 0 for padding -> [n, 2]."""

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        self.inner = language.Classifier()
        if weights is None:
            state = {language._names(k): v for k, v in load_file(_file()).items()}
            state.pop(None, None)
            self.inner.load_state_dict(state, strict=False)
        else:
            self.load_state_dict(load_file(weights))

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids, (ids != 0).long())


def _file() -> Path:
    return language._folder() / "model.safetensors"


def sentences(split: str, tokens: int = 48) -> tuple[Tensor, Tensor]:
    """Ids [n, tokens] and labels of SST-2."""
    inputs, labels = language.sentences(split, tokens=tokens)
    return inputs["ids"], labels
