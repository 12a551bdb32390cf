import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_a_deferred_library_is_loaded_when_something_of_it_is_asked_for() -> None:
    _run(
        "import sys\nfrom compress.machine.deferred import deferred\ndeferred('numpy')\n"
        "import numpy as np\nimport numpy\nassert numpy is np and 'numpy._core' not in sys.modules\n"
        "assert np.float32(3) == 3 and np.__version__ and type(np) is type(sys) and sys.modules['numpy'] is np"
    )


@pytest.mark.parametrize("use", ["import numpy.random as r; assert r.default_rng", "from numpy.typing import NDArray"])
def test_what_is_imported_from_within_a_deferred_library_loads_it(use: str) -> None:
    _run(
        f"from compress.machine.deferred import deferred; deferred('numpy'); {use}; import numpy; assert numpy.array([1]).sum()"
    )


def test_a_library_that_is_loaded_stays_and_one_that_is_absent_stays_so() -> None:
    _run(
        "import sys, numpy\nfrom compress.machine.deferred import deferred\n"
        "known = numpy\ndeferred('numpy'); deferred('no_such_library')\n"
        "assert sys.modules['numpy'] is known and 'no_such_library' not in sys.modules"
    )


@pytest.mark.parametrize("recipe", ["quickstart", "text/quickstart", "text/sensitivity"])
def test_checking_a_recipe_loads_no_numpy(recipe: str, tmp_path: Path) -> None:
    arguments = ["check", f"recipes/{recipe}.yaml", "--cache", str(tmp_path)]
    _run(
        f"import sys\nfrom compress.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit as ended:\n"
        "    assert not ended.code\nassert 'numpy._core' not in sys.modules, 'numpy'"
    )
