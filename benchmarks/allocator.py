"""What keeping freed memory saves on a CPU: seconds without it / seconds with it, of classifying and of training.

    python benchmarks/allocator.py --json results/allocator_cpu.json

Processes of their own, turn by turn, as the setting is that of a whole process. Half a minute on two cores.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

MEASURES = ("classify", "train_step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--arch", default="resnet_small", help="resnet18, resnet_small, resnet_tiny (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, default=32, help="side of the images (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="images at a time (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=8, help="of each measure (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="processes of each kind (default: %(default)s)")
    parser.add_argument("--keep", choices=("yes", "no"), help=argparse.SUPPRESS)  # one of those processes
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    if args.keep:
        print(json.dumps(_measure(args)))
        return

    given = [f"--{k}={getattr(args, k)}" for k in ("arch", "size", "batch", "batches")]
    found = {"no": [], "yes": []}
    for _ in range(args.turns):
        for keep, times in found.items():
            done = subprocess.run(
                [sys.executable, __file__, *given, f"--keep={keep}"], stdout=subprocess.PIPE, check=True
            )
            times.append(json.loads(done.stdout))

    from outskirts.stamp import stamp

    result = {
        "benchmark": "allocator",
        "ratio": {m: median(a[m] / b[m] for a, b in zip(found["no"], found["yes"], strict=True)) for m in MEASURES},
        "ms_per_image": {
            k: {m: median(1e3 * t[m] / args.batch for t in times) for m in MEASURES} for k, times in found.items()
        },
        "peak_gib": {k: median(t["peak_gib"] for t in times) for k, times in found.items()},
        **{name: getattr(args, name) for name in ("arch", "size", "batch", "batches", "turns")},
        "stamp": stamp(seeds=[0]),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def _measure(args) -> dict[str, float]:
    """Seconds of one batch, classified and trained on, after one that does not count."""
    import torch
    import torch.nn.functional as F

    from outskirts.allocator import keep_freed
    from outskirts.nets import small_resnet
    from outskirts.peak import Peak

    if args.keep == "yes" and not keep_freed():
        sys.exit("malloc was not told: not Linux with glibc, or MALLOC_*, GLIBC_TUNABLES or LD_PRELOAD is set")
    torch.manual_seed(0)
    net, labels = small_resnet(args.arch, 10), torch.arange(args.batch) % 10
    images = torch.rand(args.batch, 3, args.size, args.size)

    def classify():
        with torch.inference_mode():
            net.eval()(images)

    def train_step():
        net.zero_grad()
        F.cross_entropy(net.train()(images), labels).backward()

    def seconds(work) -> float:
        work()
        start = time.perf_counter()
        for _ in range(args.batches):
            work()
        return (time.perf_counter() - start) / args.batches

    with Peak() as peak:
        found = {"classify": seconds(classify), "train_step": seconds(train_step)}
    return {**found, "peak_gib": peak.gib}


if __name__ == "__main__":
    main()
