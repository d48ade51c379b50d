"""Writes shards with the webdataset library and with Python's tarfile, and prints what is in them.

Usage: write_shard.py DIRECTORY

The first line of the output is a JSON object from file names to lists of samples, each a key (as the library
reads it back) and a map from extensions to base64.
"""

import base64
import io
import json
import sys
import tarfile

import webdataset as wds

LONG = "k" * 180


def with_library(path: str) -> None:
    with wds.TarWriter(path) as sink:
        sink.write({"__key__": "000000000", "jpg": b"\xff\xd8\xff", "json": {"uid": "a", "n": 1}, "txt": "plain"})
        sink.write({"__key__": "000000001", "jpg": b"", "json": {"caption": "é\n"}, "txt": ""})
        sink.write({"__key__": "a.b/c/000000002", "png": b"\x89PNG", "txt": "dots in a directory"})
        sink.write({"__key__": "000000003", "seg.png": b"1", "png": b"2", "cls": 7})
        sink.write({"__key__": LONG, "txt": "a name too long for a plain header"})
        sink.write({"__key__": "schlüssel", "txt": "not ASCII"})


def with_tarfile(path: str, tar_format: int) -> None:
    """Odd but readable: upper-case suffixes, directories as entries, long names."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        directory = tarfile.TarInfo("images.v1")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for name, content in [
            ("images.v1/0001.JPG", b"\xff\xd8"),
            ("images.v1/0001.Json", b"{}"),
            ("images.v1/0001.TXT", b"upper case"),
            ("images.v1/0002.jpg", b"two"),
            (f"images.v1/{'d' * 120}/{LONG}.txt", b"long"),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def read_back(path: str) -> list:
    samples = []
    for sample in wds.WebDataset([path], shardshuffle=False):
        members = {name: value for name, value in sample.items() if not name.startswith("__")}
        encoded = {name: base64.b64encode(value).decode() for name, value in members.items()}
        samples.append([sample["__key__"], encoded])
    return samples


def main() -> None:
    directory = sys.argv[1]
    with_library(f"{directory}/library.tar")
    with_tarfile(f"{directory}/pax.tar", tarfile.PAX_FORMAT)
    with_tarfile(f"{directory}/gnu.tar", tarfile.GNU_FORMAT)
    names = ["library.tar", "pax.tar", "gnu.tar"]
    print(json.dumps({name: read_back(f"{directory}/{name}") for name in names}))


if __name__ == "__main__":
    main()
