"""Where a step goes: kinds, times that add up, the trace; against traces written by hand and a real run."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from overnight import profiling, records


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", "attention"),
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>", "attention"),
        ("fmha_cutlassB_bf16_aligned_64x64_k64_sm80", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("triton_per_fused__softmax_masked_fill_12", "attention"),
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_TNN", "matrix products"),
        ("ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("aten::addmm_", "matrix products"),
        ("triton_red_fused__log_softmax_12", "loss"),
        ("aten::_log_softmax", "loss"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdam>", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "data"),
        ("triton_poi_fused_gelu_3", None),
        ("aten::native_layer_norm", None),
        ("Memcpy DtoD (Device -> Device)", None),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
    ],
)
def test_names_tell_their_kind(name: str, kind: str | None) -> None:
    assert profiling.kind_of(name) == kind


def test_a_cpus_step_is_sorted_by_operation_without_what_each_calls() -> None:
    trace = [
        event("user_annotation", "step", 0, 100),
        event("user_annotation", "data", 0, 10),
        event("cpu_op", "aten::linear", 10, 30),
        event("cpu_op", "aten::t", 10, 5),
        event("cpu_op", "aten::addmm", 15, 20),
        event("cpu_op", "aten::gelu", 40, 10),
        event("cpu_op", "MeanLoss", 50, 20),
        event("cpu_op", "mkldnn::_linear_pointwise", 50, 12),
        event("cpu_op", "aten::exp_", 62, 3),
        event("user_annotation", "optimizer", 80, 15),
        event("cpu_op", "aten::mul_", 85, 5),
        event("cpu_op", "aten::mm", 40, 500, tid=2),  # another thread's
        event("cpu_op", "aten::mm", 200, 50),  # an evaluation's
    ]
    found = profiling.spent(trace)
    assert found.kinds == {
        "attention": 0.0, "matrix products": 0.042, "elementwise": 0.01, "loss": 0.008, "optimizer": 0.015,
        "communication": 0.0, "data": 0.01, "gaps": 0.015,
    }  # fmt: skip
    assert sum(found.kinds.values()) == pytest.approx(found.step_ms) == 0.1
    assert found.longest[0] == ("aten::addmm", "matrix products", 0.02)


def test_a_gpus_steps_are_sorted_by_kernel_and_gaps_are_where_none_runs() -> None:
    trace = [
        event("user_annotation", "step", 0, 3),
        event("user_annotation", "step", 3, 3),
        event("cpu_op", "aten::mm", 0, 2),
        event("kernel", "sm80_xmma_gemm_bf16bf16", 0, 9, tid=7),  # of the step before
        event("gpu_user_annotation", "step", 10, 50, tid=7),
        event("gpu_user_annotation", "step", 70, 40, tid=7),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 10, 4, tid=9),
        event("kernel", "sm80_xmma_gemm_bf16bf16", 10, 50, tid=7),
        event("kernel", "triton_poi_fused_gelu_3", 70, 10, tid=7),
        event("gpu_user_annotation", "optimizer", 85, 25, tid=7),
        event("kernel", "void at::native::vectorized_elementwise_kernel<MulFunctor>", 90, 20, tid=7),
    ]
    found = profiling.spent(trace)
    assert (found.steps, found.step_ms) == (2, 0.05)
    each = {kind: ms for kind, ms in found.kinds.items() if ms}
    assert each == {
        "matrix products": 0.025, "elementwise": 0.005, "optimizer": 0.01, "data": 0.002, "gaps": 0.01,
    }  # fmt: skip


def test_a_run_is_profiled_and_trains_as_without(train: Callable[..., Any], tmp_path: Path) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    assert train(plain, "--steps", 9).code == 0
    outcome = train(run, "--steps", 9, "--eval-every", 0, "--profile")
    assert outcome.code == 0
    assert [kind for kind in profiling.KINDS if f"  {kind} " not in outcome.out] == []
    detail = next(r["detail"] for r in records.read(run) if r["kind"] == "event" and r["name"] == "profile")
    assert detail["steps"] == profiling.STEPS
    assert sum(detail["ms"].values()) == pytest.approx(detail["step_ms"])
    assert min(detail["ms"][kind] for kind in ("attention", "matrix products", "loss", "optimizer")) > 0
    trace = json.loads((run / "profile.json").read_text())["traceEvents"]
    assert sum(one.get("name") == "step" for one in trace) == profiling.STEPS
    newest = "checkpoints/step_00000009/model.safetensors"
    assert (plain / newest).read_bytes() == (run / newest).read_bytes()


def test_too_few_steps_are_said(train: Callable[..., Any], tmp_path: Path) -> None:
    outcome = train(tmp_path / "run", "--profile")
    assert outcome.code == 0
    assert f"No profile: it takes {profiling.LAST} steps" in outcome.out
    assert not (tmp_path / "run" / "profile.json").exists()


def test_a_profile_that_cannot_be_written_costs_the_profile_only(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    assert train(tmp_path / "run").code == 0
    (tmp_path / "run" / "profile.json" / "in the way").mkdir(parents=True)
    outcome = train(tmp_path / "run", "--steps", 14, "--profile")
    assert outcome.code == 0
    assert "the profile could not be written" in outcome.out
    assert "Done: 14 steps" in outcome.out


def test_a_full_disk_leaves_nothing_of_a_trace(tmp_path: Path) -> None:
    """torch leaves the half that it could write, under a name of its own, and says nothing."""

    class Profiler:
        def export_chrome_trace(self, path: str) -> None:
            Path(f"{path}.tmp").write_text('{"traceEvents": [')

    with pytest.raises(OSError, match="is the disk full"):
        profiling.write_trace(Profiler(), tmp_path / "profile.json")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_an_evaluation_between_two_steps_is_not_of_a_step() -> None:
    trace = [event("user_annotation", "step", 0, 1), event("user_annotation", "step", 1, 1)]
    trace += [event("gpu_user_annotation", "step", begin, 20, tid=7) for begin in (0, 100)]
    trace += [event("kernel", "gelu", begin, 20, tid=7) for begin in (0, 100)]
    trace += [event("kernel", "gelu", 30, 50, tid=7)]
    found = profiling.spent(trace)
    assert (found.step_ms, found.kinds["elementwise"], found.kinds["gaps"]) == (0.02, 0.02, 0.0)


@pytest.mark.parametrize("main", [True, False])
def test_every_rank_reads_its_numbers_at_the_same_steps(main: bool, tmp_path: Path) -> None:
    """Else one would hear of a stop a step before the others, and they would wait for it."""
    journal = SimpleNamespace(run=tmp_path, event=lambda *_: None, say=lambda line: None)
    profile = profiling.Profile(True, main, journal, torch.device("cpu"))  # type: ignore[arg-type]
    turns = []
    for step in range(1, 12):
        turns.append(profile.turns)
        profile.step(step)
    assert [step for step, turn in enumerate(turns, 1) if turn] == [profiling.WAIT + 1, profiling.LAST]
    profile.close()
