"""A SLURM of two nodes on this one host, which starts in seconds and needs no settings of its own.

Two slurmd stand for two nodes of two processors each. Key, socket, state and logs are in one
folder. In the partition `high` jobs get in before those in `low`, which go back into the queue.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
_CONF = """\
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,batch_sched_delay=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 MaxTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF MaxTime=60 State=UP
"""


def missing() -> str | None:
    """Say what a virtual cluster lacks here."""
    lacking = [name for name in PROGRAMS if _program(name) is None]
    if lacking:
        return f"no SLURM here ({', '.join(lacking)}): apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "slurmd starts jobs as root only"


class Cluster:
    """The two nodes, until `close`; `environment` is what its programs, and jobs, need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Outside: jobs of one test run are no tasks of a job that the tests run in.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        # No name service knows n1 and n2.
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}
        self.environment |= {"OMP_NUM_THREADS": "1"}
        self._processes: list[subprocess.Popen[bytes]] = []
        host = socket.gethostname().partition(".")[0]
        for name in ("state", "spool-n1", "spool-n2"):
            (folder / name).mkdir()
        text = _CONF.format(host=host, folder=folder, ports=_free_ports(3))
        (folder / "slurm.conf").write_text(text)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munge.pid"}
        files |= {"log-file": "munge.log", "seed-file": "munge.seed"}
        self._start(
            "munged", "--foreground", "--force", *(f"--{k}={folder / v}" for k, v in files.items())
        )
        self._start("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._start("slurmd", "-D", "-N", node)
        self.wait_for(lambda: self.call("sinfo", "-h", "-o", "%D %T").split() == ["2", "idle"], 30)

    def close(self) -> None:
        subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], env=self.environment)
        subprocess.run(["scancel", "--user=root"], env=self.environment)
        self.wait_for(lambda: not self.call("squeue", "-h"), 40, otherwise=None)
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            process.wait(20)

    def call(self, *words: str, code: int | None = None) -> str:
        """Return what a program prints; with a code, it must end with that."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        assert code in (None, done.returncode), (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        return self.call("squeue", "-h", "--states=all", f"--jobs={job}", "-o", "%T")

    def hurry(self, job: str) -> None:
        """Let a job that was put into the queue again not wait its two minutes there."""
        self.wait_for(lambda: self.state(job) == "PENDING", 300)
        self.wait_for(lambda: self.start_now(job), 60)

    def start_now(self, job: str) -> bool:
        """Say whether a waiting job is let go; while it still ends it cannot be."""
        time.sleep(2)  # what starts in the second in which it was put back fails: "revoked"
        update = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
        return not subprocess.run(update, env=self.environment, capture_output=True).returncode

    def wait_for(self, holds, seconds: float, *, otherwise: str | None = "in vain") -> None:
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                assert otherwise is None, self._logs()
                return
            time.sleep(0.2)

    def _start(self, name: str, *arguments: str) -> None:
        program = _program(name)
        assert program is not None
        out = (self.folder / f"{name}.out").open("ab")
        with ExitStack() as stack:
            stack.callback(out.close)
            self._processes.append(
                subprocess.Popen(
                    [program, *arguments], env=self.environment, stdout=out, stderr=out
                )
            )
        if name == "munged":
            self.wait_for(lambda: (self.folder / "munge.socket").exists(), 10)

    def _logs(self) -> str:
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in logs)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
