"""Make src/outskirts/manifests/published.json: published numbers, taken by machine from where they were collected.

    python benchmarks/take_published.py ../shared/specs/peers_leaderboard.json ../shared/specs/peers.md ../shared/specs/good.md

The first file holds the rows of OpenOOD's leaderboard, the second the line of ImageNet-100 averages that the papers share, the third the lines of
GOOD's Tables 2 (CIFAR-100) and 3 (GOOD by energy alone). FPR95 is stored as published: which class is positive differs between papers and their code.
CombOOD's ImageNet rows are left out: they are disputed (OpenOOD issue 307).
"""

import json
import re
import sys
from decimal import Decimal
from pathlib import Path

OUT = Path(__file__).parents[1] / "src" / "outskirts" / "manifests" / "published.json"
DISPUTED = ("CombOOD", "imagenet")
"""A post-processor, and the start of the names of the benchmarks on which its rows are disputed."""
PAPERS, TABLE_2, TABLE_3 = "ImageNet-100, Dream-OOD protocol", "- Table 2, CIFAR-100", "- Table 3 (FPR/AUROC/acc)"
"""How the lines begin."""
BY_ENERGY = "both + balanced"
"""The row of GOOD's Table 3 that is the method with energy as its score."""
PLAIN = "without OOD"
UNIFIED = "unified, transductive †"
"""The score of GOOD's row in the papers' line: it has the figures of Table 3's last row, "+ unified", within rounding."""
LIKELY = "unified, transductive (likely) †"
FPR95 = "FPR95 as published, not one definition for certain: GOOD's text has ID images as positive, its code OOD images, and rows of baselines are copied between the papers"


def main(leaderboard: str, peers: str, good: str) -> None:
    board = json.loads(Path(leaderboard).read_text(encoding="utf-8"))
    rows = [taken(r) for r in board["rows"] if not disputed(r)]
    more = [*papers(line(peers, PAPERS)), by_energy(line(good, TABLE_3)), *table_2(line(good, TABLE_2))]
    sources = {
        "leaderboard": board["source"],
        "papers": "averages over iNaturalist, Places, SUN, Textures in the papers of GOOD (2510.17131), Bad-OOD, BOOD, NCIS "
        f"and Dream-OOD, on about 960 random images of each set; {FPR95}; † GOOD's unified score reads its weight and range from the test set itself, "
        "which no deployed detector has: its row by energy is the fair comparison",
        "papers-cifar100": f"GOOD (2510.17131), Table 2: averages over SVHN, Places365, LSUN-R, iSUN, Textures, 2,000 random images of each; {FPR95}; † which score "
        "the rows of GOOD have is likely that of its Table 1, whose weight and range are read from the test set itself",
    }
    left_out = f"{len(board['rows']) - len(rows)} rows of {DISPUTED[0]} on ImageNet: disputed, OpenOOD issue 307"
    lines = ",\n  ".join(json.dumps(r, ensure_ascii=False) for r in [*rows, *more])
    head = json.dumps({"sources": sources, "left_out": left_out}, indent=1, ensure_ascii=False).removesuffix("\n}")
    OUT.write_text(f'{head},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    print(f"{OUT}: {len(rows) + len(more)} rows; left out: {left_out}")


def line(file: str, start: str) -> str:
    return next(x for x in Path(file).read_text(encoding="utf-8").splitlines() if x.startswith(start))


def disputed(row: dict) -> bool:
    return row["postprocessor"] == DISPUTED[0] and row["benchmark"].startswith(DISPUTED[1])


def taken(row: dict) -> dict:
    """A row of the leaderboard, with percent as shares and mean and s.d. apart."""
    board, _, table = row["benchmark"].partition("_")
    return {
        "benchmark": board,
        "table": "full-spectrum" if table == "fsood" else "standard",
        "training": row["training"],
        "score": row["postprocessor"],
        **{k: v for name, ours in METRICS.items() for k, v in share(ours, row[name]).items()},
        "real_outliers": row["outlier_data"] == "Yes",
        "arch": row["arch"],
        "notes": row["notes"],
        "source": "leaderboard",
    }


METRICS = {"near_auroc": "near_auroc", "far_auroc": "far_auroc", "id_acc": "id_accuracy"}


def share(name: str, text: str) -> dict[str, float]:
    """'87.44 ± 0.15' -> the mean and the s.d. as shares; nothing for '/'."""
    numbers = [float(Decimal(n) / 100) for n in re.findall(r"\d+(?:\.\d+)?", text)]
    return dict(zip((name, f"{name}_sd"), numbers, strict=False))


def papers(line: str) -> list[dict]:
    """'MSP 48.08/90.01, ... (all 87.64); VOS 49.02/90.03, NPOS 44.00/89.04 (85.37), ...' as rows; accuracy in brackets."""
    rows = []
    for part in line.partition(": ")[2].split("; "):
        whole = re.search(r"\(all ([\d.]+)\)", part)
        for name, fpr, auroc, accuracy in re.findall(r"([\w-]+) ([\d.]+)/(\d+\.\d+)(?: \(([\d.]+)\))?", part):
            accuracy = accuracy or (whole[1] if whole else "")
            rows.append(
                {
                    "benchmark": "imagenet100",
                    "table": "standard",
                    "training": "CrossEntropy" if whole else name,
                    "score": name if whole else UNIFIED if name == "GOOD" else "",
                    **({"transductive": True} if name == "GOOD" else {}),
                    **share("all_fpr95_published", fpr),
                    **share("all_auroc", auroc),
                    **share("id_accuracy", accuracy),
                    "source": "papers",
                }
            )
    return rows


def by_energy(line: str) -> dict:
    """GOOD scored by energy, from '...; both + balanced 30.82/92.81/87.16; ...'."""
    part = next(p for p in line.partition(": ")[2].split("; ") if p.startswith(BY_ENERGY))
    fpr, auroc, accuracy = re.findall(r"\d+\.\d+", part)
    row = {"benchmark": "imagenet100", "table": "standard", "training": "GOOD", "score": "Energy"}
    numbers = share("all_fpr95_published", fpr) | share("all_auroc", auroc) | share("id_accuracy", accuracy)
    return {**row, **numbers, "source": "papers"}


def table_2(line: str) -> list[dict]:
    """'without OOD avg 48.31/84.21; Dream-OOD 40.31/90.15; GOOD 512: 19.37/95.34, ..., avg 25.66/93.34; ...' as rows of the averages."""
    rows = []
    for part in line.partition("): ")[2].partition(". ")[0].split("; "):
        name = re.match(r"[A-Za-z-]+(?: OOD| \d+(?=:))?", part)[0]
        pairs = re.findall(r"(\d+\.\d+)/(\d+\.\d+)", part)
        sets, (fpr, auroc) = pairs[:-1], pairs[-1]
        mean = round(sum(float(a) for _, a in sets) / len(sets), 2) if sets else float(auroc)
        rows.append(
            {
                "benchmark": "cifar100-papers",
                "table": "standard",
                "training": "CrossEntropy" if name == PLAIN else re.sub(r" (\d+)$", r" (\1 px)", name),
                "score": LIKELY if name.startswith("GOOD") else "",
                **share("all_fpr95_published", fpr),
                **share("all_auroc", auroc),
                **(
                    {"notes": f"its five sets average {mean}, printed {auroc}"}
                    if abs(mean - float(auroc)) > 0.02
                    else {}
                ),
                "source": "papers-cifar100",
            }
        )
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
