"""Who started a process, by the variables of SLURM and torchrun."""

from pathlib import Path

import lightning
import pytest

from cli.launch import first_process
from cli.main import main
from fwlight import run

POINT = ("task=retrieval", "task.n_keys=4", "callbacks=none", "logger=none", "trainer.max_steps=2")


def of_srun(monkeypatch, *, tasks: int, nodes: int, rank: int = 0, per_node: int | None = None):
    """The variables of one of srun's tasks."""
    values = {"JOB_ID": 7, "STEP_ID": 0, "STEP_NUM_TASKS": tasks, "STEP_NUM_NODES": nodes}
    values |= {"NTASKS": tasks, "NNODES": nodes, "PROCID": rank, "LOCALID": rank}
    values |= {"NODEID": 0, "STEP_NODELIST": "localhost"}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    if per_node is not None:
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", str(per_node))


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    for name in ("MASTER_ADDR", "RANK", "LOCAL_RANK", "NODE_RANK", "FWLIGHT_RUN_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments: str) -> str:
    assert main([*POINT, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unexpected" not in line
    return line


# The processes of a run


def test_tasks_that_srun_puts_anywhere_are_told_the_flag(monkeypatch, capsys):
    of_srun(monkeypatch, tasks=2, nodes=1)
    line = refused(capsys, "trainer.devices=2", "run_dir=run")
    assert "--nodes=1 --ntasks-per-node=2 instead of --ntasks=2" in line


@pytest.mark.parametrize(("devices", "num_nodes"), [(1, 1), (2, 2), (4, 1), (1, 4)])
def test_tasks_of_srun_that_are_others_than_the_trainers(monkeypatch, capsys, devices, num_nodes):
    of_srun(monkeypatch, tasks=2, nodes=1, per_node=2)
    where = (f"trainer.devices={devices}", f"trainer.num_nodes={num_nodes}", "task.batch_size=16")
    line = refused(capsys, *where, "run_dir=run")
    assert f"--nodes={num_nodes} --ntasks-per-node={devices}`" in line
    assert "trainer=ddp trainer.num_nodes=1 trainer.devices=2" in line


def test_one_process_cannot_be_several_nodes(monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    line = refused(capsys, "trainer=ddp", "trainer.num_nodes=2", "trainer.devices=1", "run_dir=run")
    assert "`srun --nodes=2 --ntasks-per-node=1`" in line


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_place_to_meet_that_no_machine_knows_is_told_once(monkeypatch, capsys, launcher):
    for rank in range(2):
        if launcher == "srun":
            of_srun(monkeypatch, tasks=2, nodes=1, per_node=2, rank=rank)
            monkeypatch.setenv("SLURM_STEP_NODELIST", "nowhere[07-09].invalid,other")
            monkeypatch.delenv("MASTER_ADDR", raising=False)
        else:
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("MASTER_ADDR", "nowhere07.invalid")
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(Path("a", str(rank), "error.json")))
            Path("a").mkdir(exist_ok=True)
        assert main([*POINT, "trainer=ddp", "run_dir=run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: MASTER_ADDR=nowhere07.invalid, where the processes")
    assert not Path("run").exists()


def test_restart_that_meets_in_torchruns_store_is_told_the_way(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    line = refused(capsys, "trainer=ddp", "run_dir=run", "resume=auto")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun" in line


@pytest.mark.parametrize("batch", [True, False], ids=["batch script", "srun of one task"])
def test_one_process_in_an_allocation_of_several_tasks_just_runs(monkeypatch, batch):
    for name, value in {"JOB_ID": 7, "NTASKS": 2, "NPROCS": 2, "NNODES": 2, "PROCID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    if not batch:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert main([*POINT, "run_dir=run"]) == 0
    assert main(["action=test", "ckpt=run/checkpoints/last.ckpt", "trainer=cpu"]) == 0


def test_two_processes_that_start_each_other_in_an_allocation(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    trainer = lightning.Trainer(
        **{"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False},
        plugins=run.plugins(),
    )
    assert trainer.world_size == 2


def test_first_process_is_torchruns_where_srun_starts_that(monkeypatch):
    of_srun(monkeypatch, tasks=2, nodes=2, rank=1, per_node=1)
    assert not first_process()
    monkeypatch.setenv("RANK", "0")
    assert first_process()
