"""The launch scripts: every flag changes the resolved configuration, arguments win over flags, any folder will do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tools import ROOT
from trainer.checkpoint import Checkpoints

DISTILL = "actor_rollout_ref.actor.self_distillation"
ENV = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "HOME": os.environ["HOME"],
    "VIRTUAL_ENV": str(Path(sys.executable).parent.parent),
}


def launch(script: str, *arguments: str, cwd: Path = ROOT, **flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / script), *arguments],
        cwd=cwd,
        env={**ENV, "CUDA_VISIBLE_DEVICES": "", **flags},
        capture_output=True,
        check=False,
        text=True,
    )


def resolved(script: str, *arguments: str, **options) -> dict:
    result = launch(script, "--cfg", *arguments, **options)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


def pick(tree: dict, key: str):
    for part in key.split("."):
        tree = tree[part]
    return tree


REAL = {"MODEL_PATH": "Qwen/Qwen3-4B"}


@pytest.fixture(scope="module")
def real_default() -> dict:
    return resolved("run_local_sdpo.sh", **REAL)


def test_defaults_of_the_real_launcher(real_default):
    wanted = {
        "data.train_files": ["datasets/lcb_v6"],
        "data.val_files": ["datasets/lcb_v6"],
        "actor_rollout_ref.model.path": "Qwen/Qwen3-4B",
        f"{DISTILL}.include_primary_solution": True,
        f"{DISTILL}.include_another_solution": True,
        f"{DISTILL}.include_failure_solution": True,
        f"{DISTILL}.failure_solution_condition": "always",
        f"{DISTILL}.dont_reprompt_on_self_success": True,
        f"{DISTILL}.alpha": 0.5,
        f"{DISTILL}.distillation_topk": 100,
        f"{DISTILL}.success_reward_threshold": 1.0,
        "actor_rollout_ref.actor.optim.lr": 1e-5,
        "actor_rollout_ref.actor.optim.lr_warmup_steps": 10,
        "data.seed": 42,
        "data.train_batch_size": 32,
        "actor_rollout_ref.rollout.n": 8,
        "actor_rollout_ref.rollout.name": "hf",
        "data.max_prompt_length": 2048,
        "data.max_response_length": 4096,
        "actor_rollout_ref.rollout.val_kwargs.n": 8,
        "actor_rollout_ref.rollout.val_kwargs.temperature": 0.6,
        "actor_rollout_ref.rollout.val_kwargs.top_p": 0.95,
        "data.apply_chat_template_kwargs": {"enable_thinking": False},
        "trainer.n_gpus_per_node": 1,
        "trainer.nnodes": 1,
        "trainer.logger": ["console", "wandb"],
        "trainer.project_name": "mopd",
    }
    assert {key: pick(real_default, key) for key in wanted} == wanted
    for key, kind in (("default_local_dir", "checkpoints"), ("rollout_data_dir", "rollouts"), ("validation_data_dir", "validation")):
        assert pick(real_default, f"trainer.{key}") == str(ROOT / kind / "sdpo-Qwen3-4B-lcb_v6")


FLAGS = [
    ("DATA_PATH", "/d", "data.train_files", ["/d"]),
    ("DATA_PATH", "/a,/b/train.parquet", "data.train_files", ["/a", "/b/train.parquet"]),
    ("DATA_PATH", "/b/train.parquet", "data.val_files", ["/b/test.parquet"]),
    ("VAL_DATA_PATH", "/x.parquet,/y.parquet", "data.val_files", ["/x.parquet", "/y.parquet"]),
    ("MODEL_PATH", "some/model", "actor_rollout_ref.model.path", "some/model"),
    ("INCLUDE_PRIMARY_SOLUTION", "False", f"{DISTILL}.include_primary_solution", False),
    ("INCLUDE_ANOTHER_SOLUTION", "False", f"{DISTILL}.include_another_solution", False),
    ("INCLUDE_FAILURE_SOLUTION", "False", f"{DISTILL}.include_failure_solution", False),
    ("FAILURE_SOLUTION_CONDITION", "when_no_solution", f"{DISTILL}.failure_solution_condition", "when_no_solution"),
    ("DONTS_REPROMPT_ON_SELF_SUCCESS", "False", f"{DISTILL}.dont_reprompt_on_self_success", False),
    ("ALPHA", "1.0", f"{DISTILL}.alpha", 1.0),
    ("LR", "3e-6", "actor_rollout_ref.actor.optim.lr", 3e-6),
    ("SEED", "7", "data.seed", 7),
    ("TRAIN_BATCH_SIZE", "16", "data.train_batch_size", 16),
    ("ROLLOUT_BATCH_SIZE", "4", "actor_rollout_ref.rollout.n", 4),
    ("ROLLOUT_PROMPT_LENGTH", "1024", "data.max_prompt_length", 1024),
    ("ROLLOUT_RESPONSE_LENGTH", "8192", "data.max_response_length", 8192),
    ("N_GPUS_PER_NODE", "4", "trainer.n_gpus_per_node", 4),
    ("NNODES", "2", "trainer.nnodes", 2),
    ("CKPT_DIR", "/c", "trainer.default_local_dir", "/c"),
    ("ROLLOUT_DATA_DIR", "/r", "trainer.rollout_data_dir", "/r"),
    ("VALIDATION_DATA_DIR", "/v", "trainer.validation_data_dir", "/v"),
    ("WANDB_MODE", "disabled", "trainer.logger", ["console"]),
    ("WANDB_PROJECT", "mine", "trainer.project_name", "mine"),
    ("ROLLOUT_BACKEND", "vllm", "actor_rollout_ref.rollout.name", "vllm"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "value", "key", "wanted"), FLAGS, ids=[f"{flag}={value}" for flag, value, _, _ in FLAGS])
def test_every_flag_changes_the_configuration(real_default, flag, value, key, wanted):
    assert pick(real_default, key) != wanted
    assert pick(resolved("run_local_sdpo.sh", **{**REAL, flag: value}), key) == wanted


def test_an_engine_that_is_not_there_is_said():
    result = launch("run_local_sdpo.sh", "--cfg", **REAL, ROLLOUT_BACKEND="sglang")
    assert result.returncode == 2 and "this engine is not there yet; vllm is" in result.stderr


def test_teacher_flag_and_grpo_share_the_data_and_lengths(real_default):
    teacher = resolved("run_ts_sdpo.sh", **REAL)
    assert pick(teacher, "actor_rollout_ref.ref.model.path") == "Qwen/Qwen3-14B"
    assert pick(teacher, f"{DISTILL}.teacher_update_rate") == 0
    other = resolved("run_ts_sdpo.sh", **REAL, TEACHER_MODEL_PATH="Qwen/Qwen3-8B")
    assert pick(other, "actor_rollout_ref.ref.model.path") == "Qwen/Qwen3-8B"
    grpo = resolved("run_local_grpo.sh", **REAL)
    for key in ("data.train_files", "data.max_response_length", "data.seed", "actor_rollout_ref.rollout", "actor_rollout_ref.actor.optim"):
        assert pick(grpo, key) == pick(real_default, key)
    assert pick(grpo, "actor_rollout_ref.actor.policy_loss.loss_mode") == "vanilla"


def test_arguments_in_any_order_and_over_flags():
    after = resolved("run_local_sdpo.sh", "mine", "data.seed=3", **REAL, SEED="5")
    before = resolved("run_local_sdpo.sh", "data.seed=3", "mine", **REAL, SEED="5")
    assert after == before and pick(after, "data.seed") == 3
    assert pick(after, "trainer.experiment_name") == "sdpo-Qwen3-4B-lcb_v6-mine"
    two = launch("run_local_sdpo.sh", "--cfg", "one", "two", **REAL)
    assert two.returncode == 2 and "two suffixes: 'one' and 'two'" in two.stderr


def test_preflight_gets_the_arguments_of_the_run():
    refused = launch("run_eval_sdpo.sh", "mine", "--preflight", **REAL)
    assert refused.returncode == 2 and "trainer.val_only=True: such a run trains nothing" in refused.stderr
    none = launch("run_local_sdpo.sh", "--preflight", "--prompts=0", **REAL)
    assert none.returncode == 2 and "--prompts 0: must be at least 1" in none.stderr
    alone = launch("run_local_sdpo.sh", "--prompts=8", MODEL_PATH="nowhere", DATA_PATH="nowhere")
    assert alone.returncode == 2 and "--prompts=8 goes with --preflight" in alone.stderr


@pytest.mark.slow
def test_what_runs_when_nothing_is_given():
    tiny = resolved("run_local_sdpo.sh")
    assert pick(tiny, "actor_rollout_ref.model.path") == "models/tiny-chains" and pick(tiny, "trainer.total_training_steps") == 40
    assert pick(tiny, f"{DISTILL}.failure_solution_condition") == "always"
    assert resolved("run_local_sdpo.sh", MODEL_PATH="tiny") == tiny
    assert pick(resolved("run_local_sdpo.sh", MODEL_PATH="tiny", LR="5e-4"), "actor_rollout_ref.actor.optim.lr") == 5e-4
    teacher = resolved("run_ts_sdpo.sh")
    assert pick(teacher, "actor_rollout_ref.ref.model.path") == "models/tiny-chains-teacher"


@pytest.mark.slow
def test_with_a_gpu_and_the_paper_data(tmp_path):
    """A copy of the project in which datasets/lcb_v6 exists, on a machine whose nvidia-smi lists two GPUs."""
    for name in ("trainer", "scripts", "experiments", "data", "run_local_sdpo.sh", "requirements.txt", "setup.py", "requirements_vllm.txt"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    (tmp_path / "datasets" / "lcb_v6").mkdir(parents=True)
    fake = tmp_path / "bin" / "nvidia-smi"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'GPU 0: H100'\necho 'GPU 1: H100'\n")
    fake.chmod(0o755)

    metadata = tmp_path / "installed" / "vllm-0.32.0.dist-info" / "METADATA"  # the build for GPUs, as set-up looks for it
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")

    def run(**flags):
        env = {**ENV, "PATH": f"{fake.parent}:{ENV['PATH']}", "PYTHONPATH": str(metadata.parents[1]), **flags}
        out = subprocess.run(["bash", str(tmp_path / "run_local_sdpo.sh"), "--cfg"], env=env, capture_output=True, check=False, text=True)
        assert out.returncode == 0, out.stderr
        return yaml.safe_load(out.stdout), out.stderr

    cfg, said = run()
    assert pick(cfg, "actor_rollout_ref.model.path") == "Qwen/Qwen3-4B" and pick(cfg, "data.train_files") == ["datasets/lcb_v6"]
    assert pick(cfg, "trainer.n_gpus_per_node") == 2
    assert pick(cfg, "actor_rollout_ref.rollout.name") == "vllm"
    assert pick(run(CUDA_VISIBLE_DEVICES="1")[0], "trainer.n_gpus_per_node") == 1
    cfg, said = run(CUDA_VISIBLE_DEVICES="")
    assert pick(cfg, "actor_rollout_ref.model.path") == "models/tiny-chains" and "no GPU here" in said


def test_paths_are_seen_from_where_the_script_is_called(tmp_path):
    (tmp_path / "mydata").mkdir()
    (tmp_path / "mymodel").mkdir()
    cfg = resolved("run_local_sdpo.sh", cwd=tmp_path, MODEL_PATH="mymodel", DATA_PATH="mydata", CKPT_DIR="out")
    assert pick(cfg, "data.train_files") == [str(tmp_path / "mydata")]
    assert pick(cfg, "actor_rollout_ref.model.path") == str(tmp_path / "mymodel")
    assert pick(cfg, "trainer.default_local_dir") == str(tmp_path / "out")


@pytest.mark.slow
def test_paths_with_blanks_commas_and_quotes(tmp_path):
    odd = tmp_path / "it's a, b"
    for name in ("data", "model", "other"):
        (odd / name).mkdir(parents=True)
    cfg = resolved("run_local_sdpo.sh", cwd=tmp_path, MODEL_PATH=str(odd / "model"), DATA_PATH=f"{odd}/data", CKPT_DIR="it's a, b/out")
    assert pick(cfg, "data.train_files") == pick(cfg, "data.val_files") == [f"{odd}/data"]
    assert pick(cfg, "actor_rollout_ref.model.path") == str(odd / "model")
    assert pick(cfg, "trainer.default_local_dir") == str(odd / "out")
    cfg = resolved("run_local_sdpo.sh", cwd=odd, MODEL_PATH="model", DATA_PATH="data,other")
    assert pick(cfg, "data.train_files") == [f"{odd}/data", f"{odd}/other"] and pick(cfg, "data.val_files") == [f"{odd}/data"]


@pytest.mark.slow
def test_overrides_that_are_paths_are_seen_from_there_too(tmp_path):
    (tmp_path / "reward.py").touch()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    arguments = (
        "custom_reward_function.path=reward.py",
        "data.train_files=[one,two]",
        "trainer.log_dir=out",
        "actor_rollout_ref.model.path=one",
    )
    cfg = resolved("run_local_sdpo.sh", *arguments, cwd=tmp_path, **REAL)
    assert pick(cfg, "custom_reward_function.path") == str(tmp_path / "reward.py")
    assert pick(cfg, "data.train_files") == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert pick(cfg, "trainer.log_dir") == str(tmp_path / "out")
    assert pick(cfg, "actor_rollout_ref.model.path") == str(tmp_path / "one")


@pytest.mark.slow
def test_names_say_which_data_and_model(tmp_path):
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "train.parquet").touch()
        cfg = resolved("run_local_sdpo.sh", **REAL, DATA_PATH=str(tmp_path / part / "train.parquet"))
        assert pick(cfg, "trainer.experiment_name") == f"sdpo-Qwen3-4B-{part}"
        assert pick(cfg, "data.val_files") == [str(tmp_path / part / "test.parquet")]
    cfg = resolved("run_local_sdpo.sh", MODEL_PATH="tiny", DATA_PATH=str(tmp_path / "a"))
    assert pick(cfg, "trainer.experiment_name") == "sdpo-tiny-a"
    cfg = resolved("run_local_sdpo.sh", MODEL_PATH="checkpoints/x/global_step_4/huggingface", DATA_PATH=str(tmp_path / "a"))
    assert pick(cfg, "trainer.experiment_name") == "sdpo-x-global_step_4-a"
    cfg = resolved("run_local_sdpo.sh", "trainer.experiment_name=mine", **REAL)
    assert pick(cfg, "trainer.experiment_name") == "mine" and pick(cfg, "trainer.default_local_dir") == str(ROOT / "checkpoints" / "mine")


@pytest.mark.slow
def test_evaluation_takes_data_and_lengths_from_the_checkpoint(tmp_path):
    config = {"data.val_files": ["datasets/that"], "data.max_prompt_length": 77, "data.max_response_length": 99}
    save = lambda folder: (folder / "huggingface").mkdir() or (folder / "huggingface" / "config.json").write_text("{}")  # noqa: E731
    Checkpoints(tmp_path / "run", 1).save(3, save, {"step": 3, "config": config})
    cfg = resolved("run_eval_sdpo.sh", cwd=tmp_path, CKPT_PATH="run", EVAL_N="4")
    assert pick(cfg, "data.val_files") == ["datasets/that"] and pick(cfg, "trainer.experiment_name") == "eval-run-that"
    assert (pick(cfg, "data.max_prompt_length"), pick(cfg, "data.max_response_length")) == (77, 99)
    assert pick(cfg, "actor_rollout_ref.rollout.val_kwargs.n") == 4 and pick(cfg, "trainer.val_only")
    assert pick(cfg, "actor_rollout_ref.model.path") == str(tmp_path / "run")
    own = resolved("run_eval_sdpo.sh", CKPT_PATH=str(tmp_path / "run"), DATA_PATH="mine")
    assert pick(own, "data.val_files") == ["mine"]


@pytest.mark.slow
def test_what_would_be_ignored_is_said():
    result = launch("run_local_sdpo.sh", CKPT_PATH="checkpoints/x")
    assert result.returncode == 2 and "CKPT_PATH is what run_eval_sdpo.sh evaluates" in result.stderr
    assert "counts in run_ts_sdpo.sh only" in launch("run_local_grpo.sh", "--cfg", **REAL, TEACHER_MODEL_PATH="x").stderr
    result = launch("run_local_sdpo.sh", "--config-name", "x", **REAL)
    assert result.returncode == 2 and "unknown option --config-name" in result.stderr
    assert "usage: bash run_local_sdpo.sh [suffix]" in launch("run_local_sdpo.sh", "--help").stderr


def test_a_mistake_is_found_before_the_tiny_model_is_made(tmp_path):
    result = launch("run_local_sdpo.sh", "data.tran_batch_size=4")
    assert result.returncode == 2 and "data.train_batch_size" in result.stderr and "warming" not in result.stdout + result.stderr


@pytest.mark.slow
def test_missing_data_is_answered_with_the_command_that_makes_it(random_model, tmp_path):
    result = launch("run_local_sdpo.sh", cwd=tmp_path, MODEL_PATH=str(random_model))
    assert result.returncode == 2
    assert (
        "data.train_files=datasets/lcb_v6: no such file" in result.stderr
        and "python data/preprocess.py --data_source datasets/lcb_v6" in result.stderr
    )
    (tmp_path / "raw").mkdir()
    result = launch("run_local_sdpo.sh", cwd=tmp_path, MODEL_PATH=str(random_model), DATA_PATH="raw")
    assert f"python data/preprocess.py --data_source {tmp_path}/raw" in result.stderr


def without_python(tmp_path: Path) -> dict[str, str]:
    """An environment with the usual tools and no Python."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "basename", "cat", "cksum", "cut", "tr", "grep", "mkdir", "flock", "rm", "wc"):
        if shutil.which(name):
            (tools / name).symlink_to(shutil.which(name))
    return {"PATH": str(tools), "HOME": str(tmp_path)}


def copy_scripts(tmp_path: Path) -> Path:
    for name in ("scripts", "run_local_sdpo.sh", "requirements.txt", "requirements_vllm.txt", "setup.py"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    return tmp_path / "run_local_sdpo.sh"


def test_no_python_says_how_to_get_one(tmp_path):
    script = copy_scripts(tmp_path)
    result = subprocess.run([shutil.which("bash"), str(script)], env=without_python(tmp_path), capture_output=True, check=False, text=True)
    assert result.returncode == 2
    assert "no Python from 3.11 to 3.13 found" in result.stderr and "apt-get install python3.12" in result.stderr


def test_an_active_environment_that_lacks_packages_is_named(tmp_path):
    script, env = copy_scripts(tmp_path), without_python(tmp_path)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    result = subprocess.run(
        [shutil.which("bash"), str(script)], env={**env, "VIRTUAL_ENV": str(bare)}, capture_output=True, check=False, text=True
    )
    assert "lacks: torch transformers" in result.stderr and ".venv instead" in result.stderr
