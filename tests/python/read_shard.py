"""Prints the samples of a shard, one JSON object per line, as the webdataset library reads them.

Usage: read_shard.py SHARD...
"""

import base64
import json
import sys

import webdataset as wds


def main() -> None:
    raw = wds.WebDataset(sys.argv[1:], shardshuffle=False)
    decoded = wds.WebDataset(sys.argv[1:], shardshuffle=False).decode()
    for sample, values in zip(raw, decoded, strict=True):
        members = {name: value for name, value in sample.items() if not name.startswith("__")}
        line = {
            "key": sample["__key__"],
            "members": {name: base64.b64encode(value).decode() for name, value in members.items()},
            "json": values.get("json"),
            "txt": values.get("txt"),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
