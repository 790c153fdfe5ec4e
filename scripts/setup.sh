# Sourced by the other scripts: makes .venv in the checkout with the pinned packages; skips what is done.
# Needs Python 3.11 or newer with venv and pip, nothing else. PYTHON=… chooses another interpreter.
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
stamp=$(cat pyproject.toml scripts/constraints.txt | cksum)
if [ "$(cat .venv/atoll-stamp 2>/dev/null || true)" != "$stamp" ]; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "atoll needs Python 3.11 or newer; '$PYTHON' is $("$PYTHON" --version 2>&1). Set PYTHON=…" >&2
        exit 2
    }
    echo "Setting up .venv with pinned packages (once; about two minutes) …" >&2
    "$PYTHON" -m venv .venv
    .venv/bin/python -m pip install --quiet --constraint scripts/constraints.txt --editable '.[dev]'
    echo "Compiling the client kernels (once; half a minute) …" >&2
    .venv/bin/python -m atoll.learner.compiled
    printf '%s' "$stamp" > .venv/atoll-stamp
fi
# One thread per process: more threads change bits and, on a busy machine, stall.
export OMP_NUM_THREADS=1
