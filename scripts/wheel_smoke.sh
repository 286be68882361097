#!/usr/bin/env bash
# Builds the sdist and from it the wheel, then trains and compares a run with that wheel in an
# environment that holds what the wheel declares and nothing else. The dependencies are links into
# .venv, so that torch is neither downloaded nor unpacked a second time.
set -euo pipefail
cd "$(dirname "$0")/.."
make .venv/.ready-dev

developer="$PWD/.venv/bin/python"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fresh="$work/venv/bin/python"
unset PYTHONPATH

"$developer" -m build --no-isolation --outdir "$work/dist" .

"$developer" -m venv --without-pip "$work/venv"
"$developer" - "$("$fresh" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

site_packages = Path(sys.argv[1])
todo = [Requirement("lmbench")]
seen = set()
while todo:
    wanted = todo.pop()
    if (wanted.name, *wanted.extras) in seen:
        continue
    seen.add((wanted.name, *wanted.extras))
    try:
        found = distribution(wanted.name)
    except PackageNotFoundError:
        continue  # `pip check` reports it
    if wanted.name != "lmbench":
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            link = site_packages / top
            if not link.exists():
                link.symlink_to(found.locate_file(top))
    for requirement in map(Requirement, found.requires or ()):
        marker = requirement.marker
        if not marker or any(marker.evaluate({"extra": extra}) for extra in {"", *wanted.extras}):
            todo.append(requirement)
PYTHON
"$developer" -m pip --python "$fresh" install --no-deps "$work"/dist/*.whl
"$developer" -m pip --python "$fresh" check

# From here on neither the checkout nor the user's caches are within reach; no network is needed.
mkdir "$work/elsewhere"
cd "$work/elsewhere"
export HOME="$work" XDG_CACHE_HOME="$work/cache" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
unset LMBENCH_DATA_DIR
train="$work/venv/bin/lmbench-train"

"$fresh" - <<'PYTHON'
import sys
from pathlib import Path

import lmbench

package = Path(lmbench.__file__).parent
assert package.is_relative_to(sys.prefix), f"imported from {package}, not from the wheel"
assert (package / "py.typed").is_file(), "the wheel lacks py.typed"
PYTHON
"$train" --help >help.txt
"$train" --cfg job >config.yaml
"$train" data=synthetic model=lstm \
  trainer.max_steps=2 trainer.limit_val_batches=2 trainer.limit_test_batches=2
"$fresh" - <<'PYTHON'
import json
import math
from importlib.metadata import version
from pathlib import Path

(path,) = Path("outputs").glob("*/*/results.json")
results = json.loads(path.read_text())
assert results["lmbench_version"] == version("lmbench"), results["lmbench_version"]
assert results["train"]["steps"] == 2, results["train"]
assert math.isfinite(results["test"]["nll"]), results["test"]
PYTHON
run=$(echo outputs/*/*)
"$work/venv/bin/lmbench-export" "$run" --output export
"$work/venv/bin/lmbench-generate" export --num-tokens 20 --temperature 0 </dev/null >text.txt
"$work/venv/bin/lmbench-score" "$run" text.txt
"$fresh" - <<'PYTHON'
import sys
from pathlib import Path

import torch

import lmbench

(run_dir,) = Path("outputs").glob("*/*")
(model, vocabulary), (exported, _) = lmbench.load(run_dir), lmbench.load("export")
assert not {"lightning", "hydra"} & sys.modules.keys(), "lmbench.load needs Lightning or Hydra"
tokens = torch.arange(20).reshape(10, 2)
assert torch.equal(model(tokens).output, exported(tokens).output), "the export has other weights"
words = Path("text.txt").read_text("utf-8").replace("\n", " <eos> ").split()
assert len(words) in (20, 21), words
assert set(words) <= set(vocabulary.words), words
PYTHON
"$work/venv/bin/lmbench-compare" outputs --output compared
grep -q "</html>" compared/index.html
echo "The wheel trains, exports, generates and compares on its own."
