"""Finding out whether model files are there and whole, without opening a model."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from framepack_daemon import weights
from framepack_daemon.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path

NAME = "framepack-i2v"


def put_model(models_dir: Path) -> Path:
    """A model whose files have the right names; gives back the transformer's folder."""
    for repository in weights.repositories(NAME):
        folder = repository.folder(models_dir)
        for file in repository.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("{}")
        for part in repository.weights:
            names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
            for tensor, file in names.items():
                save_file({tensor: np.zeros(10, np.float32)}, folder / part / file)
            (folder / part / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return weights.repositories(NAME)[0].folder(models_dir)


def test_a_whole_model_is_located(tmp_path: Path) -> None:
    transformer = put_model(tmp_path)
    assert weights.check(NAME, tmp_path) == []
    assert weights.present(NAME, tmp_path)
    found = weights.locate(NAME, tmp_path)
    assert found.transformer == transformer
    assert found.revision == "86cef4396041+e8c2aaa66fe3+45b801affc54"


@pytest.mark.parametrize("size", [0, 4, 20, -1])
def test_a_truncated_shard_is_found(size: int, tmp_path: Path) -> None:
    shard = put_model(tmp_path) / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(WeightsError, match=shard.name) as caught:
        weights.locate(NAME, tmp_path)
    assert caught.value.hint == f"run: framepack-daemon models pull {NAME}"


def test_missing_files_are_found(tmp_path: Path) -> None:
    assert len(weights.check(NAME, tmp_path)) == 3
    transformer = put_model(tmp_path)
    (transformer / "model-00001-of-00002.safetensors").unlink()
    (transformer / "config.json").unlink()
    assert len(weights.check(NAME, tmp_path)) == 2
    (transformer / "model.safetensors.index.json").write_text("{")
    assert any("index" in problem for problem in weights.check(NAME, tmp_path))


def test_an_unknown_model_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        weights.check("sora", tmp_path)
    assert "framepack-f1" in caught.value.hint


def test_looking_for_weights_needs_no_torch() -> None:
    code = "import sys, framepack_daemon.weights; sys.exit(bool({'torch', 'diffusers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
