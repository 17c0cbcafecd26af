import pytest

from outskirts.errors import OutskirtsError
from outskirts.files import writable, write_json


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutskirtsError, match="cannot write to"):
        writable(tmp_path / "file" / "out")


def test_json_replaces_the_old_file_and_leaves_no_other(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert "1" in (tmp_path / "a.json").read_text()
