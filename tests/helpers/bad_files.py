"""Rows of the table: files that are no images, or odd ones."""

import contextlib
import os
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.bad_rows import Room, Row, Works, refused, stripes
from semflow.data import ImageFolder, decode_image, load_image
from semflow.errors import ConfigError, DataError

__all__ = ["FILES"]

RED, GREEN = (200, 0, 0), (0, 200, 0)


def pixel(path: Path, x: int = 0, y: int = 0) -> object:
    return decode_image(path).getpixel((x, y))


def of(name: str, image: Image.Image, **options: object) -> Callable[[Room], object]:
    """The first pixel of an image saved under that name."""
    return lambda room: pixel(room.picture(name, image, **options))


def cut(name: str, keep: float) -> Callable[[Room], object]:
    def act(room: Room) -> object:
        content = room.picture(name).read_bytes()
        return decode_image(room.file(name, content[: int(keep * len(content))]))

    return act


def holding(name: str, content: bytes) -> Callable[[Room], object]:
    return lambda room: decode_image(room.file(name, content))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes = b"", bits: int = 8, colour: int = 0) -> bytes:
    """A PNG of any header: colour 0 is grey, 2 RGB, 4 grey with alpha."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pieces = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def animated(format: str) -> Callable[[Room], object]:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, RED)]
    options = {"lossless": True} if format == "webp" else {}
    return of(f"moving.{format}", frames[0], save_all=True, append_images=frames[1:], **options)


def special(name: str, make: Callable[[Path], object]) -> Callable[[Room], object]:
    def act(room: Room) -> object:
        make(room.path / name)
        return decode_image(room.path / name)

    return act


def a_socket(path: Path) -> None:
    where = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(where)


def found(room: Room) -> list[str]:
    return [Path(path).relative_to(room.path).as_posix() for path in ImageFolder(room.path).paths]


def upper_case(room: Room) -> object:
    room.picture("A.PNG")
    room.picture("B.JpEg", format="JPEG")
    return found(room)


def hidden(room: Room) -> object:
    room.picture("a.png")
    room.picture(".thumbs/a.png")
    room.picture("._a.png")
    return found(room)


def folder_named_as_an_image(room: Room) -> object:
    room.picture("d.png/inside.png")
    return found(room)


def loop_of_folders(room: Room) -> object:
    room.picture("sub/a.png")
    (room.path / "sub" / "up").symlink_to("..")
    return found(room)


def odd_names(room: Room) -> object:
    names = ["a\nb.png", "a\tb.png", "\u00fc\u6f22\U0001f600.png", "50% #?&<b>.png", "-rf.png", " .png"]
    for name in names:
        room.picture(name)
    return found(room) == sorted(names) and all(pixel(room.path / name) == pixel(room.path / " .png") for name in names)


def bytes_that_are_no_unicode(room: Room) -> object:
    name = os.fsdecode(b"M\xfcller.png")
    room.picture("a.png").rename(room.path / name)
    return found(room) == [name]


def newline_in_the_name(room: Room) -> object:
    return decode_image(room.file("a\nb.png", b"no image"))


def linked(target: str) -> Callable[[Room], object]:
    def act(room: Room) -> object:
        (room.path / "link.png").symlink_to(target)
        return ImageFolder(room.path)[0]  # found, and named, rather than passed over

    return act


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user without rights, where this one may do everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def forbidden(folder: bool) -> Callable[[Room], object]:
    def act(_: Room) -> object:
        with tempfile.TemporaryDirectory() as name:  # a folder that nobody may look into but for the mode of one thing
            Path(name).chmod(0o755)
            (Path(name) / "sub").mkdir()
            stripes().save(Path(name) / "sub" / "a.png")
            closed = Path(name) / "sub" / ("" if folder else "a.png")
            closed.chmod(0)
            try:
                with nobody():
                    return ImageFolder(name)[0]
            finally:
                closed.chmod(0o755)

    return act


def cannot_lose_rights() -> str:
    if os.name != "posix":
        return "permissions are POSIX's"
    if os.geteuid() != 0:
        return ""
    try:
        with nobody():
            return ""
    except OSError:
        return "root cannot become another user here"


def huge_text(compressed: bool) -> Callable[[Room], object]:
    info = PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=compressed)
    return of("notes.png", Image.new("L", (4, 4), 7), pnginfo=info)


def turned(room: Room) -> object:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    image = Image.new("RGB", (32, 16), RED)
    image.paste(GREEN, (0, 0, 16, 16))
    upright = decode_image(room.picture("turned.png", image, exif=exif))
    return upright.size, upright.getpixel((8, 4)), upright.getpixel((8, 28))


def grey(mode: str, level: object) -> Image.Image:
    return Image.new(mode, (4, 4), level)


def palette() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *GREEN])
    return image


_SIXTEEN = struct.pack(">HHH", 65535, 32896, 0)  # 65535, 128 of 255, 0

FILES = [
    Row("truncated JPEG", cut("a.jpg", 0.6), refused(DataError, "a.jpg", "truncated")),
    Row("truncated PNG", cut("a.png", 0.6), refused(DataError, "a.png", "replace or delete it")),
    Row("truncated TIFF", cut("a.tif", 0.6), refused(DataError, "a.tif", "replace or delete it")),
    Row("JPEG cut before its last two bytes", cut("a.jpg", 0.999), refused(DataError, "a.jpg", "truncated")),
    Row("empty file", holding("a.png", b""), refused(DataError, "a.png", "got an empty file")),
    Row("text called .png", holding("a.png", b"a letter"), refused(DataError, "a.png", "cannot identify")),
    Row("SVG called .png", holding("a.png", b"<svg/>"), refused(DataError, "a.png", "cannot identify")),
    Row(
        "PostScript called .png, which would be run",
        holding("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"),
        refused(DataError, "a.png", "cannot identify"),
    ),
    Row("zeros called .jpg", holding("a.jpg", bytes(4096)), refused(DataError, "a.jpg", "cannot identify")),
    Row(
        "PNG called .gif",
        lambda room: pixel(room.picture("a.gif", Image.new("RGB", (4, 4), RED), format="PNG")),
        Works("read by its content", RED),
    ),
    Row(
        "image followed by other bytes",
        lambda room: pixel(room.file("a.png", room.picture("a.png", grey("L", 7)).read_bytes() + b"junk" * 99)),
        Works("the image is read", (7, 7, 7)),
    ),
    Row("PNG of 0 x 0 pixels", holding("a.png", png(0, 0)), refused(DataError, "a.png", "replace or delete it")),
    Row("1 x 1 pixel", of("a.png", Image.new("L", (1, 1), 7)), Works("read", (7, 7, 7))),
    Row(
        "1 x 1 pixel, loaded at 64",
        lambda room: load_image(room.picture("a.png", Image.new("L", (1, 1), 51)), 64).unique().tolist(),
        Works("one value all over", [np.float32(0.2).item()]),
    ),
    Row(
        "30,000 x 4 pixels",
        lambda room: load_image(room.picture("a.png", Image.new("L", (30_000, 4), 255)), 64).unique().tolist(),
        Works("read and resized", [1.0]),
    ),
    Row(
        "30,000 x 30,000 pixels, of which the header alone speaks",
        holding("a.png", png(30_000, 30_000)),
        refused(DataError, "a.png", "at most 178956970 pixels", "cut it into tiles"),
    ),
    Row(
        "decompression bomb: 60,000 x 60,000 pixels in 2 kB",
        holding("a.png", png(60_000, 60_000, bytes(2_000_000))),
        refused(DataError, "a.png", "at most 178956970 pixels"),
    ),
    Row("PNG of 2^31 - 1 columns", holding("a.png", png(2**31 - 1, 1)), refused(DataError, "pixels, but got more")),
    Row("CMYK JPEG", of("a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0))), Works("as RGB", (255, 0, 0))),
    Row("1-bit PNG", of("a.png", Image.new("1", (4, 4), 1)), Works("white is 255", (255, 255, 255))),
    Row(
        "16-bit grey PNG",
        of("a.png", Image.fromarray(np.full((4, 4), 32896, np.uint16))),
        Works("scaled by the whole range", (128, 128, 128)),
    ),
    Row(
        "16-bit RGB PNG",
        lambda room: pixel(room.file("a.png", png(4, 4, (b"\0" + _SIXTEEN * 4) * 4, 16, 2))),
        Works("scaled by the whole range", (255, 128, 0)),
    ),
    Row("palette PNG", of("a.png", palette()), Works("its colours, not its numbers", GREEN)),
    Row(
        "palette PNG with a transparent colour",
        of("a.png", palette(), transparency=1),
        Works("mid-grey", (128, 128, 128)),
    ),
    Row("grey PNG with alpha (LA)", of("a.png", grey("LA", (255, 0))), Works("mid-grey", (128, 128, 128))),
    Row("32-bit grey TIFF above 65535", of("a.tif", grey("I", 70_000)), refused(DataError, "0 and 65535", "rescale")),
    Row("float TIFF in [0, 1]", of("a.tif", grey("F", 1.0)), Works("1 is white", (255, 255, 255))),
    Row("float TIFF beyond 1", of("a.tif", grey("F", 200.0)), refused(DataError, "a.tif", "values in [0, 1]")),
    Row("float TIFF of NaN", of("a.tif", grey("F", float("nan"))), refused(DataError, "a.tif", "nan", "rescale")),
    Row("animated GIF", animated("gif"), Works("the first frame", RED)),
    Row("animated PNG", animated("png"), Works("the first frame", RED)),
    Row("animated WebP", animated("webp"), Works("the first frame", RED)),
    Row("TIFF of several pages", animated("tif"), Works("the first page", RED)),
    Row("EXIF orientation", turned, Works("turned upright", ((16, 32), GREEN, RED))),
    Row(
        "broken EXIF data",
        of("a.jpg", Image.new("RGB", (8, 8), (255, 255, 255)), exif=b"Exif\x00\x00no such thing"),
        Works("the pixels are read", (255, 255, 255)),
    ),
    Row("3 MB of text in a PNG", huge_text(compressed=False), Works("the pixels are read", (7, 7, 7))),
    Row("text that unpacks to 3 MB in a PNG", huge_text(compressed=True), refused(DataError, "too large")),
    Row(
        "a broken colour profile of 500 kB",
        of("a.jpg", Image.new("RGB", (8, 8), (255, 255, 255)), icc_profile=b"x" * 500_000),
        Works("the pixels are read", (255, 255, 255)),
    ),
    Row("link to itself", linked("link.png"), refused(DataError, "link.png", "symbolic links")),
    Row("link to nothing", linked("nowhere.png"), refused(DataError, "link.png", "a broken link")),
    Row("link to a folder above", loop_of_folders, Works("not followed", ["sub/a.png"])),
    Row("folder called d.png", folder_named_as_an_image, Works("a folder", ["d.png/inside.png"])),
    Row("folder given as an image", lambda room: decode_image(room.path), refused(DataError, "got a folder")),
    Row("pipe called a.png", special("a.png", os.mkfifo), refused(DataError, "a.png", "got a pipe")),
    Row("socket called a.png", special("a.png", a_socket), refused(DataError, "a.png", "a socket")),
    Row("device given as an image", lambda _: decode_image("/dev/zero"), refused(DataError, "a device")),
    Row("file without permission", forbidden(False), refused(DataError, "a.png", "permission"), cannot_lose_rights),
    Row("folder without permission", forbidden(True), refused(DataError, "sub", "denied"), cannot_lose_rights),
    Row("file that is not there", lambda room: decode_image(room.path / "a.png"), refused(DataError, "no such file")),
    Row("path of 5,000 letters", lambda _: decode_image("x" * 5000), refused(DataError, "name too long")),
    Row("path with a zero byte", lambda _: decode_image("a\0b.png"), refused(DataError, "a\\x00b.png", "null byte")),
    Row("number given as a path", lambda _: decode_image(3), refused(ConfigError, "path must be a string or a path")),  # type: ignore[arg-type]
    Row("names with newlines, tabs, markup and other scripts", odd_names, Works("found and read")),
    Row(
        "newline in the name of a broken file", newline_in_the_name, refused(DataError, "a\\nb.png", "cannot identify")
    ),
    Row("name that is no Unicode", bytes_that_are_no_unicode, Works("found")),
    Row("endings in upper case", upper_case, Works("found", ["A.PNG", "B.JpEg"])),
    Row("hidden files and folders", hidden, Works("passed over", ["a.png"])),
    Row(
        "image size 0 of a file",
        lambda room: load_image(room.picture("a.png"), 0),
        refused(ConfigError, "size must be between 1"),
    ),
    Row(
        "image size of a million",
        lambda room: load_image(room.picture("a.png"), 10**6),
        refused(ConfigError, "size must be between 1 and 16384"),
    ),
    Row(
        "image size 64.5",
        lambda room: load_image(room.picture("a.png"), 64.5),  # type: ignore[arg-type]
        refused(ConfigError, "size must be a whole number", "64.5"),
    ),
]
