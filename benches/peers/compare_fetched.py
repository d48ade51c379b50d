"""Compares two output folders of a fetch sample by sample.

    python compare_fetched.py PEER_DIR OURS_DIR

Samples are matched by key. Prints one JSON line: how many samples either folder has, how many are in both, in how many
of those the stored image decodes (with OpenCV) to equal size and equal pixels, how many are equal byte for byte, the
largest difference of a channel, the number of differing bytes, and the statuses of all rows of the parquet files.
"""

import collections
import glob
import json
import os
import sys
import tarfile

import cv2
import numpy
import pyarrow.parquet


def images(directory):
    """Stored image by key."""
    found = {}
    for path in sorted(glob.glob(os.path.join(directory, "*.tar"))):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = os.path.basename(member.name).split(".", 1)
                if extension == "jpg":
                    found[key] = tar.extractfile(member).read()
    return found


def statuses(directory):
    """Number of rows by status."""
    counts = collections.Counter()
    for path in sorted(glob.glob(os.path.join(directory, "*.parquet"))):
        counts.update(pyarrow.parquet.read_table(path, columns=["status"])["status"].to_pylist())
    return dict(sorted(counts.items()))


def decode(data):
    return cv2.imdecode(numpy.frombuffer(data, numpy.uint8), cv2.IMREAD_UNCHANGED)


def main():
    peer, ours = images(sys.argv[1]), images(sys.argv[2])
    common = sorted(peer.keys() & ours.keys())
    equal_bytes = equal_pixels = differing_sizes = differing_bytes = compared_bytes = largest = 0
    for key in common:
        left, right = decode(peer[key]), decode(ours[key])
        if left is None or right is None or left.shape != right.shape:
            differing_sizes += 1
            continue
        difference = cv2.absdiff(left, right)
        equal_bytes += peer[key] == ours[key]
        equal_pixels += not difference.any()
        differing_bytes += int(numpy.count_nonzero(difference))
        compared_bytes += difference.size
        largest = max(largest, int(difference.max()))
    print(
        json.dumps(
            {
                "num_peer": len(peer),
                "num_ours": len(ours),
                "num_common": len(common),
                "num_equal_pixels": equal_pixels,
                "num_equal_files": equal_bytes,
                "num_differing_shapes": differing_sizes,
                "largest_difference": largest,
                "differing_share": differing_bytes / max(compared_bytes, 1),
                "peer_statuses": statuses(sys.argv[1]),
                "our_statuses": statuses(sys.argv[2]),
            }
        )
    )


if __name__ == "__main__":
    main()
