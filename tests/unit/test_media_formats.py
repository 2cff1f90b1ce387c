"""What a picture file is, and whether it ends properly: by its bytes alone."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from framepack_daemon.errors import ImageError, ImageIncompleteError
from framepack_daemon.media import formats

PICTURE = Image.effect_noise((96, 64), 80).convert("RGB")


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "JPEG": encoded("JPEG"),
    "JPEG progressive": encoded("JPEG", progressive=True),
    "JPEG with restarts": encoded("JPEG", restart_marker_blocks=2),
    "PNG": encoded("PNG"),
    "WEBP": encoded("WEBP"),
    "GIF": encoded("GIF"),
    "GIF animated": encoded("GIF", save_all=True, append_images=[PICTURE.rotate(180)], comment=b"two frames"),
    "AVIF": encoded("AVIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_is_recognised_and_passes(name: str) -> None:
    kind = formats.recognise(FILES[name])
    assert kind == name.split(maxsplit=1)[0]
    formats.require_end(FILES[name], kind)


@pytest.mark.parametrize("name", FILES)
def test_no_shorter_file_passes(name: str) -> None:
    data = FILES[name]
    kind = name.split(maxsplit=1)[0]
    for length in range(formats.HEAD_BYTES, len(data), 7):
        with pytest.raises(ImageIncompleteError):
            formats.require_end(data[:length], kind)
    with pytest.raises(ImageIncompleteError):
        formats.require_end(data[:-1], kind)


@pytest.mark.parametrize("name", FILES)
def test_no_zeroed_tail_passes(name: str) -> None:
    data = FILES[name]
    for written in range(formats.HEAD_BYTES, len(data) - formats.ZERO_TAIL_BYTES, 61):
        with pytest.raises(ImageIncompleteError):
            formats.require_end(data[:written] + bytes(len(data) - written), name.split(maxsplit=1)[0])


@pytest.mark.parametrize("name", ["JPEG", "JPEG progressive", "JPEG with restarts", "PNG", "GIF", "WEBP"])
def test_what_is_appended_behind_the_end_is_allowed(name: str) -> None:
    formats.require_end(FILES[name] + b"a camera's own data" * 50, name.split(maxsplit=1)[0])


def test_the_end_of_an_embedded_thumbnail_is_not_the_end() -> None:
    thumbnail = FILES["JPEG"]
    data = FILES["JPEG"]
    data = data[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + data[2:]
    formats.require_end(data, "JPEG")
    with pytest.raises(ImageIncompleteError):
        formats.require_end(data[:-2], "JPEG")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n", bytes(4096)])
def test_a_file_without_its_first_bytes_is_incomplete(data: bytes) -> None:
    with pytest.raises(ImageIncompleteError):
        formats.recognise(data)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"%PDF-1.7\n1 0 obj <<>>", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"\xc5\xd0\xd3\xc6" + bytes(20), "EPS"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomavc1", "video"),
        (b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0", "Photoshop"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\0", "JPEG XL"),
        (b"once upon a time, and so on", "not a picture"),
    ],
)
def test_other_content_is_refused_by_name_with_a_mend(data: bytes, named: str) -> None:
    with pytest.raises(ImageError, match=named) as caught:
        formats.recognise(data)
    assert not isinstance(caught.value, ImageIncompleteError)
    assert "JPEG" in caught.value.hint
