"""The size of a PNG, JPEG or BMP file from its first bytes, without decoding it."""

from typing import Literal

from tfds_builders.damage import Damaged

MAX_PIXELS = 4096 * 4096
MAX_SIDE = 8192
MAX_ASPECT = 20  # of the longer side to the shorter one
MAX_SCANS = 100  # of a progressive JPEG; each one passes over the whole image
_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers that hold the size


def check_size(data: bytes):
    """Raises Damaged unless `data` is an image file of sensible size."""
    width, height = image_size(data)
    if min(width, height) < 1:
        raise Damaged(f"{width}x{height} pixels")
    short, long = sorted((width, height))
    if short * long > MAX_PIXELS or long > min(MAX_SIDE, MAX_ASPECT * short):
        raise Damaged(
            f"{width}x{height} pixels; images have at most {MAX_PIXELS:,} pixels and "
            f"{MAX_SIDE:,} a side, at most {MAX_ASPECT} times as long as the other"
        )


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels; raises Damaged if the file says none."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        _check_chunks(data)
        return _number(data[16:20]), _number(data[20:24])
    if data[:2] == b"BM":
        return _bmp_size(data)
    if data[:3] == b"\xff\xd8\xff":
        if data.count(b"\xff\xda") > MAX_SCANS:
            raise Damaged(f"a JPEG file of over {MAX_SCANS} scans")
        return _jpeg_size(data)
    raise Damaged("not a PNG, JPEG or BMP file")


def _number(
    data: bytes, order: Literal["big", "little"] = "big", signed: bool = False
) -> int:
    return int.from_bytes(data, order, signed=signed)


def _check_chunks(data: bytes):
    """Raises Damaged for a PNG chunk longer than the file; cv2 would allocate it."""
    place, kind = 8, b""
    while place + 8 <= len(data) and kind != b"IEND":
        length, kind = _number(data[place : place + 4]), data[place + 4 : place + 8]
        if place + 12 + length > len(data):
            raise Damaged(f"the PNG chunk at byte {place} is cut off")
        place += 12 + length


def _bmp_size(data: bytes) -> tuple[int, int]:
    wide = 2 if _number(data[14:18], "little") == 12 else 4  # bytes of a number
    sides = (data[start : start + wide] for start in (18, 18 + wide))
    width, height = (abs(_number(side, "little", wide == 4)) for side in sides)
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """From the first frame header; segments before it are skipped by their length."""
    place = 2
    while place + 9 <= len(data):
        if data[place] != 0xFF or data[place + 1] in (0x00, 0xFF):
            place += 1  # decoders skip bytes between segments
            continue
        marker = data[place + 1]
        if marker in _FRAME:
            height, width = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return _number(width), _number(height)
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD9  # it has no length
        place += 2 if alone else 2 + _number(data[place + 2 : place + 4])
    raise Damaged("a JPEG file without a size")
