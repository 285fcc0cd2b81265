import os
import re
import runpy
import shutil
import subprocess
import sys
from unittest import mock

import pytest
import torch

from tests.child import ROOT

READ_BY_SETUP = ("FCOS_FAST_BUILD", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS")


def run_setup(**environment):
    """Run setup.py like `build_ext` but without compiling; returns its namespace."""
    kept = {name: value for name, value in os.environ.items() if name not in READ_BY_SETUP}
    with (
        mock.patch.dict(os.environ, kept | environment, clear=True),
        mock.patch("setuptools.setup") as setup,
        mock.patch.object(sys, "argv", ["setup.py", "build_ext"]),
    ):
        names = runpy.run_path(str(ROOT / "setup.py"))
    assert setup.call_args.kwargs["ext_modules"] == names["extensions"]
    return names


def write_script(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def cuda_torch(monkeypatch):
    """Make setup.py see a torch with CUDA."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_75 sm_80 sm_90 compute_90", raising=False)


@pytest.fixture
def toolkit(tmp_path):
    """A folder with a fake nvcc that answers the queries of setup.py."""
    home = tmp_path / "toolkit"
    answers = {"--dryrun": f"#$ _HERE_={home}/bin", "--list-gpu-arch": "compute_80\ncompute_90\ncompute_100"}
    cases = "\n".join(
        f"{option}*) echo '{answer}' >&2; echo '{answer}';;" for option, answer in answers.items()
    )
    write_script(home / "bin" / "nvcc", f'case "$*" in\n{cases}\nesac')
    return home


@pytest.mark.usefixtures("cuda_torch")
def test_cuda_build_without_nvcc_fails_with_a_remedy(tmp_path):
    with pytest.raises(SystemExit) as error:
        run_setup(FCOS_FAST_BUILD="cuda", CUDA_HOME=str(tmp_path), PATH=str(tmp_path))
    message = str(error.value)
    for part in (
        "FCOS_FAST_BUILD=cuda",
        "nvcc",
        "CUDA_HOME",
        "cuda-toolkit[nvcc,cccl]",
        "FCOS_FAST_BUILD=cpu",
    ):
        assert part in message


def test_cuda_build_with_a_torch_without_cuda_fails_with_a_remedy(monkeypatch, toolkit):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit, match=r"torch .* no CUDA; .*--no-build-isolation"):
        run_setup(FCOS_FAST_BUILD="cuda", CUDA_HOME=str(toolkit))


@pytest.mark.usefixtures("cuda_torch")
def test_automatic_build_without_nvcc_reports_the_skipped_cuda_operators(tmp_path, capfd):
    names = run_setup(FCOS_FAST_BUILD="auto", CUDA_HOME=str(tmp_path), PATH=str(tmp_path))
    assert [extension.name for extension in names["extensions"]] == ["fcos_fast._C"]
    assert f"CUDA operators  NO: no bin/nvcc in CUDA_HOME={tmp_path}" in capfd.readouterr().err


def test_cpu_build_reports_what_is_skipped_and_why(capfd):
    names = run_setup(FCOS_FAST_BUILD="cpu", MAX_JOBS="3")
    assert [extension.name for extension in names["extensions"]] == ["fcos_fast._C"]
    summary = capfd.readouterr().err
    assert f"torch {torch.__version__}" in summary
    assert "3 jobs" in summary
    assert "CPU operators   yes" in summary
    assert "CUDA operators  NO: FCOS_FAST_BUILD=cpu" in summary


def test_unknown_kind_of_build_raises():
    with pytest.raises(SystemExit, match="FCOS_FAST_BUILD=nonsense; expected auto, cpu or cuda"):
        run_setup(FCOS_FAST_BUILD="nonsense")


def test_build_without_torch_fails_with_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"needs torch >= 2\.10; .*pip install torch"):
        run_setup()


@pytest.mark.usefixtures("cuda_torch")
def test_wrapper_script_leads_to_the_toolkit(tmp_path, toolkit):
    wrapper = write_script(tmp_path / "wrapper" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    names = run_setup(FCOS_FAST_BUILD="cuda", PATH=f"{wrapper.parent}:{os.environ['PATH']}")
    assert names["cuda_home"] == toolkit
    assert str(toolkit / "include") in names["extensions"][1].include_dirs


@pytest.mark.usefixtures("cuda_torch")
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")
def test_wrapper_around_the_nvcc_of_this_machine_leads_to_its_headers(tmp_path):
    wrapper = write_script(tmp_path / "nvcc", f'exec {shutil.which("nvcc")} "$@"')
    home = run_setup(FCOS_FAST_BUILD="cuda", PATH=f"{wrapper.parent}:{os.environ['PATH']}")["cuda_home"]
    assert (home / "include" / "cuda_runtime.h").is_file()


@pytest.mark.usefixtures("cuda_torch")
@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("8.0;9.0+PTX", ["80,code=sm_80", "90,code=sm_90", "90,code=compute_90"]),
        ("7.5 9.0a", ["75,code=sm_75", "90a,code=sm_90a"]),
        (" 8.0 ;\t8.6,9.0+PTX ", ["80,code=sm_80", "86,code=sm_86", "90,code=sm_90", "90,code=compute_90"]),
        ("9.0;9.0+PTX;9.0", ["90,code=sm_90", "90,code=compute_90"]),
        ("Hopper", ["90,code=sm_90", "90,code=compute_90"]),
        ("Hopper+PTX", ["90,code=sm_90", "90,code=compute_90"]),
        ("Ampere", ["80,code=sm_80", "86,code=sm_86", "86,code=compute_86"]),
        ("Ampere+Tegra", ["87,code=sm_87"]),
        ("Ampere+Tegra+PTX", ["87,code=sm_87", "87,code=compute_87"]),
        ("Turing 8.0", ["75,code=sm_75", "80,code=sm_80", "75,code=compute_75"]),
        # Nothing listed: the architectures of torch that this nvcc supports, and PTX of the newest.
        ("", ["80,code=sm_80", "90,code=sm_90", "90,code=compute_90"]),
    ],
)
def test_architectures(listed, expected, toolkit):
    names = run_setup(FCOS_FAST_BUILD="cuda", CUDA_HOME=str(toolkit), TORCH_CUDA_ARCH_LIST=listed)
    flags = names["extensions"][1].extra_compile_args["nvcc"]
    assert [flag for flag in flags if "arch" in flag] == [f"-gencode=arch=compute_{e}" for e in expected]


@pytest.mark.usefixtures("cuda_torch")
@pytest.mark.parametrize("name", ["Ampere", "Turing", "Volta", "Ada", "Hopper", "Ampere+Tegra", "Pascal"])
def test_architecture_names_are_those_of_torch(name, toolkit, monkeypatch):
    from torch.utils.cpp_extension import _get_cuda_arch_flags

    names = run_setup(FCOS_FAST_BUILD="cuda", CUDA_HOME=str(toolkit), TORCH_CUDA_ARCH_LIST=name)
    flags = [flag for flag in names["extensions"][1].extra_compile_args["nvcc"] if "arch" in flag]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", name)
    assert sorted(flags) == _get_cuda_arch_flags()


@pytest.mark.usefixtures("cuda_torch")
def test_the_architectures_of_the_present_gpus(toolkit, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(9, 0), (8, 0), (9, 0)].__getitem__)
    names = run_setup(FCOS_FAST_BUILD="cuda", CUDA_HOME=str(toolkit), TORCH_CUDA_ARCH_LIST="native")
    flags = [flag for flag in names["extensions"][1].extra_compile_args["nvcc"] if "arch" in flag]
    expected = ["80,code=sm_80", "90,code=sm_90", "90,code=compute_90"]
    assert flags == [f"-gencode=arch=compute_{e}" for e in expected]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        SystemExit, match="native: torch finds no GPU on this machine; set the compute capability"
    ):
        run_setup(FCOS_FAST_BUILD="cuda", CUDA_HOME=str(toolkit), TORCH_CUDA_ARCH_LIST="native")


@pytest.mark.usefixtures("cuda_torch")
@pytest.mark.parametrize("listed", ["Hoper", "8", "sm_90", "9.0+ptx", "8.0;;x"])
def test_an_unknown_architecture_raises(listed, toolkit):
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST: '.*expected numbers such as .* Hopper"):
        run_setup(FCOS_FAST_BUILD="cuda", CUDA_HOME=str(toolkit), TORCH_CUDA_ARCH_LIST=listed)


def test_empty_variables_count_as_unset(capfd):
    names = run_setup(FCOS_FAST_BUILD="", CUDA_HOME="", TORCH_CUDA_ARCH_LIST="", MAX_JOBS="")
    assert "fcos_fast._C" in [extension.name for extension in names["extensions"]]
    assert re.search(r" [1-9]\d* jobs", capfd.readouterr().err)


@pytest.mark.usefixtures("cuda_torch")
def test_summary_names_the_toolkit_and_the_architectures(toolkit, capfd):
    run_setup(FCOS_FAST_BUILD="cuda", CUDA_HOME=str(toolkit), TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX")
    summary = capfd.readouterr().err
    assert f"CUDA operators  yes: nvcc of {toolkit}, sm_80 sm_90 compute_90\n" in summary


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Folder with the files of a wheel, except binaries (lib), and the list of files of an sdist (egg-info)."""
    folder = tmp_path_factory.mktemp("package")
    commands = ["egg_info", "--egg-base", str(folder), "build_py", "--build-lib", str(folder / "lib")]
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", *commands],
        cwd=ROOT,
        env=os.environ | {"FCOS_FAST_BUILD": "cpu"},
        check=True,
        capture_output=True,
    )
    return folder


def files_below(folder, *suffixes):
    return {path.relative_to(ROOT).as_posix() for path in folder.rglob("*") if path.suffix in suffixes}


def test_wheel_contains_only_the_package(package):
    lib = package / "lib"
    assert [path.name for path in lib.iterdir()] == ["fcos_fast"]
    copied = {path.relative_to(lib).as_posix() for path in lib.rglob("*") if path.is_file()}
    assert copied == files_below(ROOT / "fcos_fast", ".py", ".yaml", ".html") | {"fcos_fast/py.typed"}


def test_sdist_contains_what_building_and_testing_need(package):
    listed = set((package / "fcos_fast.egg-info" / "SOURCES.txt").read_text().split())
    needed = files_below(ROOT / "csrc", ".h", ".cpp", ".cu") | files_below(ROOT / "tests", ".py", ".json")
    assert {"csrc/library.cpp", "csrc/math/nms.h"} <= needed
    assert needed | {"setup.py", "pyproject.toml", "Makefile", "LICENSE", "tools/wheel.py"} <= listed
    assert not [name for name in listed if name.endswith((".so", ".pyc"))]
