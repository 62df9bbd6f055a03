"""Every planted bug (`planted.py`) is found by the test that is named for it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from planted import BUGS as OF_CORE
from planted_kernels import BUGS as OF_KERNELS
from readmes import ROOT

BUGS = OF_CORE | OF_KERNELS
TESTS, PACKAGE = ROOT / "tests", ROOT / "timm_ebl"
RUN = "import sys, timm_ebl, pytest; print(timm_ebl.__file__); sys.exit(pytest.main(sys.argv[1:]))"
ASSERTION = re.compile(r"^E +(AssertionError|assert |Failed: DID NOT RAISE)", re.MULTILINE)


def run_tests(folder, names):
    """Run tests in another process with the package that lies in a folder."""
    options = ["-n", "0", "-q", "-x", "--tb=short", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [sys.executable, "-c", RUN, *options, *(str(TESTS / name) for name in names)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert found.stdout.splitlines()[:1] == [str(folder / "timm_ebl" / "__init__.py")], found.stderr
    return found


def plant(bug, folder):
    """Copy the package to a folder, with a bug."""
    shutil.copytree(PACKAGE, folder / "timm_ebl", ignore=shutil.ignore_patterns("pretrained"))
    path = folder / "timm_ebl" / bug.file
    lines = path.read_text().splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.strip() == bug.before]
    lines[at] = lines[at].replace(bug.before, bug.after)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.planted
@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_by_an_assertion_of_its_test(name, tmp_path):
    plant(BUGS[name], tmp_path)
    found = run_tests(tmp_path, [BUGS[name].test])
    assert found.returncode == pytest.ExitCode.TESTS_FAILED, found.stdout + found.stderr
    assert ASSERTION.search(found.stdout), found.stdout


@pytest.mark.planted
@pytest.mark.slow
def test_the_named_tests_pass_without_a_bug():
    found = run_tests(ROOT, sorted({bug.test for bug in BUGS.values()}))
    assert found.returncode == pytest.ExitCode.OK, found.stdout + found.stderr


@pytest.mark.parametrize("name", BUGS)
def test_the_line_of_a_planted_bug_is_there_once_and_its_test_too(name):
    bug = BUGS[name]
    lines = [line.strip() for line in (PACKAGE / bug.file).read_text().splitlines()]
    assert lines.count(bug.before) == 1
    assert bug.after != bug.before
    file, test = re.fullmatch(r"(test_\w+\.py)::(test_\w+)(?:\[.+\])?", bug.test).groups()
    assert f"def {test}(" in Path(TESTS / file).read_text()


def test_the_planted_bugs_are_spread_over_the_core():
    spread = {file.parts[0] for file in (Path(bug.file) for bug in BUGS.values())}
    assert spread == {"energy", "relaxation", "rules", "kernels", "models"}
    assert len(BUGS) >= 20
