"""First-fit-decreasing as the reference's packers do it: every bin is looked at, and summed, for every item.

    python bin_packing_reference.py [--digest] CAPACITY LENGTHS.txt

Prints one JSON line: items, bins, and what the packing took (reading the file not counted). With --digest also the
SHA-256 over the bins.
"""

import hashlib
import json
import sys
import time

from packing_reference import first_fit_decreasing


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--digest"]
    capacity = int(arguments[0])
    with open(arguments[1], encoding="ascii") as file:
        lengths = [int(line) for line in file]
    wall = time.perf_counter()
    bins = first_fit_decreasing(dict(enumerate(lengths)), capacity)
    figures = {
        "num_items": len(lengths),
        "num_bins": len(bins),
        "loop_wall_seconds": time.perf_counter() - wall,
    }
    if len(arguments) < len(sys.argv) - 1:
        text = "".join(" ".join(map(str, packed)) + "\n" for packed in bins)
        figures["digest"] = hashlib.sha256(text.encode()).hexdigest()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
