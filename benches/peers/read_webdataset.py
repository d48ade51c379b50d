"""Reads shards in order with the `webdataset` library; images stay encoded.

    python read_webdataset.py [--digest] SHARD.tar...

Prints one JSON line: samples, members, bytes of all members, and what the loop took (imports not counted).
With --digest also the SHA-256 over every key, extension and content, to compare what two readers saw.
"""

import hashlib
import json
import sys
import time

import webdataset


def main():
    arguments = sys.argv[1:]
    digest = hashlib.sha256() if "--digest" in arguments else None
    shards = [argument for argument in arguments if argument != "--digest"]
    num_samples = num_members = num_bytes = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        num_samples += 1
        for extension, data in sample.items():
            if extension.startswith("__"):
                continue
            num_members += 1
            num_bytes += len(data)
            if digest is not None:
                key = sample["__key__"].rsplit("/", 1)[-1]
                digest.update(f"{key}.{extension} {len(data)}\n".encode())
                digest.update(data)
    figures = {
        "num_items": num_samples,
        "num_members": num_members,
        "num_bytes": num_bytes,
        "loop_wall_seconds": time.perf_counter() - wall,
        "loop_cpu_seconds": time.process_time() - cpu,
    }
    if digest is not None:
        figures["digest"] = digest.hexdigest()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
