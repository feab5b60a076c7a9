import json

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from midblock.cli.main import main


@pytest.fixture
def adapter(here):
    model = AutoModelForCausalLM.from_pretrained(here / "start")
    model.name_or_path = str(here / "start")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], rank_pattern={"layers.1.*": 6}))
    tuned.save_pretrained(here / "adapter")
    return here / "adapter"


def test_export_says_what_it_wrote_and_how_exact_it_is(adapter, capsys):
    assert main(["export", str(adapter), "--to", "equal-rank", "-o", "even"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Note: ranks 4, 6 padded to 8; vLLM: --max-lora-rank 8.",
        "Checked: largest error of a tensor's change, relative to the change: 0.0e+00.",
        "Written: even",
    ]
    assert main(["export", str(adapter), "-o", "whole", "--dtype", "bfloat16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["to"], told["error"]) == ("whole", "merged", 0.0)


def test_mistakes_of_export(adapter, failure):
    assert "did you mean 'equal-rank'" in failure("export", adapter, "--to", "equal_rank", "-o", "out")
    assert "exists already" in failure("export", adapter, "-o", adapter)
    assert "no model at" in failure("export", "adaptor", "-o", "out")
    assert "--output" in failure("export", adapter)
