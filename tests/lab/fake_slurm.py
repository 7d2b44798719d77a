"""As much of Slurm as trials need, in one file whose first argument is the program.

Jobs run on this machine, each in a session of its own, and are files in the folder that
`FAKE_SLURM` names: `ID.pid` while and `ID.state` after it runs.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path


def sbatch(folder, arguments):
    script = Path(arguments[-1]).read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    if "bogus" in asked:
        sys.exit("sbatch: error: unrecognized option '--bogus'")
    number = str(1 + len(list(folder.glob("*.sh"))))
    (folder / f"{number}.sh").write_text(script)
    log = shlex.split(asked["error"])[0].replace("%j", number).replace("%A", number)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        subprocess.Popen(
            [sys.executable, __file__, "job", number],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    print(f"Submitted batch job {number}")


def job(folder, arguments):
    """Watch over the script of a job, which is what is killed."""
    (number,) = arguments
    environment = {**os.environ, "SLURM_JOB_ID": number, "SLURM_NTASKS": "1"}
    script = subprocess.Popen(
        ["bash", folder / f"{number}.sh"], env=environment, start_new_session=True
    )
    (folder / f"{number}.pid").write_text(str(script.pid))
    code = script.wait()
    cancelled = (folder / f"{number}.cancelled").exists()
    state = "CANCELLED" if cancelled else "FAILED" if code else "COMPLETED"
    (folder / f"{number}.state").write_text(state)


def srun(folder, arguments):
    at = arguments.index("--output")
    assert arguments[at + 2] == "--error"
    rest = [word for word in arguments[at + 4 :] if not word.startswith("--cpus-per-task=")]
    os.execvp(rest[0], rest)


def squeue(folder, arguments):
    if (folder / "down").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
    for script in folder.glob("*.sh"):
        ended = script.with_suffix(".state")
        print(script.stem, ended.read_text() if ended.exists() else "RUNNING")


def scancel(folder, arguments):
    (number,) = arguments
    (folder / f"{number}.cancelled").touch()
    pid = folder / f"{number}.pid"
    if pid.exists() and not (folder / f"{number}.state").exists():
        os.killpg(int(pid.read_text()), signal.SIGTERM)


if __name__ == "__main__":
    here, name, words = Path(os.environ["FAKE_SLURM"]), sys.argv[1], sys.argv[2:]
    {"sbatch": sbatch, "job": job, "srun": srun, "squeue": squeue, "scancel": scancel}[name](
        here, words
    )
