# Few commands, the same ones in CI.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo check test coverage slow bench big cuts engines quantizers gpu calibration golden families train-zoo evidence

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --progress-bar on --no-compile -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true  # as pip does, on all cores; it minds templates
	@touch $@

demo: setup  ## the main job: the image quickstart, into runs/quickstart
	$(BIN)/pare run recipes/quickstart.yaml

check: setup  ## lint, types, smoke
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pare check recipes/quickstart.yaml

test: setup check  ## two processes, then by themselves the tests that measure time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not alone" -n 2 --dist loadfile --max-worker-restart 0 --durations=15
	$(BIN)/python -m pytest -m "alone and not slow"

coverage: setup  ## the lines that tests reach in their own processes; no bar to pass
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not alone" -n 2 --dist loadfile --max-worker-restart 0 \
		--cov=compress --cov=evaluation --cov-report=term:skip-covered

slow: setup  ## what takes minutes, docs/quantization.md's tables with it, and the laws on examples that nobody has seen
	$(BIN)/python -m pytest -m slow
	PARE_EXAMPLES="new examples" $(BIN)/python -m pytest tests/property

bench: setup
	$(BIN)/python -m tests.programs.bench
	$(BIN)/python -m tests.programs.bench_quantizers

big: setup  ## what plans say of memory and disk and what is taken, on 1.5 B parameters, reports/big.md; half an hour
	$(BIN)/python -m tests.programs.big_llama

cuts: setup  ## the table of structured cuts, reports/cuts.md; an hour
	$(BIN)/python -m tests.programs.cuts

quantizers: setup  ## every quantizer on the zoo's language model by bits, reports/quantizers.md; an hour
	$(BIN)/python -m tests.programs.quantizers

engines: setup  ## every engine and precision of the zoo's language model, reports/engines.md; half an hour
	$(BIN)/python -m tests.programs.engines

gpu: setup  ## PART=a…l of what an NVIDIA GPU gives, four minutes each, reports/gpu.md
	$(BIN)/python -m tests.gpu $(PART)

calibration: setup  ## how often gates are wrong, on the units of the runs in reports/; five minutes
	$(BIN)/python -m tests.programs.calibration

golden: setup  ## rewrite the golden files; review the diff
	PARE_GOLDEN=rewrite $(BIN)/python -m pytest -m "not slow" tests/unit tests/contract

families: setup  ## the tables of families and stages, docs/families.md and README.md; plans alone, a minute
	$(BIN)/python -m tests.programs.family_table

evidence: setup  ## measure the baselines of the shipped recipes again, to ship with them
	$(BIN)/python -m evaluation.precompute recipes/quickstart.yaml recipes/text/quickstart.yaml

train-zoo: setup  ## resumes from the cache folder's training/
	$(BIN)/python -m compress.zoo.training.digits_reader
	$(BIN)/python -m compress.zoo.training.digits_clip
	$(BIN)/python -m compress.zoo.training.digits_vae
	$(BIN)/python -m compress.zoo.training.digits_diffusion
	$(BIN)/python -m compress.zoo.training.digits_dit
	$(BIN)/python -m compress.zoo.training.digits_editing
	$(BIN)/python -m compress.zoo.training.digits_inpainting
	$(BIN)/python -m compress.zoo.training.digits_teal
	$(BIN)/python -m compress.zoo.training.docs_llama
