"""Commands in this process, trials in it too, and real processes where these matter."""

import json
import sys

import pytest
from cli_helpers import Process
from lab_helpers import run_inline

from gradwise.cli.app import run
from gradwise.lab import compare as compare_module


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gradwise(capsys):
    """Runs a command line in this process: `(exit code, output, errors)`."""

    def call(*arguments):
        capsys.readouterr()
        path = list(sys.path)
        try:
            code = run([str(one) for one in arguments])
        finally:
            sys.path[:] = path
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return call


@pytest.fixture
def inline(monkeypatch):
    """Trials run in this process."""
    monkeypatch.setattr(compare_module, "run_jobs", run_inline)


@pytest.fixture
def start(here):
    """Starts `gradwise` processes in the current directory, and leaves none behind."""
    started = []

    def begin(*arguments, **popen):
        started.append(Process(here, *arguments, **popen))
        return started[-1]

    yield begin
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.communicate()


@pytest.fixture
def read_json(here):
    return lambda path: json.loads((here / path).read_text())
