"""Small image sets on disk for the tests, made with Pillow and pyarrow."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from outskirts.data import load
from outskirts.errors import OutskirtsError


def colour(rng, h=6, w=5):
    return rng.integers(0, 256, (h, w, 3), dtype=np.uint8)


def folder(root, classes, shape=(6, 5), n=3):
    """A folder of class folders of random PNGs; the pixels by class and number."""
    rng, pixels = np.random.default_rng(1), {}
    for c in classes:
        (root / c).mkdir(parents=True)
        for i in range(n):
            pixels[c, i] = colour(rng, *shape)
            Image.fromarray(pixels[c, i]).save(root / c / f"{i}.png")
    return pixels


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path, images, labels, names=None):
    """The `datasets` Image convention, as `Dataset.to_parquet` writes it."""
    cells = [None if x is None else {"bytes": png(x), "path": None} for x in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(cells, kind), "label": pa.array(labels, pa.int64())})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def one_line(match, name, **options):
    with pytest.raises(OutskirtsError, match=match) as error:
        load(name, **options)
    assert "\n" not in str(error.value)
