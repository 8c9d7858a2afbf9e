"""What is damaged or replaced in a study is told, when it is used and by `lowloss verify`."""

import json
import os
import re
import shutil

import pytest

from lowloss.digests import seal


def flip(file, place=0.5):
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4
    file.write_bytes(content)


def verified(lowloss, root):
    """The findings of `lowloss verify`, after making sure that its status tells whether there are any."""
    done = lowloss.plain(root.parent, "verify", str(root))
    assert "Traceback" not in done.err, done.err
    *found, last = done.out.splitlines()
    assert done.status == bool(found)
    assert last.startswith(f"{root}: ")
    return found


def test_an_undisturbed_study_is_as_it_was_written(lowloss, whole):
    done = lowloss.plain(whole.outputs, "verify", "t")
    assert (done.status, done.out, done.err) == (0, "t: 13 results, all as they were written\n", "")
    record = json.loads((whole.root / "paths/0000-0001-line/digests.json").read_text())
    assert set(record["files"]) == {
        "along.csv", "config.yaml", "metrics.csv", "provenance.json", "result.safetensors",
    }  # fmt: skip
    assert set(record["inputs"]) == {"minima/0000", "minima/0001"}


@pytest.mark.parametrize("folder", ["nowhere", "t/minima"])
def test_what_is_no_study_is_told(lowloss, whole, folder):
    assert (
        f"{folder} holds no results: name the folder of a study"
        in lowloss.plain(whole.outputs, "verify", folder).message
    )


def zeros(file):
    file.write_bytes(file.read_bytes()[:2000] + bytes(3000))


DAMAGES = [
    {
        "minima/0001/result.safetensors": flip,
        "paths/0000-0001-line/result.safetensors": lambda file: flip(file, 0.03),  # its notes
        "scans/plane-0000-0001/result.safetensors": zeros,
        "paths/0000-0002-bezier/along.csv": flip,
        "minima/0002/config.yaml": lambda file: file.write_bytes(b"\xff" + file.read_bytes()),
        "minima/0000/metrics.csv": lambda file: file.unlink(),
        "ensembles/fge-0000/digests.json": lambda file: file.write_text("null"),
        "report/inputs.json": lambda file: file.write_text(file.read_text()[:99]),
        "bounds-autoneb.csv": lambda file: file.write_bytes(file.read_bytes() + b"\xff"),
    },
    {
        "bounds-line.csv": lambda file: file.write_text(file.read_text().replace("1,2,,", "1,2,,1")),
        "bounds-bezier.csv": lambda file: file.write_text("".join(file.read_text().splitlines(True)[:2])),  # cut
        "report/index.html": flip,
        "summary.csv": lambda file: file.write_text(file.read_text()[:99]),
        "ensembles/fge-0000/digests.json": lambda file: file.write_bytes(b"\xff[1]"),
    },
]


@pytest.mark.parametrize("damages", DAMAGES)
def test_verify_names_each_damaged_file_in_a_line_with_its_remedy(lowloss, whole, tmp_path, damages):
    root = whole.copy(tmp_path)
    for place, damage in damages.items():
        damage(root / place)
    found = verified(lowloss, root)
    assert len(found) == len(damages), found
    for place in damages:
        (line,) = [line for line in found if line.startswith(f"{root / place} ")]
        assert "delete " in line or "run the same command" in line
    if "bounds-bezier.csv" not in damages:
        return
    # What follows from the paths is written anew by their stage, and only a table with a seal has to be deleted.
    assert len(line := [line for line in found if "/bounds-" in line]) == 2
    assert all(one.endswith(": run the same command with stages=[path], which writes it anew") for one in line)
    (root / "bounds-autoneb.csv").write_text((root / "bounds-line.csv").read_text())
    seal(root / "bounds-autoneb.csv")
    (line,) = [line for line in verified(lowloss, root) if "bounds-autoneb" in line]
    assert line.endswith(
        "is not what the paths give: delete it and run the same command with stages=[path], which writes it anew"
    )
    (root / "bounds-autoneb.csv").unlink()
    assert lowloss.tiny(tmp_path, "stages=[path]").status == 0
    for finder in ("autoneb", "bezier", "line"):
        assert (root / f"bounds-{finder}.csv").read_bytes() == (whole.root / f"bounds-{finder}.csv").read_bytes()


@pytest.mark.parametrize(
    "name", ["paths/0000-0001-line/result.safetensors", "minima/0000/digests.json", "report/inputs.json", "summary.csv"]
)
def test_a_pipe_in_the_place_of_a_file_holds_up_nothing(lowloss, whole, tmp_path, name):
    root = whole.copy(tmp_path)
    (root / name).unlink()
    os.mkfifo(root / name)
    assert any(name in line and "it is no regular file" in line for line in verified(lowloss, root))


def test_damage_is_told_by_whoever_uses_it_and_its_remedy_works(lowloss, whole, tmp_path):
    root, told = whole.copy(tmp_path, "ensembles/independent-3"), []
    for place, damage in DAMAGES[0].items():
        damage(root / place)
    while (done := lowloss.tiny(tmp_path)).status:
        told.append(re.search(f"{root}/(\\S+) is unreadable", done.message)[1])
        folder = re.search(r"delete (\S+) and run", done.message)[1]
        assert folder == str((root / told[-1]).parent)
        shutil.rmtree(folder)
    # The learning curve of minimum 0 is read before minimum 0 itself; a report's record is made anew.
    assert sorted(told) == sorted(place for place in DAMAGES[0] if place.count("/") == 2)
    assert lowloss.results(root / "minima") == lowloss.results(whole.root / "minima")
    assert lowloss.results(root / "paths") == lowloss.results(whole.root / "paths")
    (root / "bounds-autoneb.csv").unlink()
    assert lowloss.tiny(tmp_path).status == 0
    assert lowloss.results(root) == lowloss.results(whole.root)
    assert not verified(lowloss, root)


def test_a_rerun_tells_of_damage_that_it_has_no_use_for(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path)
    table = root / "bounds-line.csv"
    table.write_text(table.read_text().replace("0,1,", "0,1,9", 1))  # a changed saddle
    again = lowloss.tiny(tmp_path)
    assert again.status == 0, again.err
    assert f"{table} is damaged (its digest is missing, or another" in again.err
    assert table.read_bytes() == (whole.root / table.name).read_bytes()
    file = root / "scans/plane-0000-0001/result.safetensors"
    flip(file, 0.99)
    flip(root / "paths/0000-0001-line/metrics.csv")
    folder = root / "paths/0000-0001-line"
    refused = lowloss.tiny(tmp_path)
    assert f"{folder}/metrics.csv is unreadable (its digest" in (message := refused.message)
    assert "report: " not in refused.err  # that it is up to date
    assert message.endswith(f"delete {folder} and run the same command again (1 more by `lowloss verify {root}`)")


def test_a_minimum_replaced_under_what_was_made_from_it_is_noticed(lowloss, whole, tmp_path):
    """By the copy of another minimum, which is a whole and right result by itself."""
    root = whole.copy(tmp_path)
    shutil.rmtree(root / "minima" / "0001")
    shutil.copytree(root / "minima" / "0000", root / "minima" / "0001")
    for stage in ("path", "minima"):
        assert "it is that of minima/0000" in lowloss.tiny(tmp_path, f"stages=[{stage}]").message
    assert len(verified(lowloss, root)) > 4  # the copy, paths, ensemble, scan
    # A minimum of its own name, from elsewhere.
    shutil.copy(whole.root / "minima/0001/digests.json", root / "minima/0001/digests.json")
    message = lowloss.tiny(tmp_path, "stages=[path]").message
    assert f"{root}/paths/0000-0001-autoneb was made from another minima/0001 than the one that is there now" in message
    report = lowloss.tiny(tmp_path, "stages=[report]")
    assert report.status == 1
    assert f"without what is damaged: {root}/minima/0001/" in report.message
    shutil.rmtree(root / "minima" / "0001")  # it is made anew, as it was
    again = lowloss.tiny(tmp_path)
    assert again.status == 0, again.err
    assert lowloss.results(root) == lowloss.results(whole.root)
