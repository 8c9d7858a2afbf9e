"""Families of experiments as tables, a user's own among them; and a wrong name is answered with the nearest one."""

import subprocess
import sys

import pytest
import yaml

from lowloss import cli
from lowloss.conf import read_families
from lowloss.errors import LowlossError

FAMILY = """# Networks of my own.
experiment,base,model,optimizer.lr,finder
mine_a,quickstart,mynet,1e-3,"[line]"
mine_b,mine_a,,0.5,
"""


def test_families_and_options_of_the_users_own(tmp_path):
    for name, text in {"family/mine.csv": FAMILY, "model/mynet.yaml": "_target_: lowloss.model.MLP\n"}.items():
        file = tmp_path / name
        file.parent.mkdir()
        file.write_text(text)

    def told(*arguments):
        command = [sys.executable, "-m", "lowloss", *arguments, "--config-dir", str(tmp_path)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return yaml.safe_load(done.stdout) if done.returncode == 0 else done.stderr

    config = told("experiment=mine_b", "--cfg", "job")
    assert (config["name"], config["optimizer"]["lr"]) == ("mine_b", 0.5)
    assert config["model"] == {"_target_": "lowloss.model.MLP"}
    assert [name for name, node in config["finder"].items() if "_target_" in node] == ["line"]
    assert config["minima"]["epochs"] == 40
    sweep = told("experiment=mine", "--cfg", "hydra", "-p", "hydra.sweeper.params")
    assert sweep == {"experiment@_global_": "mine_a,mine_b"}
    assert "no experiment/mine_c (did you mean mine_b or mine_a?)" in told("experiment=mine_c")
    unknown = told("model=mynut")
    assert "no model/mynut (did you mean mynet?)" in unknown
    assert "cnn_12x1" in unknown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("experiment,model\na,mlp\n", "has no column base"),
        ("experiment,base\na\n", "has 2 columns, but 1 cells in a"),
        ("experiment,base\na,\n", "has no base in a,"),
        ("experiment,base\na,b\na,c\n", "has a twice"),
        ("# nothing\n", "is no CSV table with a head"),
    ],
)
def test_a_damaged_family_is_told(tmp_path, text, told):
    file = tmp_path / "family" / "f.csv"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(LowlossError, match=told) as raised:
        read_families(tmp_path)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("comapre", "no command comapre (did you mean compare?); the commands are compare, papers,"),
        ("quickstrat", "no command quickstrat (did you mean experiment=quickstart?)"),
        ("modle=mlp", "'modle' (did you mean model?)"),
        ("recipes=he2016", "'recipes' (did you mean recipe?)"),
        ("minima.cuont=3", "'minima.cuont' (did you mean count?)"),
        ("finder=[line,autonep]", "no finder/autonep (did you mean autoneb?); finder can be autoneb, bezier,"),
        ("experiment=draxler2018_c10_cnn25", "draxler2018_c10_cnn24"),
        ("hydra/launcher=slrum", "(did you mean slurm?); hydra/launcher can be basic, in_turn, local, slurm"),
    ],
)
def test_the_nearest_name_is_told(monkeypatch, capsys, argument, told):
    monkeypatch.setattr(sys, "argv", ["lowloss", argument])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == 1
    message = capsys.readouterr().err
    assert told in message
    assert message.count("\n") == 1
