"""Makes the seeds: small files of every kind the readers know, written by other tools than ours.

The files in `parquet/` are not made here: the fuzzer found them.

    python make.py        (Pillow 13.0.0, NumPy 2.4.6, webdataset 0.2.31)
"""

import io
import os
import random
import tarfile

import numpy
import webdataset
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))


def place(name):
    path = os.path.join(HERE, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def add(tar, name, data, **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def tars():
    webdataset.writer.time.time = lambda: 0  # it would write the time of day into every header
    with webdataset.TarWriter(place("tar/webdataset.tar")) as writer:
        for number in range(2):
            writer.write({"__key__": f"dir.v1/{number:09}", "jpg": b"\xff\xd8" * 50, "JSON": b"{}", "txt": b"caption"})
    long_name = "d/" * 40 + "k" * 90
    for name, form in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        with tarfile.open(place(f"tar/{name}.tar"), "w", format=form) as tar:
            directory = tarfile.TarInfo("d")
            directory.type = tarfile.DIRTYPE
            tar.addfile(directory)
            add(tar, f"{long_name}.jpg", b"long")
            add(tar, "d/a.JPG", b"1", mtime=1.5 if name == "pax" else 1)
            add(tar, "d/a.jpg", b"2", uid=1 << 22)
            add(tar, "d/\u043a\u043b\u044e\u0447.seg.png", b"3")
    # Before USTAR: no magic, a directory is a name with a slash at its end.
    block = bytearray(tarfile.TarInfo("old.txt").tobuf(tarfile.USTAR_FORMAT)[:512])
    block[257:] = bytes(512 - 257)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with open(place("tar/v7.tar"), "wb") as file:
        file.write(bytes(block) + bytes(1024))


def npys():
    pairs = numpy.array([(1, 2), (3, 4), (3, 5)], numpy.dtype("u8,u8"))
    numpy.save(place("npy/sorted.npy"), pairs)
    with open(place("npy/version2.npy"), "wb") as file:
        numpy.lib.format.write_array(file, pairs, version=(2, 0))
    numpy.save(place("npy/other_dtype.npy"), numpy.zeros((2, 3), numpy.float32))


def images():
    chance = random.Random(7)
    size = (21, 13)
    colours = Image.frombytes("RGB", size, chance.randbytes(size[0] * size[1] * 3)).resize((24, 17))
    alpha = colours.convert("RGBA")
    alpha.putalpha(colours.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.save(place("image/progressive.jpg"), quality=60, progressive=True)
    colours.convert("CMYK").save(place("image/cmyk.jpg"), quality=60)
    colours.convert("L").save(place("image/gray_exif.jpg"), quality=60, exif=exif, restart_marker_blocks=1)
    alpha.quantize(16).save(place("image/palette_alpha.png"))
    wide = numpy.frombuffer(chance.randbytes(9 * 7 * 2), numpy.uint16).reshape(7, 9)
    Image.fromarray(wide).save(place("image/gray16.png"))
    frames = [colours.rotate(angle) for angle in (0, 90)]
    frames[0].save(place("image/animated.gif"), save_all=True, append_images=frames[1:])
    alpha.save(place("image/lossy_alpha.webp"), quality=50)
    frames[0].save(place("image/animated.webp"), save_all=True, append_images=frames[1:], quality=50)
    colours.quantize(16).save(place("image/rle.bmp"))
    colours.save(place("image/lzw.tiff"), compression="tiff_lzw")
    Image.fromarray(wide).save(place("image/deflate16.tiff"), compression="tiff_adobe_deflate")


if __name__ == "__main__":
    tars()
    npys()
    images()
