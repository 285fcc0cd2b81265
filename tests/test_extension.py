import os
import re
import shutil
import sysconfig
import warnings
from types import SimpleNamespace

import pytest
import torch

from fcos_fast import _extension, backend, ops, reference
from tests.child import ROOT, assert_runs, run_python

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
SCHEMAS = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "library.cpp").read_text())


@pytest.fixture(scope="module")
def without_binaries(tmp_path_factory):
    """A folder with a copy of the package without binaries."""
    folder = tmp_path_factory.mktemp("without_binaries")
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "*.dylib", "__pycache__")
    shutil.copytree(ROOT / "fcos_fast", folder / "fcos_fast", ignore=ignored)
    return folder


def test_imports_without_a_binary_and_raises_at_the_first_call(without_binaries):
    printed = assert_runs(
        """
        import torch
        import fcos_fast, fcos_fast.reference, fcos_fast.ops, fcos_fast.models
        from fcos_fast._extension import ExtensionNotBuiltError
        print(fcos_fast.__file__)
        try:
            fcos_fast.ops.centerness(torch.ones(1, 4))
        except ExtensionNotBuiltError as error:
            print(error)
        with fcos_fast.backend("reference"):
            print(fcos_fast.ops.centerness(torch.ones(1, 4)))
        """,
        package_in=without_binaries,
    )
    assert str(without_binaries) in printed.splitlines()[0]
    assert "not built" in printed
    assert "pip install ." in printed
    assert "FCOS_FAST_BACKEND=reference" in printed
    assert "tensor([1.])" in printed


def test_reference_operators_need_no_binary(without_binaries):
    assert_runs(
        """
        import torch
        from fcos_fast import ops
        from fcos_fast.assignment import RULES, GroundTruth

        x = torch.ones(2, 3, requires_grad=True)
        ops.sigmoid_focal_loss(x, torch.tensor([0, -1]), reduction="sum").backward()
        assert x.grad.abs().sum() > 0
        boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]])
        assert ops.nms(boxes, torch.tensor([0.1, 0.2]), 0.5).tolist() == [1]
        assert ops.box_loss(boxes, boxes).abs().max() < 1e-6
        rule = RULES["official"]
        sizes = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
        gt = GroundTruth.pack([boxes], [torch.tensor([5, 6])])
        targets = ops.assign_targets(gt, rule.levels(sizes, (64, 64)), rule)
        assert targets.num_positive > 0
        """,
        package_in=without_binaries,
        FCOS_FAST_BACKEND="reference",
    )


def test_an_empty_backend_in_the_environment_counts_as_unset():
    assert (
        assert_runs("import fcos_fast._extension as e; print(e.current_backend())", FCOS_FAST_BACKEND="")
        == "auto\n"
    )


def test_unknown_backend_in_the_environment_raises(without_binaries):
    done = run_python("import fcos_fast.ops", package_in=without_binaries, FCOS_FAST_BACKEND="nonsense")
    assert done.returncode != 0
    assert "FCOS_FAST_BACKEND='nonsense'; expected one of auto, native, reference" in done.stderr


def test_a_broken_binary_has_its_own_error(without_binaries, tmp_path):
    package = shutil.copytree(without_binaries / "fcos_fast", tmp_path / "fcos_fast")
    (package / f"_C{SUFFIX}").write_text("not a binary")
    printed = assert_runs(
        """
        import torch
        from fcos_fast import _extension, ops
        assert isinstance(_extension.cpu_error, _extension.ExtensionLoadError), _extension.cpu_error
        try:
            ops.centerness(torch.ones(1, 4))
        except _extension.ExtensionLoadError as error:
            print(error)
        """,
        package_in=tmp_path,
    )
    assert f"cannot be loaded with torch {torch.__version__}" in printed
    assert "pip install ." in printed


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")
def test_a_broken_cuda_binary_does_not_affect_the_cpu_operators(without_binaries, tmp_path):
    package = shutil.copytree(without_binaries / "fcos_fast", tmp_path / "fcos_fast")
    shutil.copy(ROOT / "fcos_fast" / f"_C{SUFFIX}", package)
    (package / f"_C_cuda{SUFFIX}").write_text("not a binary")
    printed = assert_runs(
        """
        import torch
        import fcos_fast
        from fcos_fast import _extension, ops
        assert isinstance(_extension.cuda_error, _extension.ExtensionLoadError), _extension.cuda_error
        print(_extension.cuda_error)
        with fcos_fast.backend("native"):
            ops.centerness(torch.ones(1, 4))
        """,
        package_in=tmp_path,
    )
    assert "_C_cuda" in printed


def test_operators_and_models_only_import_torch_and_numpy():
    # Only imports in the package count, not those of torch itself.
    assert_runs(
        """
        import builtins, sys
        import numpy, torch

        allowed = {"fcos_fast", "torch", "numpy", *sys.stdlib_module_names}
        original = builtins.__import__

        def guarded(name, globals=None, locals=None, fromlist=(), level=0):
            importer = (globals or {}).get("__name__") or ""
            if importer.split(".")[0] == "fcos_fast" and level == 0 and name.split(".")[0] not in allowed:
                raise AssertionError(f"{importer} imports {name}")
            return original(name, globals, locals, fromlist, level)

        builtins.__import__ = guarded
        for name in ("torchvision", "matplotlib", "PIL", "jsonargparse", "tqdm", "yaml"):
            sys.modules[name] = None  # importing it raises
        import fcos_fast, fcos_fast.ops, fcos_fast.reference, fcos_fast.models
        fcos_fast.ops.centerness(torch.ones(1, 4))
        """
    )


@pytest.mark.parametrize("name", _extension.BACKENDS)
def test_backend_is_chosen_for_a_with_block(name):
    before = _extension.current_backend()
    with backend(name):
        assert _extension.current_backend() == name
        with backend("reference"):
            assert not _extension.use_native(torch.ones(1))
        assert _extension.current_backend() == name
    assert _extension.current_backend() == before


def test_backend_is_restored_after_an_error():
    before = _extension.current_backend()
    with pytest.raises(KeyError), backend("reference"):
        raise KeyError
    assert _extension.current_backend() == before


def test_unknown_backend_raises_and_changes_nothing():
    before = _extension.current_backend()
    with (
        pytest.raises(ValueError, match=r"backend\('fast'\); expected one of auto, native, reference"),
        backend("fast"),
    ):
        pass
    assert _extension.current_backend() == before


def test_backend_decides_which_operator_runs(monkeypatch):
    monkeypatch.setattr(reference, "centerness", lambda ltrb: "reference")
    for name, is_reference in (("native", False), ("auto", False), ("reference", True)):
        with backend(name):
            assert (ops.centerness(torch.ones(1, 4)) == "reference") is is_reference


def on_device(name):
    """A stand-in for a tensor on a device that torch is not built for."""
    return SimpleNamespace(device=torch.device(name))


def test_device_without_kernels_raises_under_native():
    with (
        backend("native"),
        pytest.raises(_extension.ExtensionNotBuiltError, match="cpu and cuda, but not for xpu"),
    ):
        _extension.use_native(on_device("xpu"))


def test_device_without_kernels_gets_the_reference_and_one_warning(monkeypatch):
    monkeypatch.setattr(_extension, "_warned", set())
    with backend("auto"):
        with pytest.warns(UserWarning, match="plain PyTorch operators on xpu"):
            assert not _extension.use_native(on_device("xpu"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not _extension.use_native(on_device("xpu"))


@pytest.mark.filterwarnings("ignore:fcos_fast")
def test_meta_tensors_give_shapes():
    ltrb = torch.ones(2, 3, 4, device="meta")
    assert ops.centerness(ltrb).shape == (2, 3)
    assert ops.box_loss(ltrb, ltrb).shape == (2, 3)
    assert ops.sigmoid_focal_loss(ltrb, ltrb, reduction="sum").shape == ()


def test_the_binary_has_exactly_the_schemas_of_the_sources():
    registered = {schema.name for schema in torch._C._jit_get_all_schemas()}
    ours = {name.removeprefix("fcos_fast::") for name in registered if name.startswith("fcos_fast::")}
    assert ours == set(SCHEMAS), "csrc/library.cpp has changed since the build: rebuild"


@pytest.mark.parametrize("key", ["CPU", "CUDA", "Meta"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_has_a_kernel(name, key):
    if key == "CUDA" and name.startswith("winograd"):
        pytest.skip("only for CPUs")
    if key == "CUDA" and _extension.cuda_error is not None:
        pytest.skip(f"no CUDA operators: {_extension.cuda_error}")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fcos_fast::{name}", key)


@pytest.mark.parametrize(
    ("capability", "targets", "covered"),
    [
        ((9, 0), "sm_80 sm_90", True),
        ((8, 6), "sm_80", True),  # machine code also runs on later minor versions
        ((8, 0), "sm_86", False),
        ((9, 0), "sm_80", False),  # but not on other major versions
        ((12, 0), "sm_80 compute_90", True),  # PTX does
        ((7, 5), "compute_80", False),
        ((10, 0), "sm_100", True),
        ((9, 0), "", False),
    ],
)
def test_which_gpus_a_binary_runs_on(capability, targets, covered):
    assert _extension.capability_is_covered(capability, targets) is covered


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")
@pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA")
@pytest.mark.skipif(os.environ.get("FCOS_FAST_BUILD") == "cpu", reason="FCOS_FAST_BUILD=cpu")
def test_cuda_operators_are_built_and_load_where_nvcc_is():
    assert _extension.cuda_error is None
