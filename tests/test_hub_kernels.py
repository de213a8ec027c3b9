"""The kernels as a repository of Hugging Face's `kernels`, loaded from a folder by that package.

That package has the name of a folder of these tests (``tests/kernels``), which it would take the
place of: `make` puts it where no path leads, and it is imported in processes of its own.
"""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HERE = ROOT / "scripts/hub_kernels"
PACKAGE = Path(sys.prefix) / "hub-kernels"

SPEC = importlib.util.spec_from_file_location("make_hub_kernels", HERE / "make.py")
program = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(program)

needs_the_package = pytest.mark.skipif(
    not (PACKAGE / "kernels").is_dir(),
    reason=f"python -m pip install --no-deps --target {PACKAGE} kernels",
)


def run(script, *arguments):
    """What a script prints that imports the package, read as JSON."""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (PACKAGE, ROOT)))}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=paths)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "fassd-kernels"
    program.make(out)
    return out


def test_the_configuration_names_every_source(repository):
    text = (repository / "build.toml").read_text()
    assert 'stable-abi = "2.11"' in text
    named = set(re.findall(r'"([\w/.-]+/[\w.-]+\.\w+)"', text))
    assert all((repository / name).is_file() for name in named)
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")}
    # Those are included by torch_binding.cpp.
    assert sources - named == {"csrc/registration.cpp", "csrc/cuda/registration.cpp"}


def test_every_variant_says_what_it_is(repository):
    (folder,) = (repository / "build").iterdir()
    assert folder.name.startswith("torch-stable-abi211-cpu-")
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["name"] == "fassd-kernels" and metadata["id"].isidentifier()
    assert metadata["version"] == 1 and not metadata["python-depends"]


def test_nothing_in_it_is_imported_by_an_absolute_name(repository):
    """But for the standard library, PyTorch and NumPy; functions import what is asked for."""
    names = set()
    for path in (repository / "torch-ext").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").partition(".")[0])
    others = names - sys.stdlib_module_names - {"torch", "numpy", "triton"}
    assert others == {"safetensors"}  # of files of weights, which the kernels do not read


LOADED = """
import copy, json, sys
from pathlib import Path

import torch
from kernels import (LocalLayerRepository, Mode, get_local_kernel, kernelize,
                     replace_kernel_forward_from_hub, use_kernel_mapping)

from kernels._rust import Build  # kernel-builder's own parser, which refuses what it does not know

repository = Path(sys.argv[1])
backends = [str(each).lower() for each in Build.open(repository).general.backends]
before = set(sys.modules)
kernels = get_local_kernel(repository)
brought = {name.partition(".")[0] for name in set(sys.modules) - before}
found = {"brought": sorted(brought - sys.stdlib_module_names), "name": kernels.__name__}
found["backends"] = backends
found["cpu"] = kernels.backends()["cpu"].available

import fassd.models

OUTER, INNER = ("ASPP", "DAPF", "HarDBlock", "MDA"), ("ConvLayer", "AsymmetricConv2d")

fused = set()

def extensible(names):
    for name in names:
        replace_kernel_forward_from_hub(getattr(fassd.models, name), name)

def swapped(model, mode):
    mapping = {
        name: {"cpu": LocalLayerRepository(repository, layer_name=name)} for name in OUTER + INNER
    }
    with use_kernel_mapping(mapping):
        return kernelize(copy.deepcopy(model), mode=mode, device="cpu", use_fallback=False)

torch.manual_seed(0)
x = torch.randn(1, 3, 64, 96)

def run(model, x):
    # The fused modules of a network that was swapped are gone when it is.
    result = model(x)
    made = sys.modules[f"{kernels.__name__}.layers"]._FUSED.values()
    fused.update(type(each).__name__ for each in made if each._packed is not None)
    return result

def error(result, wanted):
    return float((result - wanted).abs().max() / wanted.abs().max())

errors = {}
extensible(OUTER)
for name in ("fassd_net_l2", "baseline_aspp"):
    model = fassd.models.create_model(name, 5).eval()
    with torch.no_grad():
        wanted = model(x)
        errors[f"accelerate {name}"] = error(kernels.accelerate(model)(x), wanted)
        errors[f"layers {name}"] = error(run(swapped(model, Mode.INFERENCE), x), wanted)
extensible(INNER)
for part in (fassd.models.ConvLayer(3, 5), fassd.models.AsymmetricConv2d(3, 3, 2)):
    with torch.no_grad():
        errors[type(part).__name__] = error(run(swapped(part.eval(), Mode.INFERENCE), x), part(x))
found["fused"] = sorted(fused)

trained, plain = swapped(model.train(), Mode.TRAINING), copy.deepcopy(model)
for each in (trained, plain):
    each(x.expand(2, -1, -1, -1)).square().mean().backward()
gradients = [torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (trained, plain)]
errors["gradients"] = error(*gradients)
try:
    import fassd_kernels
except ImportError as refused:
    found["second copy"] = str(refused)
print(json.dumps({**found, "errors": errors}))
"""


@needs_the_package
def test_it_is_loaded_and_its_layers_compute(repository):
    found = run(LOADED, repository)
    assert found["backends"] == ["cpu", "cuda"]
    assert {name for name in found["brought"] if not name.startswith("_sys")} <= {
        found["name"],
        "numpy",
    }
    assert found["cpu"]
    assert found["fused"] == sorted(f"Fused{name}" for name in layers_and_promises())
    # Through batch norms of twelve values, float32 leaves fewer digits.
    assert found["errors"].pop("gradients") < 1e-3
    assert max(found["errors"].values()) < 5e-6, found["errors"]
    assert "another copy of fassd_kernels" in found["second copy"]


BUILT = """
#define Py_LIMITED_API 0x030a0000
#include <Python.h>
PyMODINIT_FUNC PyInit__built(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_built", NULL, 0, NULL};
  return PyModule_Create(&module);
}
"""
LOADED_AS_BUILT = """
import importlib, sys
from pathlib import Path
from kernels import get_local_kernel
kernels = get_local_kernel(Path(sys.argv[1]))
assert kernels.backends()["cpu"].available, kernels.backends()
assert kernels.ops.checksum(kernels.ops.pieces_of([])) is not None  # by the extension's address
try:
    importlib.import_module(f"{kernels.__name__}._C_cuda")
except ImportError as error:
    assert "built without CUDA" in str(error)
else:
    raise AssertionError
print('"loaded"')
"""


@needs_the_package
@pytest.mark.skipif(sys.platform != "linux", reason="links as on Linux")
def test_an_extension_of_the_builders_name_is_found(repository, tmp_path):
    """As kernel-builder lays it out: a module of its own name, which `_ops` imports."""
    package = shutil.copytree(repository / "torch-ext/fassd_kernels", tmp_path / "fassd_kernels")
    (variant,) = (repository / "build").iterdir()
    shutil.copy(variant / "metadata.json", package)
    (extension,) = variant.glob("_C.*")
    (package / "_ops.py").write_text("from . import _built\n")
    (tmp_path / "built.c").write_text(BUILT)
    command = ["cc", "-shared", "-fPIC", "-o", package / "_built.abi3.so", tmp_path / "built.c"]
    command += [f"-I{sysconfig.get_path('include')}", "-Wl,--no-as-needed", f"-L{variant}"]
    command += [f"-l:{extension.name}", f"-Wl,-rpath,{variant}"]
    subprocess.run(command, check=True)
    assert run(LOADED_AS_BUILT, package) == "loaded"


def test_the_binding_includes_what_is_there(repository):
    folder = repository / "torch-ext"
    text = (folder / "torch_binding.cpp").read_text()
    included = re.findall(r'#include "(\.\./.+)"', text)
    assert len(included) == 2 and all((folder / name).is_file() for name in included)


def layers_and_promises():
    """What the source of the layers declares: whether each has a gradient, and can be compiled."""
    tree = ast.parse((HERE / "layers.py").read_text())
    return {
        kind.name: {
            each.targets[0].id: each.value.value
            for each in kind.body
            if isinstance(each, ast.Assign)
        }
        for kind in tree.body
        if isinstance(kind, ast.ClassDef)
    }


def test_the_card_says_what_the_layers_declare():
    card = (HERE / "CARD.md").read_text()
    words = {True: "yes", False: "no"}
    for name, promises in layers_and_promises().items():
        row = [words[promises[key]] for key in ("has_backward", "can_torch_compile")]
        assert f"| `{name}` | {' | '.join(row)} |" in card


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, HERE / "make.py", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1 and str(tmp_path) in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line", ["import fassd_kernels.ops", "from fassd import models, io", "import fassd as f"]
)
def test_imports_that_stay_absolute_are_refused(line):
    with pytest.raises(ValueError, match=r"ops\.py, line 2"):
        program.relative(f"import sys\n{line}\n", "ops.py")
