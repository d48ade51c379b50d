"""Decode, resize to a square, normalise: what a training loader does with Pillow and numpy, on one thread.

    python images_pillow.py [--digest] SIZE REPEATS DIRECTORY

Every file of the directory is read beforehand, in name order. Prints one JSON line: images, and what the loop took
(imports and reading not counted). With --digest also the SHA-256 over the resized pixels and over the normalised
values of all images, to compare with another implementation.

The transform is the reference's `resize-naive`: Pillow's bicubic to SIZE x SIZE whatever the aspect ratio, scaled to
0..1, then (x - 0.5) / 0.5, as 32-bit floats with the channels first.
"""

import hashlib
import io
import json
import os
import sys
import time

import numpy
from PIL import Image


def normalised(data, size):
    """The resized pixels (row, column, channel; uint8) and the normalised values (channel, row, column; float32)."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    pixels = numpy.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    values = pixels.transpose(2, 0, 1).astype(numpy.float32)
    values /= numpy.float32(255.0)
    values -= numpy.float32(0.5)
    values /= numpy.float32(0.5)
    return pixels, numpy.ascontiguousarray(values)


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--digest"]
    with_digest = len(arguments) < len(sys.argv) - 1
    size, repeats, directory = int(arguments[0]), int(arguments[1]), arguments[2]
    files = []
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), "rb") as file:
            files.append(file.read())
    pixel_digest, value_digest = hashlib.sha256(), hashlib.sha256()
    num_images = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        for data in files:
            pixels, values = normalised(data, size)
            num_images += 1
            if with_digest:
                pixel_digest.update(pixels.tobytes())
                value_digest.update(values.tobytes())
    figures = {
        "num_items": num_images,
        "loop_wall_seconds": time.perf_counter() - wall,
        "loop_cpu_seconds": time.process_time() - cpu,
    }
    if with_digest:
        figures["pixel_digest"] = pixel_digest.hexdigest()
        figures["value_digest"] = value_digest.hexdigest()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
