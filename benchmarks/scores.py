"""What scoring adds to classifying: (one forward pass + every score) / one forward pass, target at most 1.3.

    python benchmarks/scores.py --json results/scores_cpu.json

CIFAR-sized images and a bank as large as CIFAR's training split; random weights, which take the same time as others.
About two minutes on two cores.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from outskirts.evaluate import collect
from outskirts.find import find, names
from outskirts.models import Classifier
from outskirts.nets import small_resnet
from outskirts.stamp import stamp
from outskirts.types import Outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18", help="resnet18, resnet_small, resnet_tiny (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="images scored (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=50_000, help="stored ID features (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="timings of each, turn by turn (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()

    torch.manual_seed(0)
    classes = [str(k) for k in range(10)]
    classifier = Classifier(small_resnet(args.arch, 10), classes=classes, size=(32, 32)).frozen()
    images, d = torch.rand(args.images, 3, 32, 32), classifier.feature_dim
    train, val, outliers = (Outputs(torch.randn(n, 10), torch.randn(n, d)) for n in (args.rows, 500, 500))
    labels = torch.arange(args.rows) % 10
    scores = {name: find("scores", name)().fit(train, labels, val=val, outliers=outliers) for name in names("scores")}

    outputs = collect(classifier, images)
    forward, each = [], {name: [] for name in scores}
    for _ in range(args.turns):
        forward.append(_seconds(lambda: collect(classifier, images)))
        for name, score in scores.items():
            each[name].append(_seconds(lambda s=score: s(outputs)))

    result = {
        "benchmark": "scores",
        "ratio": 1 + median(sum(times) / f for f, times in zip(forward, zip(*each.values(), strict=True), strict=True)),
        "target": 1.3,
        "forward_ms_per_image": 1e3 * median(forward) / args.images,
        "score_ms_per_image": {name: 1e3 * median(times) / args.images for name, times in each.items()},
        **{name: getattr(args, name) for name in ("arch", "images", "rows", "turns")},
        "feature_dim": d,
        "stamp": stamp(seeds=[0]),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
