"""kNN scores against scikit-learn's brute force, 50,000 x 512: the ratio of the two in one run, target at least 1.5.

    python benchmarks/knn.py --json results/knn_cpu.json

About a minute on two cores. Both search the same rows with the same number of threads, turn by turn.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch.nn.functional import normalize

from outskirts.scores import knn
from outskirts.stamp import stamp
from outskirts.types import Outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000, help="stored ID features (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="feature size (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="images scored (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=0, help="classes that the features cluster into; 0: none")
    parser.add_argument("--k", type=int, default=100, help="neighbour (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="timings of each, turn by turn (default: %(default)s)")
    parser.add_argument("--backend", choices=("torch", "faiss"), default="torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()

    g = torch.Generator().manual_seed(0)
    centres = torch.randn(max(1, args.clusters), args.dim, generator=g) * (args.clusters > 0)
    train, test = (
        Outputs(
            torch.zeros(n, 1),
            centres[torch.randint(len(centres), (n,), generator=g)] + torch.randn(n, args.dim, generator=g),
        )
        for n in (args.rows, args.queries)
    )
    start = time.perf_counter()
    score = knn.Score(k=args.k, backend=args.backend).fit(train, torch.zeros(args.rows, dtype=torch.long))
    fit = time.perf_counter() - start
    brute = NearestNeighbors(n_neighbors=args.k, algorithm="brute").fit(score.bank_.numpy())
    queries = normalize(test.features, dim=-1).numpy()

    ours, theirs = [], []
    with threadpool_limits(torch.get_num_threads()):
        for _ in range(args.turns):
            ours.append(_seconds(lambda: score(test)))
            theirs.append(_seconds(lambda: brute.kneighbors(queries)))
        apart = (score(test) - torch.from_numpy(brute.kneighbors(queries)[0][:, -1])).abs().max().item()

    result = {
        "benchmark": "knn",
        "ratio": median(b / a for a, b in zip(ours, theirs, strict=True)),
        "target": 1.5,
        "ours_ms_per_query": 1e3 * min(ours) / args.queries,
        "sklearn_ms_per_query": 1e3 * min(theirs) / args.queries,
        "largest_difference": apart,
        "fit_seconds": fit,
        **{name: getattr(args, name) for name in ("rows", "dim", "clusters", "queries", "k", "turns", "backend")},
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
