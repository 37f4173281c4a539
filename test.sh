#!/usr/bin/env bash
# Runs all tests, each lane in its own virtual environment: ./test.sh [PYTHON ...]
#
# PYTHON is a version (3.12), a command (python3) or a path; without one it is python3.
# TEST_WORKERS is the number of processes that share the tests (2; 0 runs them in one).
# PYTEST_ADDOPTS adds options to pytest. Delete .venvs/ to start from newly resolved versions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Prints the interpreter's path. A version need not be on PATH, and a command there need not
# run (pyenv puts one there for each version it could switch to), so each candidate is tried.
find_python() {
    local wanted=$1 candidates=("$1") candidate
    if [[ $wanted =~ ^3\.[0-9]+$ ]]; then
        candidates=("python$wanted" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$wanted".*/bin/python)
    fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "test.sh: no Python >= 3.11 found for '$wanted'; looked for: ${candidates[*]}" >&2
    return 1
}

run_lane() {
    local python=$1 environment
    environment=.venvs/$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    "$python" -m venv "$environment"
    "$environment/bin/python" -m pip install -qq --disable-pip-version-check --editable '.[test]'
    "$environment/bin/python" -c 'import platform, importlib.metadata as packages
print("python", platform.python_version(), "jax", packages.version("jax"), flush=True)'
    "$environment/bin/python" -m pytest --numprocesses "${TEST_WORKERS:-2}"
}

[[ $# -gt 0 ]] || set -- python3
interpreters=()
for wanted in "$@"; do
    interpreters+=("$(find_python "$wanted")")
done
for interpreter in "${interpreters[@]}"; do
    run_lane "$interpreter"
done
