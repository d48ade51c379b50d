"""Compares two output folders of a resharding as sets: tar order and shard borders may differ, samples may not.

    python compare_resharded.py PEER_DIR OURS_DIR

Prints one JSON line: samples of either side, and how many have the same name, members and bytes on both.
"""

import glob
import hashlib
import json
import os
import sys
import tarfile


def samples(directory):
    """Digest of all members by sample name."""
    members = {}
    for path in sorted(glob.glob(os.path.join(directory, "*.tar"))):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = os.path.basename(member.name).split(".", 1)
                content = hashlib.sha256(tar.extractfile(member).read()).hexdigest()
                members.setdefault(key, []).append((extension, content))
    return {key: sorted(found) for key, found in members.items()}


def main():
    peer, ours = samples(sys.argv[1]), samples(sys.argv[2])
    equal = sum(ours.get(key) == found for key, found in peer.items())
    print(json.dumps({"num_peer": len(peer), "num_ours": len(ours), "num_equal": equal}))


if __name__ == "__main__":
    main()
