import json
import os
import subprocess
from datetime import datetime, timezone

import torch

import outskirts
from outskirts.stamp import commit, file_hash, folder_hashes, short_hash, stamp


def test_stamp_is_json_and_says_where_a_number_comes_from():
    s = stamp(seeds=(0, 1), inputs={"train": "abc"})
    assert json.loads(json.dumps(s)) == s
    assert s["versions"]["outskirts"] == outskirts.__version__
    assert s["versions"]["torch"] == torch.__version__.split("+")[0] or s["versions"]["torch"] == torch.__version__
    assert s["hardware"]["threads"] == torch.get_num_threads()
    assert 1 <= s["hardware"]["cores"] <= os.cpu_count()
    assert s["seeds"] == [0, 1]
    age = datetime.now(timezone.utc) - datetime.strptime(s["date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    assert -2 < age.total_seconds() < 60


def test_the_command_can_be_typed_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/outskirts/__main__.py", "run", "digits [0-6]"])
    assert stamp()["command"] == "outskirts run 'digits [0-6]'"
    monkeypatch.setattr("sys.argv", ["/somewhere/knn.py", "--rows", "7"])
    assert stamp()["command"] == "knn.py --rows 7"


def test_commit_and_its_dirty_flag(tmp_path):
    def git(*args):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *args], check=True, capture_output=True
        )

    assert commit(tmp_path) is None
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    clean = commit(tmp_path)
    assert len(clean["hash"]) == 40
    assert not clean["dirty"]
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == {**clean, "dirty": True}


def test_hashes_follow_the_content(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"abc")
    (tmp_path / "b.tmp").write_bytes(b"unfinished")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, SHA-256 of "abc"
    assert file_hash(tmp_path / "sub" / "a") == abc
    assert folder_hashes(tmp_path) == {"sub/a": abc}
    assert short_hash({"a": 1, "b": 2}) == short_hash({"b": 2, "a": 1}) != short_hash({"a": 1, "b": 3})
