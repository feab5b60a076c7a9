import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from midblock.cli.main import main

PLAN = {
    "base": "start",
    "data": "prompts.jsonl",
    "tune": {"max_steps": 1, "device": "cpu", "save_steps": 0, "max_length": 48},
    "grid": {"layers": ["all", "010"]},
    "evaluate": {"tasks": ["exact_match:other.jsonl"], "num_samples": 4, "max_new_tokens": 1},
}
RUN = ["study", "study.yaml", "-o", "out", "--backend", "here", "--threads", "1"]
LOOK = """
import sys
from midblock.cli.main import main
code = main(["study", "study.yaml", "-o", "out", "--resume"])
print(*(set(sys.modules) & {"torch", "transformers", "pandas", "scipy", "matplotlib"}), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def planned(here):
    rows = [{"question": f"How many are {n} + {2 * n}?", "answer": f"#### {3 * n}"} for n in range(1, 9)]
    (here / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "study.yaml").write_text(yaml.safe_dump(PLAN))
    return here


def test_arms_in_a_table_the_page_and_a_finished_study_told_at_once(planned, capfd):
    assert main([*RUN, "--peft-comparison"]) == 0
    out, err = capfd.readouterr()
    summary = json.loads((planned / "out" / "summary.json").read_text())
    assert summary["headline"] in out
    assert all(arm["arm"] in out for arm in summary["tasks"][0]["arms"])
    assert "2 trials: 2 arms (all, 010)" in err
    assert "Cost: 2 trials, 2 steps" in err
    page = (planned / "out" / "report.html").read_text()
    assert "P(best)" in page
    assert "<svg viewBox" in page
    assert sorted(file.name for file in (planned / "out" / "figures").iterdir()) == ["efficiency.pdf", "efficiency.png"]
    assert len(list((planned / "out" / "peft_comparison").glob("lora--*.json"))) == 2
    # in a process of its own, to see what it loads
    again = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr.strip()) == (0, "")
    assert again.stdout.splitlines()[-2:] == out.splitlines()[-2:]
    assert main([*RUN, "--resume", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["tasks"] == summary["tasks"]
    (planned / "other_plan.yaml").write_text(yaml.safe_dump(PLAN | {"probability": 0.9}))
    assert main(["study", "other_plan.yaml", "-o", "out", "--resume"]) == 2
    assert "probability: 0.95 then, 0.9 now" in capfd.readouterr().err


def test_a_failed_trial_is_exit_code_2_with_a_page_and_the_rest(planned, capfd):
    plan = {**PLAN, "grid": {"layers": ["all"]}, "trials": [{"name": "wide", "lora_r": 33}]}
    (planned / "study.yaml").write_text(yaml.safe_dump(plan))
    assert main(RUN) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("midblock: ")]
    assert len(said) == 1
    assert "1 of 2 trials failed, wide first: rank 33 is larger than" in said[0]
    assert "rank 33 is larger than" in Path("out/report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"layer": ["all"]}}, "did you mean 'layers'?"),
        ({"grid": {"layers": ["all", "all"]}}, "all is the name of two trials"),
        (
            {"evaluate": {"tasks": ["exact_match:prompts.jsonl"], "num_samples": 3}},
            "test prompts are training prompts too",
        ),
        ({"evaluate": {"tasks": ["chain_sun"]}}, "did you mean 'chain_sum'?"),
        ({"base": "nowhere/"}, "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(planned, failure, change, message):
    (planned / "study.yaml").write_text(yaml.safe_dump(PLAN | change))
    assert message in failure("study", "study.yaml", "-o", "out")
    assert not (planned / "out").exists()


def test_a_dry_run_stops_before_anything_is_written(planned, capfd):
    assert main([*RUN, "--dry-run"]) == 0
    assert "Compared with: all" in capfd.readouterr().err
    assert not (planned / "out").exists()
