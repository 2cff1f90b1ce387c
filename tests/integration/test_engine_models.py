"""The tiny model and the loader that opens it as it opens the real ones."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from framepack_daemon import weights
from framepack_daemon.engine import models
from framepack_daemon.errors import DeviceError, WeightsError

if TYPE_CHECKING:
    from pathlib import Path


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def own_copy(models_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(models_dir / "tiny", tmp_path / "tiny")
    return tmp_path


def test_two_processes_at_once_make_one_model_with_the_same_bytes(models_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "framepack_daemon.engine.tiny", str(tmp_path / "tiny")]
    makers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for maker in makers:
        _, errors = maker.communicate()
        assert maker.returncode == 0, errors.decode()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert contents(tmp_path / "tiny") == contents(models_dir / "tiny")
    assert weights.check("tiny", tmp_path) == []


def test_pulling_mends_a_truncated_shard(own_copy: Path) -> None:
    shard = own_copy / "tiny/transformer/diffusion_pytorch_model-00002-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=shard.name):
        models.load("tiny", own_copy)
    assert weights.pull("tiny", own_copy).revision == weights.TINY_REVISION


def test_a_tokenizer_that_cuts_the_template_otherwise_is_refused(own_copy: Path) -> None:
    file = own_copy / "tiny/components/tokenizer/tokenizer.json"
    file.write_text(file.read_text().replace('"Describe"', '"describe"'))
    with pytest.raises(WeightsError, match="crop_start"):
        models.load("tiny", own_copy)


def test_a_device_that_is_not_there_is_named(models_dir: Path) -> None:
    with pytest.raises(DeviceError, match="warp"):
        models.load("tiny", models_dir, "warp")
