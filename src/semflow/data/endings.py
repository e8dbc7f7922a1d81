"""Endings of file names: images that Pillow decodes, and files that look like images but are not read."""

import os
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from PIL import Image, features

# Formats with a clear signature are recognized whatever the ending; the others only by their ending.
_ALWAYS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF", "JXL")
# Pillow registers these, but runs other programs, has no decoder, or ignores the scale of the values (FITS).
_NOT_DECODED = frozenset({"BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
_UNREAD = {
    'HEIF: pip install "semflow[formats]", or save it as PNG or JPEG': ".avif .avifs .heic .heics .heif .heifs .hif",
    "camera raw: develop it to PNG or TIFF": (
        ".3fr .arw .cr2 .cr3 .dcr .dng .erf .fff .gpr .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl "
        ".sr2 .srf .srw .x3f"
    ),
    "video: save its frames as images": (
        ".3gp .asf .avi .flc .fli .flv .h264 .h265 .hevc .m2ts .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpeg .mpg .mts .mxf "
        ".ogv .vob .webm .wmv .y4m"
    ),
    "archive: unpack it": ".7z .bz2 .gz .rar .tar .tgz .xz .zip",
    'JPEG XL: pip install "semflow[formats]", or save it as PNG or JPEG': ".jxl",
    "format that is not read: save it as PNG or TIFF": (
        ".ai .bpg .cdr .cin .czi .dcm .dicom .djvu .dpx .emf .eps .exr .fit .fits .flif .hdp .hdr .jls .jng .jxr "
        ".kra .lif .lsm .mha .mhd .mng .mrxs .nd2 .ndpi .nii .nrrd .oib .oif .pct .pdf .pict .ps .psb .scn .svg .svgz "
        ".svs .vsi .wdp .wmf .xcf"
    ),
}
_REASONS = {ending: reason for reason, endings in _UNREAD.items() for ending in endings.split()}
_SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")


def image_endings() -> frozenset[str]:
    """Return the endings of all images that Pillow decodes, in lower case, with those of the extra `formats`.

    Example:
        >>> {".png", ".jfif", ".tga"} <= image_endings(), ".eps" in image_endings()
        (True, False)
    """
    registered = _registered()
    decoded = _decoded(len(Image.OPEN))
    return frozenset(ending for ending, name in registered.items() if name in decoded)


def formats_of(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the formats in which a file may be: those with a clear signature, and the one of its ending.

    Example:
        >>> formats_of("a.png")[:2], formats_of("a.tga")[-1]
        (('PNG', 'JPEG'), 'TGA')
    """
    own = _registered().get(Path(path).suffix.lower())
    always = tuple(name for name in _ALWAYS if name in Image.OPEN)
    return always if own in always or own not in _decoded(len(Image.OPEN)) or own == "MPO" else (*always, str(own))


def why_unread(path: Path) -> str | None:
    """Return why a file that looks like an image or a video is not read, or None for other files.

    Example:
        >>> why_unread(Path("a.heic")), why_unread(Path("notes.txt"))
        ('HEIF: pip install "semflow[formats]", or save it as PNG or JPEG', None)
    """
    ending = path.suffix.lower()
    if ending:
        return _REASONS.get(ending)
    try:
        if not path.is_file():  # reading from a pipe could wait forever
            return None
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return None
    known = head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")
    return "image without a file ending: rename it" if known else None


def _registered() -> dict[str, str]:
    """Return the format of each ending that Pillow knows, with those of the extra `formats` if it is installed."""
    _load_plugins()
    return Image.registered_extensions()


@cache
def _load_plugins() -> None:
    with suppress(ImportError, OSError):  # a library that is missing must not keep other formats from being read
        import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError, OSError):
        import_module("pillow_jxl")  # registers itself


@cache
def _decoded(_: int) -> frozenset[str]:
    """Return the formats that Pillow decodes; the argument is the number of registered ones."""
    missing = {name for name, module in (("AVIF", "avif"), ("WEBP", "webp"), ("JPEG2000", "jpg_2000"))
               if module in (*features.modules, *features.codecs) and not features.check(module)}  # fmt: skip
    return (frozenset(Image.OPEN) | {"MPO"}) - _NOT_DECODED - missing
