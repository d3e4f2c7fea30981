"""Who started a process, by the variables of SLURM and torchrun; and jobs, without a SLURM."""

import shlex
import socket
import subprocess
from pathlib import Path

import lightning
import pytest

from cli.composition import compose_config
from cli.finished import settings
from cli.launch import first_process
from cli.launchers.slurm import script
from cli.main import main
from cli.sweep import expand
from fwlight import run
from fwlight.errors import ConfigError
from fwlight.runs import read_run

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


def nobody_knows(*_):
    raise socket.gaierror(-2, "Name or service not known")


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_place_to_meet_that_no_machine_knows_is_told_once(monkeypatch, capsys, launcher):
    for rank in range(2):
        monkeypatch.setattr("cli.launch.socket.getaddrinfo", nobody_knows)
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
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")  # of no account
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


# Jobs


def job(*arguments: str) -> str:
    """The file for the job of a sweep."""
    points = expand(["launcher=slurm", *arguments])
    section = points[0].composition.config["launcher"]
    return script(points, **{k: v for k, v in section.items() if k not in ("_target_", "wait")})


def test_job_of_a_sweep_is_an_array_of_its_commands():
    text = job(
        *POINT, "seed=3,4,5", "launcher.at_a_time=2", "launcher.partition=a,b", "run_dir=r s"
    )
    assert "#SBATCH --array=0-2%2\n" in text
    assert "#SBATCH --partition=a,b\n" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for index in range(3):
        show = 'exec() { :; }; srun() { shift; printf "%s\\n" "$@"; exit; }\n'
        environment = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_CPUS_PER_TASK": "1"}
        said = subprocess.run(
            ["bash"], input=show + text, text=True, env=environment, capture_output=True, check=True
        ).stdout.splitlines()
        assert f"seed={index + 3}" in said
        assert f"run_dir={Path.cwd()}/r s/seed-{index + 3}" in said
        assert said[-1] == "launcher=local"


def test_job_keeps_every_value_one_word(tmp_path):
    hostile = 'a\'; touch hit; echo "$(touch hit)" `touch hit` #'
    text = job(*POINT, "seed=1,2", f"launcher.account={hostile}", f"run_dir={tmp_path}/{hostile}")
    (line,) = (x for x in text.splitlines() if "--account" in x)
    assert shlex.split(line.removeprefix("#SBATCH ")) == [f"--account={hostile}"]
    shell = "exec() { :; }; srun() { exit; }; module() { :; }\n" + text
    environment = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_CPUS_PER_TASK": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run(["bash"], input=shell, text=True, env=environment, check=True)
    assert not Path("hit").exists()


@pytest.mark.parametrize(
    "key", ["launcher.account=a\nb", 'launcher.modules=["a\nb"]', "run_dir=a\nb", "task.data=a\nb"]
)
def test_job_takes_no_line_break(key):
    with pytest.raises(ConfigError, match=r"line break|cannot be read"):
        job(*POINT, "seed=1,2", key)


def test_job_has_further_lines_where_they_work():
    text = job(
        *(*POINT, "seed=1,2", "launcher.modules=[cuda/12,python]", "launcher.time=1-12"),
        "launcher.lines=['#SBATCH --exclusive','ulimit -n 4096']",
    )
    assert text.index("#SBATCH --exclusive\n") < text.index("case ")
    assert (
        text.index("module load python\n") < text.index("ulimit -n 4096\n") < text.index("\nsrun")
    )


def test_job_of_several_nodes_asks_for_them_all():
    text = job(
        *(*POINT, "seed=1,2", "trainer=ddp", "trainer.num_nodes=3", "trainer.devices=64"),
        *("task.batch_size=192", "trainer.accelerator=gpu", "launcher.cpus=8"),
    )
    for option in ("nodes=3", "ntasks-per-node=64", "gpus-per-node=64", "cpus-per-task=8"):
        assert f"#SBATCH --{option}\n" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("launcher.time=2", "launcher.time=2 is not two minutes longer"),
        ("launcher.time=3:59 launcher.stop_before=120", "is not two minutes longer"),
        ("launcher.time=soon", "launcher.time=soon must look like 30"),
        ("trainer.devices=auto", "trainer.devices"),
        ("trainer=ddp trainer.devices=1,2", "need the same"),
        ("launcher.wish=1", "launcher.wish is not a key"),
    ],
)
def test_job_that_makes_no_sense_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        job(*POINT, "seed=1,2", "task.batch_size=16", *arguments.split())


@pytest.mark.parametrize("time", ["4", "4:00", "0:04:00", "1-0", "0-0:4"])
def test_job_may_take_its_time(time):
    assert f"#SBATCH --time={time}\n" in job(*POINT, "seed=1,2", f"launcher.time={time}")


def sbatch(folder: Path, monkeypatch, text: str) -> None:
    (folder / "bin").mkdir()
    for name, answer in {"sbatch": text, "squeue": "exit 1"}.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{answer}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def test_job_without_sbatch_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = refused(capsys, "launcher=slurm", "run_dir=run")
    assert line.startswith("error: launcher=slurm needs sbatch, which this machine does not have")


def test_job_that_could_not_be_waited_for_is_not_submitted(monkeypatch, capsys, tmp_path):
    sbatch(tmp_path, monkeypatch, f": >{tmp_path}/submitted; echo 31")
    (tmp_path / "bin" / "squeue").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    line = refused(capsys, "launcher=slurm", "run_dir=run")
    assert line.startswith("error: launcher=slurm needs squeue, which this machine does not have")
    assert not (tmp_path / "submitted").exists()


def test_job_that_sbatch_refuses_is_one_line(monkeypatch, capsys, tmp_path):
    told = "sbatch: error: Batch job submission failed: Invalid partition name specified"
    sbatch(tmp_path, monkeypatch, f"echo '{told}' >&2; exit 1")
    line = refused(capsys, "launcher=slurm", "launcher.partition=nowhere", "run_dir=run")
    assert line == f"error: sbatch refuses: {told.removeprefix('sbatch: error: ')}"


def test_job_that_is_not_waited_for_is_told_with_how_to_look(monkeypatch, capsys, tmp_path):
    sbatch(tmp_path, monkeypatch, "echo '31;cluster'")
    assert main([*POINT, "launcher=slurm", "launcher.wait=false", "run_dir=run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"job 31 of {tmp_path}/run.sbatch\n")
    assert "squeue --jobs=31; python -m fwlight.runs" in out
    assert not Path("run").exists()


@pytest.mark.parametrize("key", ["action=test ckpt=a", "resume=a.ckpt"])
def test_job_is_a_training_that_can_be_started_again(capsys, monkeypatch, tmp_path, key):
    monkeypatch.setattr("cli.commands.check_files", lambda config: None)
    assert "launcher=slurm" in refused(capsys, "launcher=slurm", "run_dir=run", *key.split())


def test_launcher_tells_no_two_runs_apart(tmp_path):
    here, there = (
        compose_config([*POINT, f"run_dir={tmp_path}", f"launcher={name}"])
        for name in ("local", "slurm")
    )
    assert settings(here) == settings(there)


def test_log_of_a_job_tells_the_error_of_its_run_not_what_slurm_adds(tmp_path):
    said = "error: no such text\nsrun: error: n1: task 0: Exited with exit code 2\n"
    (tmp_path / "seed-1.log").write_text(said)
    assert read_run(tmp_path / "seed-1").error == "error: no such text"
