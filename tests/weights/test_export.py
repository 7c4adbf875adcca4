"""Exports: what transformers loads is our model, and the folder comes back as it went."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.violence import full_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

import overnight
from overnight import resolve
from overnight.config import ModelConfig
from overnight.data import tokens
from overnight.data.tokens import Tokenizer
from overnight.decode import Sampling
from overnight.errors import Failure, UserError
from overnight.files import sealed
from overnight.generate import generate
from overnight.models.gpt2 import GPT
from overnight.saved import STATE
from overnight.weights import export
from overnight.weights.tensors import Weights

Cli = Callable[..., Any]
CPU = torch.device("cpu")
TEXT = "The night: 1,000 steps\n\n\tdef f(x):  return x**2   # 'tis don't we'll \u00e9\u4e2d\U0001f600"
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": tokens.gpt2,
    "bpe": lambda: tokens.train_bpe(iter([TEXT * 3]), 300),
    "char": lambda: tokens.train_char([TEXT]),
}
MODELS = {
    "gpt2": ModelConfig(2, 2, 16, 24),
    "nanogpt": ModelConfig(2, 2, 16, 24, bias=False, activation="gelu"),
}


def make(tokenizer: Tokenizer, model: str, padding: int = 0) -> Weights:
    config = replace(MODELS[model], vocab_size=tokenizer.vocab_size + padding)
    made = GPT(config, tokenizer.vocab_size).init_weights(seed=1)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return Weights(config, dict(made.state_dict()), tokenizer, tokenizer.vocab_size)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_transformers_loads_the_same_model_and_tokenizer(tmp_path: Path, kind: str, model: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    weights = make(tokenizer, model, padding=7)
    difference = export.to_hf(weights, tokenizer, tmp_path / "out", "card", export.import_transformers)
    assert difference is not None
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.encode(TEXT).tolist()
    assert their_tokenizer.encode(TEXT) == ids
    assert their_tokenizer.decode(ids) == TEXT
    assert their_tokenizer.eos_token_id == tokenizer.eot
    assert theirs.config.vocab_size == len(their_tokenizer) == tokenizer.vocab_size
    ours, prompt = weights.model(), torch.tensor([ids[:10]])
    with torch.no_grad():
        mine = ours.logits(ours.hidden(prompt))[..., : tokenizer.vocab_size]
        assert (mine - theirs(prompt).logits).abs().max() <= 1e-4
    greedy = theirs.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)
    written = [token for (token,) in generate(ours, prompt, 12, Sampling(temperature=0.0), 0)]
    until_end = written[: written.index(tokenizer.eot)] if tokenizer.eot in written else written
    assert greedy[0, 10 : 10 + len(until_end)].tolist() == until_end


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_exported_folder_comes_back(tmp_path: Path, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    weights = make(tokenizer, "gpt2", padding=5)
    export.to_hf(weights, tokenizer, tmp_path / "out", "card", export.import_transformers)
    loaded = resolve.load(f"hf:{tmp_path / 'out'}", CPU)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.sha256 == tokenizer.sha256
    for name, tensor in weights.tensors.items():
        used = tensor[: tokenizer.vocab_size] if name == "wte.weight" else tensor
        assert torch.equal(loaded.weights.tensors[name], used)


def test_an_export_that_is_wrong_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers reads another epsilon from the config than ours computes with."""
    usual = export.config_of
    monkeypatch.setattr(export, "config_of", lambda *given: usual(*given) | {"layer_norm_epsilon": 0.1})
    tokenizer = TOKENIZERS["char"]()
    with pytest.raises(Failure, match="logits differ from ours"):
        export.to_hf(make(tokenizer, "gpt2"), tokenizer, tmp_path / "out", "card", export.import_transformers)
    assert list(tmp_path.iterdir()) == []


def test_a_small_model_waits_for_transformers_to_be_imported(hf_folder: Path, tmp_path: Path) -> None:
    """In a new process, where the weights are there long before transformers is."""
    command = [sys.executable, "-m", "overnight", "export", f"hf:{hf_folder}", "--to", "hf"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, "the same logits" in done.stdout) == (0, True), done.stdout + done.stderr


def test_without_transformers_nothing_is_checked(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["char"]()
    weights = make(tokenizer, "gpt2")
    assert export.to_hf(weights, tokenizer, tmp_path / "out", "card", lambda: None) is None
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["char"]()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for write in (
        lambda out: export.to_hf(make(tokenizer, "gpt2"), tokenizer, out, "", export.import_transformers),
        lambda out: export.to_llmc(make(tokenizer, "gpt2"), tokenizer, out),
    ):
        with pytest.raises(UserError, match="exists: choose another --out"):
            write(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_figures_that_the_checkpoint_does_not_vouch_for_are_left_out(cli: Cli, run: Path) -> None:
    content = (run / "records.jsonl").read_text()
    (run / "records.jsonl").write_text(content.replace('"loss": ', '"loss": 1', 1))
    outcome = cli("export", "runs/x", "--to", "hf", "--out", "out")
    assert outcome.code == 0, outcome.err
    assert "vouches for other records (records.jsonl is not what was recorded)" in outcome.err
    assert "validation loss" not in Path("out/README.md").read_text()


def test_a_disk_that_is_full_is_said_so(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["char"]()
    with full_disk(3000), pytest.raises(OSError, match=r"File too large|No space left"):
        export.to_hf(make(tokenizer, "gpt2"), tokenizer, tmp_path / "out", "", lambda: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["nothing", "empty"])
def test_a_link_at_its_place_is_refused_before_anything_is_written(target: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["char"]()
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to(target)
    with pytest.raises(UserError, match="out is a symbolic link: choose another --out"):
        export.to_llmc(make(tokenizer, "gpt2"), tokenizer, tmp_path / "out")
    assert not any((tmp_path / "empty").iterdir())
    assert not (tmp_path / "nothing").exists()


def test_a_model_card_shows_the_name_of_a_run_and_nothing_else() -> None:
    card = export.model_card("runs/<script>\n---\n# x", make(TOKENIZERS["char"](), "gpt2"), {})
    assert "\n# runs/\\<script\\> --- \\# x\n" in card


def test_a_run_goes_to_transformers_with_its_figures(cli: Cli, run: Path) -> None:
    outcome = cli("export", "runs/x", "--to", "hf", "--out", "out")
    assert (outcome.code, outcome.err.count("Traceback")) == (0, 0)
    assert "same logits" in outcome.out
    card = Path("out/README.md").read_text()
    val = [r for r in map(json.loads, (run / "records.jsonl").read_text().splitlines()) if r["kind"] == "val"]
    assert f"{val[-1]['loss']:.4f} nats per token at step 4" in card
    assert "| steps | 4 |" in card
    again = cli("eval", "hf:out", "--data", json.loads((run / "config.json").read_text())["data"], "--json")
    here = cli("eval", "runs/x", "--json")
    ours, theirs = (json.loads(o.out)["val"]["loss"] for o in (here, again))
    assert ours == pytest.approx(theirs, abs=1e-6)


def vouch(run: Path) -> None:
    """Let the newest checkpoint of a run vouch for all of its records."""
    path = max(run.glob("checkpoints/step_*")) / STATE
    content = (run / "records.jsonl").read_bytes()
    state = json.loads(path.read_text())
    del state["checksum"]
    state |= {"records_bytes": len(content), "records_sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(sealed(state))


def test_records_after_those_that_the_checkpoint_vouches_for_are_not_used(cli: Cli, run: Path) -> None:
    lines = (run / "records.jsonl").read_text().splitlines()
    val = next(record for record in map(json.loads, lines) if record["kind"] == "val")
    with (run / "records.jsonl").open("a") as file:
        file.write(json.dumps(val | {"step": 4, "loss": 0.125}) + "\n")
    assert cli("export", "runs/x", "--to", "hf", "--out", "out").code == 0
    card = Path("out/README.md").read_text()
    assert "0.1250" not in card
    assert "nats per token at step 4" in card


def test_an_export_creates_nothing_in_a_shared_temporary_folder(run: Path, tmp_path: Path) -> None:
    """Another user could create a name there first: a file, so that importing transformers fails."""
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o1777)
    environment = os.environ | {"TMPDIR": str(shared), "XDG_CACHE_HOME": str(tmp_path / "own")}
    environment |= {"PYTHONPATH": str(Path(overnight.__file__).parent.parent)}
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "overnight", "export", "runs/x", "--to", "hf", "--out", "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list(shared.iterdir()) == []


def test_records_that_are_damaged_or_not_finite_do_not_keep_a_run_from_being_exported(
    cli: Cli, run: Path
) -> None:
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    val = next(record for record in records if record["kind"] == "val").copy()
    del val["crc"]
    added = [val | {"step": 4, "loss": None, "bits_per_byte": 10**400}]
    added += [val | {"kind": "hellaswag", "step": 4, "acc_norm": 0.5, "style": "<b>\n# a | b"}]
    lines = [*map(json.dumps, [*records, *added]), "damaged"]
    (run / "records.jsonl").write_text("".join(f"{line}\n" for line in lines))
    vouch(run)
    outcome = cli("export", "runs/x", "--to", "hf", "--out", "out")
    assert outcome.code == 0, outcome.err
    card = Path("out/README.md").read_text()
    assert "| validation loss | not finite at step 4 |" in card
    assert "| bits per byte | not finite |" in card
    assert "| HellaSwag | acc_norm 0.5000, \\<b\\> \\# a \\| b style |" in card


def test_a_run_goes_to_llm_c_and_back(cli: Cli, run: Path) -> None:
    """The char model has another activation than llm.c's; a fine-tuned copy with GPT-2's has not."""
    refused = cli("export", "runs/x", "--to", "llmc", "--out", "out")
    assert refused.code == 2
    assert "tanh GELU" in refused.err
    assert not Path("out").exists()
    data = json.loads((run / "config.json").read_text())["data"]
    options = "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.block-size 16 --batch-tokens 64"
    go = "--steps 1 --optim.warmup-steps 0 --model.activation gelu_tanh --device cpu --sample.length 4"
    assert (
        cli("train", "shakespeare-cpu", "--data", data, "--run", "y", *options.split(), *go.split()).code == 0
    )
    assert cli("export", "y", "--to", "llmc", "--out", "out").code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(
        (export.LLMC_MODEL, export.LLMC_BF16, export.LLMC_TOKENIZER)
    )
    scores = [
        json.loads(cli("eval", model, "--data", data, "--json").out)["val"]["loss"]
        for model in ("y", f"llmc:out/{export.LLMC_MODEL}", f"llmc:out/{export.LLMC_BF16}")
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)
    assert scores[2] == pytest.approx(scores[0], abs=0.02)


def test_weights_without_a_tokenizer_need_one_to_be_exported_or_sampled(cli: Cli, run: Path) -> None:
    export.to_llmc(make(tokens.train_char("abc"), "gpt2"), tokens.train_char("abc"), Path("c"))
    model = f"llmc:c/{export.LLMC_MODEL}"
    for command in (("sample", model), ("export", model, "--to", "hf", "--out", "z")):
        refused = cli(*command)
        assert refused.code == 2
        assert "comes without its tokenizer: give --tokenizer FILE." in refused.err
    Path("t.json").write_text(json.dumps(tokens.train_char("abc").to_json()))
    assert cli("sample", model, "--tokenizer", "t.json", "--length", 5).code == 0
