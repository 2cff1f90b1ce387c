"""Which file a LoRA's name means, and what is refused."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest

from framepack_daemon import loras
from framepack_daemon.errors import LoraError
from framepack_daemon.request_parts import Lora

NOBODY = 65534  # a user that owns nothing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of LoRA files, and things beside them that are none."""
    there = tmp_path / "loras"
    there.mkdir()
    for name in ("Style.safetensors", "walk.pt", "walk.bin", "v1.5.safetensors", "notes.txt", ".hidden.pt"):
        (there / name).write_text(name)
    (there / "folder.safetensors").mkdir()
    (tmp_path / "outside.safetensors").write_text("outside")
    (there / "same.safetensors").symlink_to("Style.safetensors")
    (there / "out.safetensors").symlink_to("../outside.safetensors")
    (there / "circle.pt").symlink_to("circle.pt")
    return there


def refusal(name: str, folder: Path) -> tuple[str, str]:
    """Message and hint."""
    # A request refuses most of these names itself.
    with pytest.raises(LoraError) as caught:
        loras.resolve([Lora.model_construct(name=name, scale=1.0)], folder)
    assert not caught.value.retryable
    return caught.value.message, caught.value.hint


def test_a_name_finds_its_file_with_and_without_the_extension(folder: Path) -> None:
    asked = [Lora(name="Style.safetensors", scale=0.5), Lora(name="v1.5"), Lora(name="walk.bin", scale=-1)]
    style, dotted, walk = loras.resolve(asked, folder)
    assert style == loras.LoraFile(
        "Style.safetensors", folder / "Style.safetensors", 0.5, hashlib.sha256(b"Style.safetensors").hexdigest()
    )
    assert (dotted.name, dotted.scale) == ("v1.5.safetensors", 1.0)
    assert (walk.name, walk.scale) == ("walk.bin", -1.0)


def test_a_link_within_the_folder_is_a_file_like_others(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(folder)
    (found,) = loras.resolve([Lora(name="same")], tmp_path / "linked")
    assert found.path == folder / "Style.safetensors"


def test_the_names_are_those_of_the_files_that_can_be_named(folder: Path, tmp_path: Path) -> None:
    assert loras.names(folder) == [
        "Style.safetensors",
        "same.safetensors",
        "v1.5.safetensors",
        "walk.bin",
        "walk.pt",
    ]
    assert loras.names(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../outside.safetensors", "~/x.pt", "a/b.pt", "a\\b.pt", "a\0b.pt", "..", ".hidden.pt", "~"]
)
def test_what_is_not_a_bare_name_is_refused(name: str, folder: Path) -> None:
    message, hint = refusal(name, folder)
    assert "is not the bare name of a file" in message
    assert "\0" not in message
    assert str(folder) in hint


@pytest.mark.parametrize("name", ["out.safetensors", "circle.pt", "folder.safetensors"])
def test_a_link_out_of_the_folder_and_what_is_no_file_are_refused(name: str, folder: Path) -> None:
    message, hint = refusal(name, folder)
    assert message == f"LoRA {name} is no file of {folder}, or a link that leads out of it"
    assert hint == f"put the file itself into {folder}"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stlye", "put it into {}, or did you mean Style.safetensors?"),
        ("style.safetensors", "put it into {}, or did you mean Style.safetensors?"),
        ("walking.pt", "put it into {}, or did you mean walk.bin or walk.pt?"),
        ("zebra", "put it into {}"),
        ("notes.txt", "a LoRA file ends in .safetensors, .pt or .bin"),
        ("é" * 255, "put it into {}"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_the_mend(name: str, hint: str, folder: Path) -> None:
    assert refusal(name, folder) == (f"LoRA {name} is not in {folder}", hint.format(folder))


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert refusal("style", tmp_path / "loras") == (
        f"LoRA style is not in {tmp_path}/loras",
        f"put it into {tmp_path}/loras",
    )


def test_a_name_that_can_be_two_files_is_refused(folder: Path) -> None:
    assert refusal("walk", folder) == ("LoRA walk can be any of walk.pt, walk.bin", "write the name with its extension")


def test_a_file_that_may_not_be_read_is_named() -> None:
    # Beside the tests' own folders, which nobody else may enter.
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "walk.pt").touch(mode=0)
        own = os.geteuid()
        if own == 0:
            os.seteuid(NOBODY)  # root reads every file
        try:
            message, hint = refusal("walk.pt", folder)
        finally:
            os.seteuid(own)
    assert message == "LoRA walk.pt cannot be read: Permission denied"
    assert str(folder / "walk.pt") in hint
