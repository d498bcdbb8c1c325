#!/usr/bin/env python3
"""What the card does at best: matrix products in bf16, f32 and TF32, and copies within its memory. Prints JSON.

    python products.py [--size 8192]

Medians of 10 after 3, on normal random numbers (zeros would draw less power and run faster). A copied byte counts twice: read and written.
"""

import argparse
import json
import statistics

import torch


def median_seconds(action):
    for _ in range(3):
        action()
    seconds = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        action()
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return statistics.median(seconds)


def product_rate(size, dtype, tf32=False):
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    # As weights are stored: [outputs, inputs].
    return 2 * size**3 / median_seconds(lambda: a @ b.T)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192)
    size = parser.parse_args().size
    if not torch.cuda.is_available():
        raise SystemExit("no card: torch.cuda.is_available() is false")
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size() / median_seconds(lambda: target.copy_(source))
    del source, target
    print(json.dumps({
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "size": size,
        "bf16_flop_per_second": product_rate(size, torch.bfloat16),
        "f32_flop_per_second": product_rate(size, torch.float32),
        "tf32_flop_per_second": product_rate(size, torch.float32, tf32=True),
        "copy_bytes_per_second": copied,
    }))


if __name__ == "__main__":
    main()
