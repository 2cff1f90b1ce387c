"""Pictures of every kind, whole and broken, through the helper process and the loader."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from framepack_daemon.errors import ImageError, ImageIncompleteError
from framepack_daemon.media import image

NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8))
RED_BLUE = Image.new("RGB", (60, 30), "red")
RED_BLUE.paste("blue", (30, 0, 60, 30))
RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)
Colour = tuple[int, int, int]


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def palette() -> Image.Image:
    picture = Image.new("P", (40, 30), 3)
    picture.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9, 200, 100, 50])
    return picture


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held upright: show it turned by 90 degrees
    return exif


def two(kind: str) -> bytes:
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime")]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])


def wide_gamut() -> bytes:
    """A grey of 128 under a profile whose curve is linear: in sRGB it is 188."""
    profile = ImageCms.createProfile("sRGB")
    data = bytearray(ImageCms.ImageCmsProfile(profile).tobytes())
    # The three curves share one parametric `para` tag of type 3: an exponent of 1 and no linear part below 0.
    start = data.index(b"para")
    data[start + 8 : start + 10] = (0).to_bytes(2, "big")
    data[start + 12 : start + 16] = (1 << 16).to_bytes(4, "big")
    return encoded(Image.new("RGB", (40, 30), (128, 128, 128)), "PNG", icc_profile=bytes(data))


# name: content, upright size, colour near the upper left, colour near the lower right
SHOWN: dict[str, tuple[bytes, tuple[int, int], Colour, Colour]] = {
    "grey 16-bit PNG": (encoded(Image.fromarray(RAMP), "PNG"), (64, 32), (8,) * 3, (247,) * 3),
    "grey 16-bit TIFF": (encoded(Image.fromarray(RAMP), "TIFF"), (64, 32), (8,) * 3, (247,) * 3),
    "grey 32-bit": (encoded(Image.fromarray(RAMP.astype(np.int32) * 999), "TIFF"), (64, 32), (8,) * 3, (247,) * 3),
    "grey floats": (encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), (64, 32), (8,) * 3, (247,) * 3),
    "grey": (encoded(Image.new("L", (40, 30), 99), "PNG"), (40, 30), (99,) * 3, (99,) * 3),
    "black and white": (encoded(Image.new("1", (40, 30), 1), "PNG"), (40, 30), WHITE, WHITE),
    "grey and alpha": (encoded(Image.new("LA", (40, 30), (10, 0)), "PNG"), (40, 30), WHITE, WHITE),
    "hidden colour": (encoded(Image.new("RGBA", (40, 30), (255, 0, 0, 0)), "PNG"), (40, 30), WHITE, WHITE),
    "half transparent": (
        encoded(Image.new("RGBA", (40, 30), (255, 0, 0, 128)), "WEBP", lossless=True),
        (40, 30),
        (255, 127, 127),
        (255, 127, 127),
    ),
    "palette": (encoded(palette(), "PNG"), (40, 30), (200, 100, 50), (200, 100, 50)),
    "transparent palette": (encoded(palette(), "PNG", transparency=3), (40, 30), WHITE, WHITE),
    "transparent GIF": (encoded(palette(), "GIF", transparency=3), (40, 30), WHITE, WHITE),
    "colour key": (
        encoded(Image.new("RGB", (40, 30), (9, 9, 9)), "PNG", transparency=(9, 9, 9)),
        (40, 30),
        WHITE,
        WHITE,
    ),
    "CMYK JPEG, inverted as Adobe does": (
        encoded(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "JPEG"),
        (40, 30),
        RED,
        RED,
    ),
    "CMYK TIFF": (encoded(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "TIFF"), (40, 30), RED, RED),
    "linear profile": (wide_gamut(), (40, 30), (188,) * 3, (188,) * 3),
    "damaged profile": (encoded(RED_BLUE, "PNG", icc_profile=b"x" * 200), (60, 30), RED, BLUE),
    "damaged EXIF": (encoded(RED_BLUE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\xff\xff\xff"), (60, 30), RED, BLUE),
    "turned JPEG": (encoded(RED_BLUE, "JPEG", exif=turned()), (30, 60), RED, BLUE),
    "turned PNG": (encoded(RED_BLUE, "PNG", exif=turned()), (30, 60), RED, BLUE),
    "turned WebP": (encoded(RED_BLUE, "WEBP", exif=turned()), (30, 60), RED, BLUE),
    "turned TIFF": (encoded(RED_BLUE, "TIFF", exif=turned()), (30, 60), RED, BLUE),
    "turned AVIF": (encoded(RED_BLUE, "AVIF", exif=turned()), (30, 60), RED, BLUE),
    "animated GIF": (two("GIF"), (40, 30), RED, RED),
    "animated WebP": (two("WEBP"), (40, 30), RED, RED),
    "animated PNG": (two("PNG"), (40, 30), RED, RED),
    "animated AVIF": (two("AVIF"), (40, 30), RED, RED),
    "TIFF of two pages": (two("TIFF"), (40, 30), RED, RED),
    "MPO": (two("MPO"), (40, 30), RED, RED),
    "BMP": (encoded(RED_BLUE, "BMP"), (60, 30), RED, BLUE),
    "JPEG with a camera's trailer": (encoded(RED_BLUE, "JPEG") + b"SEFT" * 300, (60, 30), RED, BLUE),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_picture_is_shown_upright_and_in_true_colour_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    content, size, first, last = SHOWN[name]
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    facts = image.check(path)
    assert (facts.width, facts.height) == size
    loaded = image.load(path)
    assert (loaded.mode, loaded.size) == ("RGB", size)
    for place, colour in (((2, 2), first), ((size[0] - 3, size[1] - 3), last)):
        assert np.abs(np.subtract(loaded.getpixel(place), colour)).max() <= 3, (place, loaded.getpixel(place))


REFUSED: dict[str, tuple[bytes, str]] = {
    "PDF": (b"%PDF-1.7 and so on and on", "PDF"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    "PPM, which Pillow could read": (encoded(NOISE, "PPM"), "not a picture"),
    "1x1": (encoded(Image.new("RGB", (1, 1)), "PNG"), "1x1"),
    "30000x10": (encoded(Image.new("RGB", (30000, 10)), "PNG"), "30000x10"),
    "30000x100": (encoded(Image.new("RGB", (30000, 100)), "PNG"), "30000x100"),
    "bomb": (encoded(Image.new("1", (20000, 20000)), "PNG"), "20000x20000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_is_refused_with_reason_and_mend(tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(REFUSED[name][0])
    for attempt in (image.check, image.load):
        with pytest.raises(ImageError, match=f"picture.jpg: .*{REFUSED[name][1]}") as caught:
            attempt(path)
        assert type(caught.value) is ImageError
        assert caught.value.hint


WHOLE = {
    "JPEG": encoded(NOISE, "JPEG"),
    "JPEG progressive": encoded(NOISE, "JPEG", progressive=True),
    "PNG": encoded(NOISE, "PNG"),
    "WEBP": encoded(NOISE, "WEBP"),
    "WEBP lossless": encoded(NOISE, "WEBP", lossless=True),
    "GIF": encoded(NOISE, "GIF"),
    "BMP": encoded(NOISE, "BMP"),
    "TIFF": encoded(NOISE, "TIFF"),
    "TIFF LZW, whose directory is at its end": encoded(NOISE, "TIFF", compression="tiff_lzw"),
    "AVIF": encoded(NOISE, "AVIF"),
}


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 90, 99])
@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_or_unfilled_picture_is_incomplete(tmp_path: Path, name: str, percent: int) -> None:
    content = WHOLE[name]
    length = len(content) * percent // 100
    path = tmp_path / "picture"
    path.write_bytes(content[:length])
    with pytest.raises(ImageIncompleteError):
        image.load(path)
    length = min(length, len(content) - 512)
    path.write_bytes(content[:length] + bytes(len(content) - length))
    with pytest.raises(ImageIncompleteError):
        image.load(path)


def test_the_helper_says_incomplete_too_and_how_to_mend_it(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(WHOLE["JPEG"][: len(WHOLE["JPEG"]) // 2])
    with pytest.raises(ImageIncompleteError, match=r"half\.jpg: ends too early") as caught:
        image.check(path)
    assert "copy" in caught.value.hint


def test_a_whole_file_with_a_hole_inside_is_damaged(tmp_path: Path) -> None:
    content = bytearray(WHOLE["PNG"])
    content[5000:9000] = bytes(4000)
    path = tmp_path / "hole.png"
    path.write_bytes(content)
    with pytest.raises(ImageIncompleteError, match="damaged or incomplete"):
        image.check(path)


def test_links_pipes_sockets_devices_and_folders_are_never_opened(tmp_path: Path) -> None:
    real = tmp_path / "real.png"
    NOISE.save(real)
    link, pipe, folder, device = (tmp_path / f"{name}.png" for name in ("link", "pipe", "folder", "device"))
    link.symlink_to(real)
    os.mkfifo(pipe)
    folder.mkdir()
    device.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        for path in (link, pipe, folder, device, tmp_path / "socket.png"):
            for attempt in (image.check, image.load):
                with pytest.raises(ImageError, match="not a plain file"):
                    attempt(path)


def test_a_hard_link_and_any_name_are_fine(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"-\xff\n\xe2\x80\xae.png")
    NOISE.save(tmp_path / "real.png")
    path.hardlink_to(tmp_path / "real.png")
    assert image.check(path) == image.ImageFacts("PNG", 96, 64)


def test_a_missing_file_is_the_file_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        image.check(tmp_path / "gone.png")


def test_a_huge_jpeg_is_decoded_at_a_fraction_and_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "108-megapixels.jpg"
    Image.new("L", (12000, 9000), 77).save(path, quality=30)
    assert image.check(path) == image.ImageFacts("JPEG", 12000, 9000)
    # Smaller than the 427 MB that a plain decode takes.
    measure = (
        "import sys; from framepack_daemon.media import image; image.main(sys.argv[1:]);"
        "print(*[line for line in open('/proc/self/status') if 'VmHWM' in line])"
    )
    with path.open("rb") as file:
        answer = subprocess.run(
            [sys.executable, "-c", measure, str(image.MAX_PIXELS), "60"], stdin=file, capture_output=True, check=True
        )
    assert int(answer.stdout.split()[-2]) < 300_000, answer.stdout  # kB
    assert image.load(path).size == (4096, 3072)


def test_the_pixel_limit_is_the_callers(tmp_path: Path) -> None:
    NOISE.save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="96x64"):
        image.check(tmp_path / "a.png", max_pixels=6143)
    assert image.check(tmp_path / "a.png", max_pixels=6144).width == 96


def test_a_helper_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    Image.new("RGBA", (7000, 7000), (1, 2, 3, 4)).save(tmp_path / "slow.png", compress_level=1)
    with pytest.raises(ImageError, match=r"longer than 0\.05 s"):
        image.check(tmp_path / "slow.png", timeout_seconds=0.05)


def test_a_helper_without_enough_memory_says_so(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGBA", (7000, 7000), (1, 2, 3, 4)).save(path, compress_level=1)
    program = (
        "import sys; from framepack_daemon.media import image;"
        "image.HELPER_MEMORY_BYTES = 256 << 20; image.main(sys.argv[1:])"
    )
    with path.open("rb") as file:
        answer = subprocess.run(
            [sys.executable, "-c", program, str(image.MAX_PIXELS), "60"], stdin=file, capture_output=True, check=True
        )
    assert b"too much memory" in answer.stdout


def test_the_daemons_side_imports_no_numpy_and_no_torch() -> None:
    program = (
        "import sys, framepack_daemon.media.image; print([m for m in ('numpy', 'torch', 'av') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert answer.stdout.strip() == b"[]"
