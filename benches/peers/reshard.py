"""Resharding by uid subset, the way the DataComp resharder goes about it: the peer of `oqvl-mixer`.

    python reshard.py INPUT_DIR OUTPUT_DIR SUBSET.npy NUM_WORKERS [SHARD_SIZE]

The original is a script of the DataComp repository that no package index carries. This is the same procedure written
anew from its description, on the same library (`webdataset` reads and writes the tars, one process per worker): input
shards `{:08d}.tar` with `{:08d}_stats.json` beside them, contiguous runs of shards for the workers, every sample parsed
for its `uid`, looked up by binary search in the sorted memory-mapped subset and written once per hit as `{uid}-{j}`
with its members byte for byte; output shard numbers come from one counter shared by all workers, opened when needed.
Blurring, shuffling and cloud paths are left out: they are off in the comparison.

Prints one JSON line: samples read and written, output shards, and what the copying took, from the start of the first
worker to the end of the last (imports of this process not counted, those of the workers are).
"""

import json
import logging
import multiprocessing
import os
import sys
import time

import numpy
import webdataset

MAX_SHARD_BYTES = 3_000_000_000


def load_subset(path):
    """The high and the low halves of sorted uids, from a file with or without the NumPy header."""
    with open(path, "rb") as file:
        has_header = file.read(6) == b"\x93NUMPY"
    pairs = numpy.load(path, mmap_mode="r") if has_header else numpy.memmap(path, numpy.dtype("u8,u8"), "r")
    # Contiguous, because `searchsorted` would otherwise copy the whole column for every uid.
    return numpy.ascontiguousarray(pairs["f0"]), numpy.ascontiguousarray(pairs["f1"])


def multiplicity(subset, uid):
    """How often the uid stands in the subset."""
    value = int(uid, 16)
    high, low = numpy.uint64(value >> 64), numpy.uint64(value & (1 << 64) - 1)
    highs, lows = subset
    first, last = numpy.searchsorted(highs, high, "left"), numpy.searchsorted(highs, high, "right")
    found = lows[first:last]
    return int(numpy.searchsorted(found, low, "right") - numpy.searchsorted(found, low, "left"))


def tolerant_samples(path):
    """Samples of a tar: suffixes lower-cased, a suffix seen twice starts a new sample, errors end the shard."""
    key, sample = None, None
    with open(path, "rb") as stream:
        try:
            for member in webdataset.tariterators.tar_file_iterator(stream):
                prefix, suffix = webdataset.tariterators.base_plus_ext(member["fname"])
                if prefix is None:
                    continue
                suffix = suffix.lower()
                if prefix != key or suffix in sample:
                    if sample:
                        yield sample
                    key, sample = prefix, {}
                sample[suffix] = member["data"]
        except Exception:  # the procedure's tolerance: whatever goes wrong ends this shard alone
            logging.exception("reading %s", path)
    if sample:
        yield sample


class ShardedOutput:
    """Output tars of one worker; numbers come from the counter all workers share."""

    def __init__(self, directory, shard_size, counter):
        self.directory, self.shard_size, self.counter = directory, shard_size, counter
        self.writer, self.number, self.num_samples, self.num_bytes = None, None, 0, 0

    def write(self, key, sample):
        full = self.num_samples >= self.shard_size or self.num_bytes >= MAX_SHARD_BYTES
        if self.writer is None or full:
            self.close()
            with self.counter.get_lock():
                self.number = self.counter.value
                self.counter.value += 1
            self.writer = webdataset.TarWriter(os.path.join(self.directory, f"{self.number:08d}.tar"))
            self.num_samples = self.num_bytes = 0
        self.num_bytes += self.writer.write({"__key__": key, **sample})
        self.num_samples += 1

    def close(self):
        if self.writer is None:
            return
        self.writer.close()
        self.writer = None
        with open(os.path.join(self.directory, f"{self.number:08d}_stats.json"), "w", encoding="utf-8") as file:
            json.dump({"successes": self.num_samples}, file)


def work(shards, output_dir, subset_path, shard_size, counter, results):
    """Copies what is wanted of some shards."""
    subset = load_subset(subset_path)
    output = ShardedOutput(output_dir, shard_size, counter)
    num_read = num_written = 0
    for shard in shards:
        for sample in tolerant_samples(shard):
            num_read += 1
            if "json" not in sample:
                logging.error("%s: a sample without json", shard)
                continue
            try:
                uid = json.loads(sample["json"])["uid"]
                for copy in range(multiplicity(subset, uid)):
                    output.write(f"{uid}-{copy}", sample)
                    num_written += 1
            except Exception:  # as above: one sample is lost, not the shard
                logging.exception("copying a sample of %s", shard)
    output.close()
    results.put((num_read, num_written))


def discover(input_dir):
    """Shards with both files, and their sizes."""
    found, number = [], 0
    while True:
        tar = os.path.join(input_dir, f"{number:08d}.tar")
        stats = os.path.join(input_dir, f"{number:08d}_stats.json")
        if not os.path.exists(tar):
            return found
        if os.path.exists(stats):
            with open(stats, encoding="utf-8") as file:
                found.append((tar, json.load(file)["successes"]))
        number += 1


def split(shards, num_workers):
    """Contiguous runs: a worker starts at the first shard whose samples begin at or after its share."""
    total = sum(size for _, size in shards)
    chunk = -(-total // num_workers)
    starts, offset = [], 0
    for _, size in shards:
        starts.append(offset)
        offset += size
    bounds = [next((i for i, s in enumerate(starts) if s >= w * chunk), len(shards)) for w in range(num_workers)]
    bounds.append(len(shards))
    runs = [[tar for tar, _ in shards[first:last]] for first, last in zip(bounds, bounds[1:])]
    return [run for run in runs if run]


def main():
    input_dir, output_dir, subset_path, num_workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    shard_size = int(sys.argv[5]) if len(sys.argv) > 5 else 10_000
    os.makedirs(output_dir)
    shards = discover(input_dir)
    runs = split(shards, min(num_workers, len(shards)))
    counter, results = multiprocessing.Value("i", 0), multiprocessing.Queue()
    started = time.perf_counter()
    workers = [
        multiprocessing.Process(target=work, args=(run, output_dir, subset_path, shard_size, counter, results))
        for run in runs
    ]
    for worker in workers:
        worker.start()
    done = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    if any(worker.exitcode != 0 for worker in workers):
        sys.exit("a worker failed")
    figures = {
        "num_items": sum(num_read for num_read, _ in done),
        "num_written": sum(num_written for _, num_written in done),
        "num_shards": counter.value,
        "loop_wall_seconds": seconds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
