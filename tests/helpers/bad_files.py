"""Bad input: files that are not images, or unusual images."""

import contextlib
import os
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.bad_rows import Row, Works, Workspace, refused, stripes
from semflow.data import ImageFolder, decode_image, load_image
from semflow.errors import ConfigError, DataError

__all__ = ["FILES"]

RED, GREEN = (200, 0, 0), (0, 200, 0)


def pixel(path: Path, x: int = 0, y: int = 0) -> object:
    return decode_image(path).getpixel((x, y))


def of(name: str, image: Image.Image, **options: object) -> Callable[[Workspace], object]:
    """Read the first pixel of an image saved with this name."""
    return lambda workspace: pixel(workspace.picture(name, image, **options))


def cut(name: str, keep: float) -> Callable[[Workspace], object]:
    def act(workspace: Workspace) -> object:
        content = workspace.picture(name).read_bytes()
        return decode_image(workspace.file(name, content[: int(keep * len(content))]))

    return act


def holding(name: str, content: bytes) -> Callable[[Workspace], object]:
    return lambda workspace: decode_image(workspace.file(name, content))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes = b"", bits: int = 8, color: int = 0) -> bytes:
    """Create a PNG with any header: color 0 is gray, 2 RGB, 4 gray with alpha."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    pieces = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def animated(format: str) -> Callable[[Workspace], object]:
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, GREEN, RED)]
    options = {"lossless": True} if format == "webp" else {}
    read = of(f"moving.{format}", frames[0], save_all=True, append_images=frames[1:], **options)
    return warning("moving.* holds several images", read)


def warning(text: str, act: Callable[[Workspace], object]) -> Callable[[Workspace], object]:
    """Expect a warning."""

    def warned(workspace: Workspace) -> object:
        with pytest.warns(UserWarning, match=text):
            return act(workspace)

    return warned


def with_one_visible(image: Image.Image, value: object) -> Image.Image:
    image.putpixel((3, 3), value)
    return image


def folders_beside(workspace: Workspace) -> object:
    for name in ("a.png", "@eaDir/a.png/thumb.png", "lost+found/a.png", "__MACOSX/a.png"):
        workspace.picture(name)
    return found(workspace)


def linked_folder(workspace: Workspace) -> object:
    workspace.picture("elsewhere/a.png")
    (workspace.path / "data").mkdir()
    (workspace.path / "data" / "b").symlink_to(workspace.path / "elsewhere")
    return [Path(path).relative_to(workspace.path).as_posix() for path in ImageFolder(workspace.path / "data").paths]


def special(name: str, make: Callable[[Path], object]) -> Callable[[Workspace], object]:
    def act(workspace: Workspace) -> object:
        make(workspace.path / name)
        return decode_image(workspace.path / name)

    return act


def a_socket(path: Path) -> None:
    where = Path.cwd()
    os.chdir(path.parent)  # the length of a socket's name is limited
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(where)


def found(workspace: Workspace) -> list[str]:
    return [Path(path).relative_to(workspace.path).as_posix() for path in ImageFolder(workspace.path).paths]


def upper_case(workspace: Workspace) -> object:
    workspace.picture("A.PNG")
    workspace.picture("B.JpEg", format="JPEG")
    return found(workspace)


def hidden(workspace: Workspace) -> object:
    workspace.picture("a.png")
    workspace.picture(".thumbs/a.png")
    workspace.picture("._a.png")
    return found(workspace)


def folder_named_as_an_image(workspace: Workspace) -> object:
    workspace.picture("d.png/inside.png")
    return found(workspace)


def loop_of_folders(workspace: Workspace) -> object:
    workspace.picture("sub/a.png")
    (workspace.path / "sub" / "up").symlink_to("..")
    return found(workspace)


def odd_names(workspace: Workspace) -> object:
    names = ["a\nb.png", "a\tb.png", "\u00fc\u6f22\U0001f600.png", "50% #?&<b>.png", "-rf.png", " .png"]
    for name in names:
        workspace.picture(name)
    return found(workspace) == sorted(names) and all(
        pixel(workspace.path / name) == pixel(workspace.path / " .png") for name in names
    )


def undecodable_name(workspace: Workspace) -> object:
    name = os.fsdecode(b"M\xfcller.png")
    workspace.picture("a.png").rename(workspace.path / name)
    return found(workspace) == [name]


def newline_in_the_name(workspace: Workspace) -> object:
    return decode_image(workspace.file("a\nb.png", b"not an image"))


def linked(target: str) -> Callable[[Workspace], object]:
    def act(workspace: Workspace) -> object:
        (workspace.path / "link.png").symlink_to(target)
        return ImageFolder(workspace.path)[0]

    return act


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Switch from root to a user without privileges."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def forbidden(folder: bool) -> Callable[[Workspace], object]:
    def act(_: Workspace) -> object:
        with tempfile.TemporaryDirectory() as name:  # accessible to all users
            Path(name).chmod(0o755)
            (Path(name) / "sub").mkdir()
            stripes().save(Path(name) / "sub" / "a.png")
            closed = Path(name) / "sub" / ("" if folder else "a.png")
            closed.chmod(0)
            try:
                with unprivileged():
                    return ImageFolder(name)[0]
            finally:
                closed.chmod(0o755)

    return act


def cannot_drop_privileges() -> str:
    if os.name != "posix":
        return "needs POSIX"
    if os.geteuid() != 0:
        return ""
    try:
        with unprivileged():
            return ""
    except OSError:
        return "root cannot become another user here"


def huge_text(compressed: bool) -> Callable[[Workspace], object]:
    info = PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=compressed)
    return of("notes.png", Image.new("L", (4, 4), 7), pnginfo=info)


def turned(workspace: Workspace) -> object:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    image = Image.new("RGB", (32, 16), RED)
    image.paste(GREEN, (0, 0, 16, 16))
    upright = decode_image(workspace.picture("turned.png", image, exif=exif))
    return upright.size, upright.getpixel((8, 4)), upright.getpixel((8, 28))


def gray(mode: str, level: object) -> Image.Image:
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
    Row("JPEG without its last two bytes", cut("a.jpg", 0.999), refused(DataError, "a.jpg", "truncated")),
    Row("empty file", holding("a.png", b""), refused(DataError, "a.png", "empty file")),
    Row("text named .png", holding("a.png", b"a letter"), refused(DataError, "a.png", "cannot identify")),
    Row("SVG named .png", holding("a.png", b"<svg/>"), refused(DataError, "a.png", "cannot identify")),
    Row(
        "PostScript named .png",
        holding("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"),
        refused(DataError, "a.png", "cannot identify"),
    ),
    Row("zeros named .jpg", holding("a.jpg", bytes(4096)), refused(DataError, "a.jpg", "cannot identify")),
    Row(
        "PNG named .gif",
        lambda workspace: pixel(workspace.picture("a.gif", Image.new("RGB", (4, 4), RED), format="PNG")),
        Works("decoded by content", RED),
    ),
    Row(
        "image followed by other data",
        lambda workspace: pixel(
            workspace.file("a.png", workspace.picture("a.png", gray("L", 7)).read_bytes() + b"junk" * 99)
        ),
        Works("decoded", (7, 7, 7)),
    ),
    Row("PNG with 0 x 0 pixels", holding("a.png", png(0, 0)), refused(DataError, "a.png", "replace or delete it")),
    Row("1 x 1 pixel", of("a.png", Image.new("L", (1, 1), 7)), Works("decoded", (7, 7, 7))),
    Row(
        "1 x 1 pixel, resized to 64",
        lambda workspace: load_image(workspace.picture("a.png", Image.new("L", (1, 1), 51)), 64).unique().tolist(),
        Works("constant image", [np.float32(0.2).item()]),
    ),
    Row(
        "30,000 x 4 pixels",
        lambda workspace: (
            load_image(workspace.picture("a.png", Image.new("L", (30_000, 4), 255)), 64).unique().tolist()
        ),
        Works("decoded and resized", [1.0]),
    ),
    Row(
        "header of 30,000 x 30,000 pixels",
        holding("a.png", png(30_000, 30_000)),
        refused(DataError, "a.png", "at most 178956970 pixels", "cut it into tiles"),
    ),
    Row(
        "decompression bomb: 60,000 x 60,000 pixels in 2 kB",
        holding("a.png", png(60_000, 60_000, bytes(2_000_000))),
        refused(DataError, "a.png", "at most 178956970 pixels"),
    ),
    Row("PNG with 2^31 - 1 columns", holding("a.png", png(2**31 - 1, 1)), refused(DataError, "178956970 pixels")),
    Row("CMYK JPEG", of("a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0))), Works("as RGB", (255, 0, 0))),
    Row("1-bit PNG", of("a.png", Image.new("1", (4, 4), 1)), Works("white is 255", (255, 255, 255))),
    Row(
        "16-bit gray PNG",
        of("a.png", Image.fromarray(np.full((4, 4), 32896, np.uint16))),
        Works("scaled by the full range", (128, 128, 128)),
    ),
    Row(
        "16-bit RGB PNG",
        lambda workspace: pixel(workspace.file("a.png", png(4, 4, (b"\0" + _SIXTEEN * 4) * 4, 16, 2))),
        Works("scaled by the full range", (255, 128, 0)),
    ),
    Row("palette PNG", of("a.png", palette()), Works("colors of the palette", GREEN)),
    Row(
        "palette PNG with transparency",
        of("a.png", with_one_visible(palette(), 0), transparency=1),
        Works("mid-gray", (128, 128, 128)),
    ),
    Row(
        "gray PNG with alpha (LA)",
        of("a.png", with_one_visible(gray("LA", (255, 0)), (255, 255))),
        Works("mid-gray", (128, 128, 128)),
    ),
    Row(
        "colors that are transparent everywhere",
        warning(
            "a.png has no visible pixel",
            of("a.png", with_one_visible(Image.new("RGBA", (4, 4), (*RED, 0)), (*GREEN, 0))),
        ),
        Works("as if opaque, with a warning", RED),
    ),
    Row(
        "transparent image of one color",
        of("a.png", Image.new("RGBA", (4, 4), (*RED, 0))),
        refused(DataError, "a.png", "must have visible pixels"),
    ),
    Row("32-bit gray TIFF above 65535", of("a.tif", gray("I", 70_000)), refused(DataError, "65535", "rescale")),
    Row("float TIFF in [0, 1]", of("a.tif", gray("F", 1.0)), Works("1 is white", (255, 255, 255))),
    Row("float TIFF beyond 1", of("a.tif", gray("F", 200.0)), refused(DataError, "a.tif", "values in [0, 1]")),
    Row("float TIFF of NaN", of("a.tif", gray("F", float("nan"))), refused(DataError, "a.tif", "nan", "rescale")),
    Row("animated GIF", animated("gif"), Works("first frame, with a warning", RED)),
    Row("animated PNG", animated("png"), Works("first frame, with a warning", RED)),
    Row("animated WebP", animated("webp"), Works("first frame, with a warning", RED)),
    Row("TIFF with several pages", animated("tif"), Works("first page, with a warning", RED)),
    Row("EXIF orientation", turned, Works("rotated upright", ((16, 32), GREEN, RED))),
    Row(
        "broken EXIF data",
        of("a.jpg", Image.new("RGB", (8, 8), (255, 255, 255)), exif=b"Exif\x00\x00no such thing"),
        Works("decoded", (255, 255, 255)),
    ),
    Row("PNG with 3 MB of text", huge_text(compressed=False), Works("decoded", (7, 7, 7))),
    Row("PNG with text that decompresses to 3 MB", huge_text(compressed=True), refused(DataError, "too large")),
    Row(
        "broken color profile of 500 kB",
        of("a.jpg", Image.new("RGB", (8, 8), (255, 255, 255)), icc_profile=b"x" * 500_000),
        Works("decoded", (255, 255, 255)),
    ),
    Row("link to itself", linked("link.png"), refused(DataError, "link.png", "symbolic links")),
    Row("broken link", linked("nowhere.png"), refused(DataError, "link.png", "broken link")),
    Row("link to a parent folder", loop_of_folders, Works("not followed", ["sub/a.png"])),
    Row("link to a folder elsewhere", linked_folder, Works("followed", ["data/b/a.png"])),
    Row("@eaDir, lost+found, __MACOSX", folders_beside, Works("skipped and listed", ["a.png"])),
    Row("folder named d.png", folder_named_as_an_image, Works("searched as a folder", ["d.png/inside.png"])),
    Row("folder as an image", lambda workspace: decode_image(workspace.path), refused(DataError, "folder")),
    Row("pipe named a.png", special("a.png", os.mkfifo), refused(DataError, "a.png", "pipe")),
    Row("socket named a.png", special("a.png", a_socket), refused(DataError, "a.png", "a socket")),
    Row("device as an image", lambda _: decode_image("/dev/zero"), refused(DataError, "a device")),
    Row("file without permission", forbidden(False), refused(DataError, "a.png", "permission"), cannot_drop_privileges),
    Row("folder without permission", forbidden(True), refused(DataError, "sub", "denied"), cannot_drop_privileges),
    Row("missing file", lambda workspace: decode_image(workspace.path / "a.png"), refused(DataError, "no such file")),
    Row("path with 5,000 characters", lambda _: decode_image("x" * 5000), refused(DataError, "name too long")),
    Row("path with a null byte", lambda _: decode_image("a\0b.png"), refused(DataError, "a\\x00b.png", "null byte")),
    Row("integer as a path", lambda _: decode_image(3), refused(ConfigError, "path must be a string or a path")),  # type: ignore[arg-type]
    Row("names with newlines, tabs, markup and non-Latin scripts", odd_names, Works("found and decoded")),
    Row(
        "broken file with a newline in its name",
        newline_in_the_name,
        refused(DataError, "a\\nb.png", "cannot identify"),
    ),
    Row("name that is not Unicode", undecodable_name, Works("found")),
    Row("upper-case suffixes", upper_case, Works("found", ["A.PNG", "B.JpEg"])),
    Row("hidden files and folders", hidden, Works("skipped and listed", ["a.png"])),
    Row(
        "image size 0 for a file",
        lambda workspace: load_image(workspace.picture("a.png"), 0),
        refused(ConfigError, "must be between 1 and"),
    ),
    Row(
        "image size of a million",
        lambda workspace: load_image(workspace.picture("a.png"), 10**6),
        refused(ConfigError, "and 16384 pixels"),
    ),
    Row(
        "image size 64.5",
        lambda workspace: load_image(workspace.picture("a.png"), 64.5),  # type: ignore[arg-type]
        refused(ConfigError, "size must be a whole number", "64.5"),
    ),
]
