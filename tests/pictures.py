"""Picture files that Pillow cannot write."""

import struct
import zlib


def png(height, width, bits, rows):
    """An RGB PNG file that claims a size, and holds these rows."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def png16(pixels):
    """A 16-bit RGB PNG file; Pillow reads but does not write them."""
    height, width, _ = pixels.shape
    return png(height, width, 16, b"".join(b"\0" + row.tobytes() for row in pixels))
