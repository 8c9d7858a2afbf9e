"""`lowloss compare` on strangers' studies and the report on damaged records: no hang, no traceback, no other loss."""

import base64
import csv
import gzip
import json
import math
import os
import resource
import shutil
import socket
from datetime import date

import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lowloss import status
from lowloss.files import load_notes
from lowloss.report import gather

PATH = "paths/0000-0001-line"


def rows_of(folder):
    with open(folder / "table.csv", newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def page_of(folder):
    page = (folder / "index.html").read_text(encoding="utf-8")
    return json.loads(gzip.decompress(base64.b64decode(page.partition('id="data">')[2].partition("</script>")[0])))


@pytest.fixture
def pair(whole, tmp_path):
    """A study to be left as it is, `good`, and one to be damaged, `t`, side by side."""
    shutil.copytree(whole.root, tmp_path / "good")
    return whole.copy(tmp_path)


def compared(lowloss, folder, *told):
    """Compare; the good study must be whole. Returns the lines of what is left out, the table and the page's data."""
    done = lowloss.plain(folder, "compare", ".")
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    rows, data = rows_of(folder / "compare"), page_of(folder / "compare")
    assert len([row for row in rows if row["study"] == "good"]) == 6
    lines = [line for line in done.err.splitlines() if line.startswith("left out: ")]
    for part in told:
        assert [line for line in lines if part in line], (part, done.err)
    return lines, rows, data


def set_notes(artifact, change):
    """Change the notes of a result by a function, or set them to a JSON text."""
    file = artifact / "result.safetensors"
    if callable(change):
        notes = load_notes(file, foreign=True)
        change(notes)
        change = json.dumps(notes)
    save_file(load_file(file), file, {"notes": change})


def set_key(artifact, key, value):
    set_notes(artifact, lambda notes: notes.update({key: value}))


NOTES = {
    "list": "[]",
    "null": "null",
    "text": '"x"',
    "deep": "[" * 100_000,
    "cut": '{"units": ',
    "long-number": '{"units": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("kind", ["minima/0001", PATH, "ensembles/fge-0000"])
@pytest.mark.parametrize("notes", NOTES)
def test_notes_that_are_none(lowloss, pair, kind, notes):
    set_notes(pair / kind, NOTES[notes])
    lines, rows, _ = compared(lowloss, pair.parent, str(pair / kind))
    assert len(lines) == 1
    assert len([row for row in rows if row["study"] == "t"]) == 6 - (kind == PATH)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (PATH, "saddle_train_loss", 10**400),
        (PATH, "saddle_train_loss", "0.1"),
        (PATH, "saddle_train_loss", True),
        (PATH, "start", [0]),
        (PATH, "units", ["loss"]),
        (PATH, "units", {"loss": 5}),
        (PATH, "units", None),
        ("minima/0000", "train_loss", 10**400),
        ("minima/0000", "train_loss", {}),
        ("minima/0000", "units", "loss"),
        ("ensembles/fge-0000", "rows", 5),
        ("ensembles/fge-0000", "rows", [["fge", 2, 10**400, 0.1]]),
    ],
)
def test_a_note_that_is_no_number_or_no_unit(lowloss, pair, kind, key, value):
    set_key(pair / kind, key, value)
    lines, rows, _ = compared(lowloss, pair.parent, str(pair / kind))
    assert len(lines) == 1
    assert len([row for row in rows if row["study"] == "t"]) == 6 - (kind == PATH)


def test_an_index_beyond_all_minima_takes_no_memory(lowloss, pair):
    set_key(pair / PATH, "end", 10**12)
    _, rows, _ = compared(lowloss, pair.parent)
    assert len(rows) == 12


def test_studies_of_other_metrics_are_compared(lowloss, pair):
    for artifact in [*pair.glob("minima/*"), *pair.glob("paths/*-line")]:
        set_key(artifact, "units", {"loss": ""})
    for artifact in pair.glob("minima/*"):
        set_notes(artifact, lambda notes: [notes.pop(name) for name in [*notes] if name.endswith("_error")])
    _, rows, _ = compared(lowloss, pair.parent)
    assert len(rows) == 12
    shutil.rmtree(pair / "minima")
    (pair / "minima").mkdir()
    _, rows, _ = compared(lowloss, pair.parent)
    assert len(rows) == 12


@pytest.mark.parametrize("shape", [(), (3, 4), None])
def test_a_point_that_is_no_vector(lowloss, pair, shape):
    file = pair / "minima" / "0000" / "result.safetensors"
    tensors, notes = load_file(file), load_notes(file)
    theta = tensors.pop("theta")
    if shape is not None:
        tensors["theta"] = theta[: math.prod(shape)].reshape(shape)
    save_file(tensors, file, {"notes": json.dumps(notes)})
    lines, rows, _ = compared(lowloss, pair.parent, str(file.parent))
    assert len(lines) == 1
    assert {row["parameters"] for row in rows if row["study"] == "t"} == {""}
    assert len(rows) == 12


def bomb(lines=30, width=10):
    levels = [f"a{i}: &a{i} [{','.join([f'*a{i - 1}' if i else 'x'] * width)}]" for i in range(lines)]
    return "model:\n" + "\n".join(f"  {level}" for level in levels) + "\n"


CONFIGS = {
    "bomb": bomb().encode(),
    "circle": b"model: &a [*a]\n",
    "deep": b"model: " + b"[" * 50_000,
    "deep-list": b"a: \n - " + b"- " * 50_000,
    "latin": "model: {_target_: é}\n".encode("latin-1"),
    "null-bytes": bytes(1000),
    "list": b"[1, 2]\n",
    "empty": b"",
    "odd-keys": b"model: {2020-01-01: 1, [a]: 2}\n",
    "long-number": b"seed: " + b"9" * 5000 + b"\n",
    "minutes": b"seed: " + b"1:59" + b":59" * 70_000 + b"\n",
    "large": b"seed: 1\n" + b"#" * (1 << 25),
    "python": b"model: !!python/object/apply:os.system [true]\n",
}


def unsealed(folder):
    """Leave no record of digests, as other programs leave none."""
    for record in folder.rglob("digests.json"):
        record.unlink()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_that_is_none(lowloss, pair, config):
    files = [*pair.glob("*/*/config.yaml")]
    for file in files:
        file.write_bytes(CONFIGS[config])
    lines, rows, _ = compared(lowloss, pair.parent, *(str(file) for file in files))
    assert len(lines) == len(files)
    assert len(rows) == 12


@pytest.mark.parametrize(
    "config",
    [
        {"model": 5, "data": [1], "seed": float("nan"), "optimizer": {"lr": float("inf"), "day": date(2020, 1, 1)}},
        {"model": None, "data": {"_target_": [1]}, "study": "x", "minima": {}, "parameters": 5, "seed": 10**400},
        {"model": {"_target_": None, "sizes": {"a": b"x"}}, "seed": {1: [{}]}, "finder": "x"},
    ],
)
def test_a_configuration_of_odd_values_is_shown(lowloss, pair, config):
    for file in pair.glob("*/*/config.yaml"):
        file.write_text(yaml.safe_dump(config))
    lines, _, _ = compared(lowloss, pair.parent, "config.yaml is unreadable (its digest is another than when")
    assert len(lines) == len([*pair.glob("*/*/config.yaml")])
    unsealed(pair)
    lines, rows, data = compared(lowloss, pair.parent)
    assert not lines
    assert len(rows) == 12
    assert {row["study"] for row in rows} == {"good", "t"}
    assert {study["name"] for study in data["studies"]} == {"good", "t"}


def fifo(file):
    os.mkfifo(file)


def zero(file):
    file.symlink_to("/dev/zero")


def pipe(file):
    """A socket; its path must be short."""
    here = os.open(file.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{here}/{file.name}")
    os.close(here)


def folder(file):
    file.mkdir()


def sparse(file):
    with file.open("wb") as stream:
        stream.write((1 << 38).to_bytes(8, "little"))
        stream.truncate(1 << 39)


def kernel(file):
    file.symlink_to("/proc/kmsg")


@pytest.mark.parametrize("make", [fifo, zero, pipe, folder, sparse, kernel])
@pytest.mark.parametrize(
    "name", [f"{PATH}/along.csv", f"{PATH}/config.yaml", f"{PATH}/result.safetensors", "minima/0000/result.safetensors"]
)
def test_what_is_no_file_is_not_opened(lowloss, pair, name, make):
    for file in pair.glob(f"{name.rpartition('/')[0]}/../*/config.yaml") if "config" in name else [pair / name]:
        file.unlink()
        make(file)
    lines, rows, _ = compared(lowloss, pair.parent, str(pair / name))
    assert len([row for row in rows if row["study"] == "t"]) == 6 - (name.startswith("paths") and "config" not in name)
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize("make", [fifo, zero, pipe, folder, kernel])
def test_a_figure_that_is_no_file_is_not_opened(lowloss, pair, make):
    make(pair / "report" / "figures" / "a.png")
    _, _, data = compared(lowloss, pair.parent, str(pair / "report" / "figures" / "a.png"))
    assert [["a" in [name for name, _ in study["pictures"]] for study in data["studies"]]] == [[False, False]]


def test_a_figure_from_elsewhere_is_left_out(lowloss, pair, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    secret.write_bytes(b"the secret")
    (pair / "report" / "figures" / "a.png").symlink_to(secret)
    (pair / "report" / "figures" / "b.png").symlink_to("paths.png")
    lines, _, data = compared(lowloss, pair.parent, "a.png is left out (it lies outside of the study)")
    assert len(lines) == 1
    (pictures,) = [dict(study["pictures"]) for study in data["studies"] if study["name"] == "t"]
    assert "a" not in pictures
    assert pictures["b"] == "../t/report/figures/b.png"
    shutil.rmtree(pair / "report" / "figures")
    (pair / "report" / "figures").symlink_to(secret.parent)
    _, _, data = compared(lowloss, pair.parent, "secret.png is left out")
    assert [study["pictures"] for study in data["studies"] if study["name"] == "t"] == [[]]
    assert "secret" not in json.dumps(data)


def test_a_configuration_from_elsewhere_is_not_shown(lowloss, pair, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "config.yaml"
    secret.write_text("password: secret\n")
    for file in pair.glob("*/*/config.yaml"):
        file.unlink()
        file.symlink_to(secret)
    _, _, data = compared(lowloss, pair.parent, "it lies outside of the study")
    assert "password" not in json.dumps(data)


def test_figures_are_linked(lowloss, pair):
    sparse(pair / "report" / "figures" / "a.png")
    _, _, data = compared(lowloss, pair.parent)
    (pictures,) = [dict(study["pictures"]) for study in data["studies"] if study["name"] == "t"]
    assert {"a", "paths"} <= {*pictures}
    assert all(source == f"../t/report/figures/{name}.png" for name, source in pictures.items())


TABLES = {
    "wide-cell": b"arc,train_loss\n0," + b"9" * 140_000 + b"\n",
    "latin": "arc,é\n".encode("latin-1"),
    "empty": b"",
    "ragged": b"arc,train_loss\n1\n",
    "head": b"arc,train_loss,test_loss,test_error\n",
    "words": b"arc,train_loss,test_loss,test_error\na,b,c,d\n",
    "null-bytes": bytes(100),
    "quote": b'arc,"train_loss\n' * 100,
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_none(lowloss, pair, table):
    (pair / PATH / "along.csv").write_bytes(TABLES[table])
    lines, rows, _ = compared(lowloss, pair.parent, f"{pair / PATH / 'along.csv'} is unreadable")
    assert len(lines) == 1
    assert len(lines[0]) < 1200
    assert len(rows) == 11


def test_a_table_with_another_number_is_left_out(lowloss, pair):
    """It reads well; without a record of its digest, as other programs leave it, nothing is known of it."""
    file = pair / PATH / "along.csv"
    text = file.read_text()
    file.write_text(text[:-3] + ("1" if text[-3] != "1" else "2") + text[-2:])
    lines, rows, _ = compared(lowloss, pair.parent, f"{file} is unreadable (its digest is another than when")
    assert (len(lines), len(rows)) == (1, 11)
    (pair / PATH / "digests.json").unlink()
    lines, rows, _ = compared(lowloss, pair.parent)
    assert (lines, len(rows)) == ([], 12)


def test_no_cell_is_a_formula(lowloss, pair):
    unsealed(pair.parent)
    for file in pair.glob("*/*/config.yaml"):
        file.write_text(yaml.safe_dump({"model": "=1+1", "data": "@x", "=cmd": "+x", "seed": -1.5, "lr": "-1"}))
    for file in (pair.parent / "good").glob("*/*/config.yaml"):
        with file.open("a") as stream:
            stream.write("=cmd: \"\\ty\"\nlr: '-2'\n")
    os.rename(pair, pair.parent / "-t")
    _, rows, _ = compared(lowloss, pair.parent)
    (row,) = [row for row in rows if row["study"] == "'-t"][:1]
    assert (row["model"], row["data"], row["'=cmd"], row["lr"]) == ("'=1+1", "'@x", "'+x", "'-1")
    assert row["seed"] == "-1.5"
    text = (pair.parent / "compare" / "table.csv").read_text()
    assert not [cell for line in csv.reader(text.splitlines()) for cell in line if cell[:1] in tuple("=+@\t")]
    # The page has no formulas, and shows what there is.
    assert {study["name"] for study in page_of(pair.parent / "compare")["studies"]} == {"good", "-t"}


def test_a_deep_configuration_is_read(lowloss, pair):
    unsealed(pair)
    for file in pair.glob("*/*/config.yaml"):
        file.write_text("".join(" " * i + "a:\n" for i in range(600)))
    _, rows, _ = compared(lowloss, pair.parent)
    assert len(rows) == 12


def test_a_name_does_not_write_to_the_terminal(lowloss, pair):
    set_notes(pair / PATH, "null")
    os.rename(pair, pair.parent / "a\x1b[2J\nleft out: b")
    lines, _, _ = compared(lowloss, pair.parent)
    assert len(lines) == 1
    assert "\x1b[2J" not in lines[0]


def test_a_link_to_everything_ends(lowloss, pair, monkeypatch):
    (pair.parent / "a").symlink_to("/")
    many = pair.parent.parent / f"{pair.parent.name}-many"
    for k in range(120):
        (many / f"{k // 10}" / f"{k}").mkdir(parents=True)
    monkeypatch.setattr(status, "MOST_LINKED", 100)
    told = []
    monkeypatch.setattr(gather.progress, "say", told.append)
    (pair.parent / "b").symlink_to(many)
    found = gather.find_studies([pair.parent])
    assert {root.name for root in found} == {"good", "t"}
    links = [pair.parent / name for name in "ab"]
    assert told == [
        f"left out: more than 100 folders below the link {link}: name those that hold studies" for link in links
    ]


def test_a_study_that_cannot_be_read_at_all_is_left_out(lowloss, pair, monkeypatch):
    read = gather.read_study

    def broken(root, jobs):
        if root.name == "t":
            raise RecursionError("too deep")
        return read(root, jobs)

    monkeypatch.setattr(gather, "read_study", broken)
    told = []
    monkeypatch.setattr(gather.progress, "say", told.append)
    records, table = gather.gather([pair.parent], {})
    assert [record.root.name for record in records] == ["good"]
    assert len(table) == 6
    assert told == [f"left out: {pair} is unreadable (RecursionError: too deep)"]


def test_memory_stays_small(lowloss, pair):
    for name in (f"{PATH}/along.csv", f"{PATH}/config.yaml", "report/figures/a.png"):
        (pair / name).unlink(missing_ok=True)
        sparse(pair / name)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    compared(lowloss, pair.parent)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before < 1 << 20  # kB


# What a report was made from and wrote is a record that may be damaged.
LITTLE = ["model=mlp", "model.hidden=[4]", "minima.count=2", "minima.epochs=1", "finder=line", "path.points=4"]


@pytest.fixture(scope="module")
def little(lowloss, whole, tmp_path_factory):
    """A study with two minima and a line between them, whose report is soon made."""
    outputs = tmp_path_factory.mktemp("little")
    made = lowloss(outputs, *LITTLE, "stages=[minima,path,report]")
    assert made.status == 0, made.err
    return type(whole)(outputs, made)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'{"made_from": {}, "written": {}}',
        b'{"written": null}',
        "{'é'}".encode("latin-1"),
        b"[" * 100_000,
        None,
    ],
)
def test_an_odd_record_of_a_report_is_out_of_date(lowloss, little, tmp_path, record):
    file = little.copy(tmp_path) / "report" / "inputs.json"
    if record is None:
        file.unlink()
        os.mkfifo(file)
    else:
        file.write_bytes(record)
    again = lowloss(tmp_path, *LITTLE, "stages=[report]")
    assert again.status == 0, again.err
    assert "up to date" not in again.err
    assert json.loads(file.read_text()).keys() == {"made_from", "written"}
    assert "up to date" in lowloss(tmp_path, *LITTLE, "stages=[report]").err


@pytest.mark.parametrize(
    "written", [None, [], ["report/index.html"], {"report/index.html": 5}, {"../../../../dev/zero": ""}, {"\0": ""}, {}]
)
def test_odd_files_in_the_record_of_a_report_are_out_of_date(lowloss, little, tmp_path, written):
    file = little.copy(tmp_path) / "report" / "inputs.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "written": written}))
    again = lowloss(tmp_path, *LITTLE, "stages=[report]")
    assert again.status == 0, again.err
    assert "up to date" not in again.err


@pytest.mark.parametrize("name", ["report/index.html", "report/figures/paths.png", "summary.csv"])
@pytest.mark.parametrize("damage", [lambda held: held[:-7], lambda held: held[:-7] + b"#" * 7, lambda held: b""])
def test_what_is_damaged_in_a_report_is_made_again(lowloss, little, tmp_path, name, damage):
    file = little.copy(tmp_path) / name
    file.write_bytes(damage(file.read_bytes()))
    again = lowloss(tmp_path, *LITTLE, "stages=[report]")
    assert again.status == 0, again.err
    assert "up to date" not in again.err
    assert file.read_bytes() == (little.root / name).read_bytes()
    assert file.stat().st_size == (little.root / name).stat().st_size
    assert "up to date" in lowloss(tmp_path, *LITTLE, "stages=[report]").err


@pytest.mark.parametrize("held", [b"\xff\xfe", b"", None])
def test_a_damaged_table_of_bounds_is_written_again(lowloss, whole, tmp_path, held):
    root = whole.copy(tmp_path)
    explored = ("stages=[path]", "path.pairs=explore")
    assert lowloss.tiny(tmp_path, *explored).status == 0
    file = root / "bounds-line.csv"
    before = file.read_bytes()
    file.unlink()
    os.mkfifo(file) if held is None else file.write_bytes(held)
    again = lowloss.tiny(tmp_path, *explored)
    assert again.status == 0, again.err
    assert file.read_bytes() == before


def test_an_odd_comparison_is_not_told(lowloss, whole, tmp_path):
    file = whole.copy(tmp_path) / "report" / "comparison.csv"
    file.write_bytes(b"\xff,\n1\n")
    again = lowloss.tiny(tmp_path, "stages=[report]")
    assert again.status == 0, again.err
    assert "up to date" in again.err
