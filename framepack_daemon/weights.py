"""Which model files each model name needs, where they lie, and whether they are whole.

Three repositories make a model: the transformer, the components around it, and the image encoder, each at a pinned
revision in the Hugging Face cache `models_dir`. The model `tiny` has the same three as plain folders under
`models_dir/tiny`, made on the spot by another process. Knows file names and sizes; opens no model and imports no torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framepack_daemon.errors import WeightsError

TINY_REVISION = "tiny-1"  # goes up when engine/tiny.py makes other weights
REVISION_FILE = "revision"  # of the tiny model, beside its folders
_LENGTH_BYTES = 8  # of the header's length, at the front of a safetensors file
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Repository:
    """One repository at a pinned commit, and the files we need of it."""

    name: str  # owner/name
    revision: str  # commit
    weights: tuple[str, ...]  # folders that hold safetensors files
    files: tuple[str, ...]  # other files that must be there
    patterns: tuple[str, ...]  # what is fetched

    def folder(self, models_dir: Path) -> Path:
        """Where the Hugging Face cache keeps this revision."""
        return models_dir / f"models--{self.name.replace('/', '--')}" / "snapshots" / self.revision


def _transformer(name: str, revision: str) -> Repository:
    return Repository(
        name, revision, (".",), ("config.json",), ("config.json", "*.safetensors", "*.safetensors.index.json")
    )


_COMPONENTS = Repository(
    "hunyuanvideo-community/HunyuanVideo",
    "e8c2aaa66fe3742a32c11a6766aecbf07c56e773",
    ("text_encoder", "text_encoder_2", "vae"),
    (
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "vae/config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ),
    tuple(f"{part}/*" for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "scheduler")),
)
_IMAGE_ENCODER = Repository(
    "lllyasviel/flux_redux_bfl",
    "45b801affc54ff2af4e5daf1b282e0921901db87",
    ("image_encoder",),
    ("image_encoder/config.json", "feature_extractor/preprocessor_config.json"),
    ("image_encoder/*", "feature_extractor/*"),
)
_TRANSFORMERS = {
    "framepack-i2v": _transformer("lllyasviel/FramePackI2V_HY", "86cef4396041b6002c957852daac4c91aaa47c79"),
    "framepack-f1": _transformer("lllyasviel/FramePack_F1_I2V_HY_20250503", "ab239828e0b384fed75580f186f078717d4020f7"),
    "tiny": _transformer("tiny", TINY_REVISION),
}
MODEL_NAMES = tuple(_TRANSFORMERS)


@dataclass(frozen=True)
class Locations:
    """Where the three repositories of a model lie, and their revisions in one string."""

    transformer: Path
    components: Path
    image_encoder: Path
    revision: str


def repositories(name: str) -> tuple[Repository, Repository, Repository]:
    """Transformer, components and image encoder of model `name`; `WeightsError` for an unknown one."""
    if name not in _TRANSFORMERS:
        raise WeightsError(f"there is no model {name}", hint=f"models are {', '.join(MODEL_NAMES)}")
    return _TRANSFORMERS[name], _COMPONENTS, _IMAGE_ENCODER


def locate(name: str, models_dir: Path) -> Locations:
    """Where model `name` lies, looked up on disk alone; `WeightsError` when a file is missing or truncated."""
    problems = check(name, models_dir)
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise WeightsError(
            f"model {name} is not whole: {problems[0]}{more}",
            hint=f"run: framepack-daemon models pull {name}",
        )
    revision = TINY_REVISION if name == "tiny" else "+".join(part.revision[:12] for part in repositories(name))
    return Locations(*_folders(name, models_dir), revision)


def present(name: str, models_dir: Path) -> bool:
    """Whether every file of model `name` is there and whole."""
    return not check(name, models_dir)


def check(name: str, models_dir: Path) -> list[str]:
    """What is wrong with the files of model `name`, one line each; empty when all is well.

    Every file that the model's indices name must be there, and every safetensors file as long as its header says.
    """
    folders = _folders(name, models_dir)
    problems = [f"{folder} is missing" for folder in folders if not folder.is_dir()]
    if problems:
        return problems
    if name == "tiny" and _tiny_revision(models_dir) != TINY_REVISION:
        problems.append(f"{models_dir / 'tiny'} was made by another version")
    for repository, folder in zip(repositories(name), folders, strict=True):
        problems += [f"{folder / file} is missing" for file in repository.files if not (folder / file).is_file()]
        for part in repository.weights:
            problems += _check_weights(folder / part)
    return problems


def pull(name: str, models_dir: Path, progress: type[Any] | None = None) -> Locations:
    """Fetch what is missing of model `name` and say where it lies.

    Args:
        name: the model.
        models_dir: the Hugging Face cache.
        progress: a class with the interface of tqdm that shows the progress; by default tqdm itself.
    """
    if name == "tiny":
        _build_tiny(models_dir)
    else:
        for repository in repositories(name):
            _download(repository, models_dir, progress)
    return locate(name, models_dir)


def _folders(name: str, models_dir: Path) -> tuple[Path, Path, Path]:
    parts = repositories(name)
    if name == "tiny":
        tiny = models_dir / "tiny"
        return tiny / "transformer", tiny / "components", tiny / "image_encoder"
    transformer, components, image_encoder = (part.folder(models_dir) for part in parts)
    return transformer, components, image_encoder


def _tiny_revision(models_dir: Path) -> str:
    try:
        return (models_dir / "tiny" / REVISION_FILE).read_text().strip()
    except FileNotFoundError:
        return ""


def _check_weights(folder: Path) -> list[str]:
    """Problems of the safetensors files of one folder."""
    try:
        files = list(_weight_files(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"an index in {folder} cannot be read"]
    if not files:
        return [f"{folder} holds no safetensors file"]
    return [problem for file in files if (problem := _check_file(file))]


def _weight_files(folder: Path) -> Iterator[Path]:
    """The files that the folder's index names, or else those that are there."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is None:
        yield from sorted(folder.glob("*.safetensors"))
    else:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        yield from (folder / file for file in sorted(names))


def _check_file(path: Path) -> str | None:
    """What is wrong with one safetensors file: 8 bytes of header length, the header, then the tensors it lists."""
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
                return f"{path} is truncated or damaged in its header"
            header = json.loads(file.read(length))
        tensors = (entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        wanted = _LENGTH_BYTES + length + max(tensors, default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return f"{path} is damaged in its header"
    return None if size == wanted else f"{path} has {size} bytes and should have {wanted}"


def _download(repository: Repository, models_dir: Path, progress: type[Any] | None) -> None:
    # The client is slow to import, and only this function needs it.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    # A damaged file counts as fetched to the client; only without it is it fetched again.
    for part in repository.weights:
        _remove_damaged(repository.folder(models_dir) / part)
    try:
        snapshot_download(
            repository.name,
            revision=repository.revision,
            cache_dir=models_dir,
            allow_patterns=list(repository.patterns),
            tqdm_class=progress,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"{repository.name} could not be fetched: {str(error).splitlines()[0]}",
            hint="check the network and the free space, then pull again; what is already there is kept",
        ) from error


def _remove_damaged(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        if _check_file(file):
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def _build_tiny(models_dir: Path) -> None:
    if present("tiny", models_dir):
        return
    command = [sys.executable, "-m", "framepack_daemon.engine.tiny", str(models_dir / "tiny")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise WeightsError(
            f"the tiny model could not be made: {reason}", hint=f"check that {models_dir} can be written"
        )
