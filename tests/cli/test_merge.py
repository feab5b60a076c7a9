import json

from transformers import AutoModelForCausalLM

from midblock.cli.main import main


def test_merge_says_what_it_wrote(here, capfd):
    assert main(["merge", "start", "sft", "--alphas", "0,0.5,1", "--module-alphas", "mlp=1", "-o", "out"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0] == "sft counts most, with alpha 1, in block 2; the mean over the blocks is 0.50."
    assert out[1].startswith("30 tensors, 24 copied bit for bit, 0.2 MB.")
    assert "Written: out" in out
    assert (here / "out" / "report.html").exists()
    AutoModelForCausalLM.from_pretrained(here / "out")
    assert main(["merge", "start", "sft", "--alphas", "-0.5,1.5", "-o", "two", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["alphas"] == [-0.5, 0.5, 1.5]
    assert any("extrapolates" in note for note in told["notes"])
    assert main(["merge", "--config", "out/config.yaml", "-o", "three"]) == 0
    assert (here / "three" / "model.safetensors").read_bytes() == (here / "out" / "model.safetensors").read_bytes()


def test_mistakes_of_merge(here, failure):
    assert "4 alphas fit neither" in failure("merge", "start", "sft", "--alphas", "0,1,0,1", "-o", "out")
    assert "is no number" in failure("merge", "start", "sft", "--alphas", "0,x", "-o", "out")
    assert "did you mean 'mlp'" in failure(
        "merge", "start", "sft", "--alphas", "1", "--module-alphas", "mpl=0", "-o", "out"
    )
    assert "no model at" in failure("merge", "start", "stf", "--alphas", "1", "-o", "out")
    assert "--alphas" in failure("merge", "start", "sft", "-o", "out")
    assert not (here / "out").exists()
