#!/usr/bin/env bash
# Sets one node of a cluster up: this project at the commit from which `ray up` was called, in ~/sharpness-study, with
# the Python and the packages of the machine that called it. `ray up` copies what it needs (file_mounts of the cluster
# file) and calls it on every node; calling it again costs seconds.
#
# usage: set_up_node.sh [ENVIRONMENT]
#   ENVIRONMENT  a virtual environment that is on the node already (an image, a shared disk) and holds what
#                requirements.lock names: nothing is downloaded then. Left out, one is made (6 GB, most of it torch).
set -euo pipefail

home=$HOME/sharpness-study
base=${1:-}
uv_version=0.13.9

say() { echo "set-up: $*"; }
fail() { echo "set-up: $*" >&2; exit 1; }

command -v git > /dev/null || fail "git is missing on $(hostname): install it and run \`ray up\` again"
cd "$home"

# A copy made as root keeps the owner that the files had elsewhere, and git refuses the repository of another.
[ -O .git ] || chown -R "$(id -u):$(id -g)" .git
chmod 600 "$HOME/.ray/auth_token"

# Not what HEAD says: the copy deletes nothing, so that an older branch file may hide a packed one. The log is one file.
commit=$({ tail -n 1 .git/logs/HEAD 2> /dev/null || true; } | cut -d ' ' -f 2)
commit=${commit:-$(git rev-parse HEAD)}
git update-ref --no-deref HEAD "$commit"
git reset --quiet --hard
say "commit $(git log -1 --format='%h %s')"

python=$(sed -n 's/^version_info = \([0-9.]*[0-9]\).*/\1/p; s/^version = \([0-9.]*[0-9]\).*/\1/p' .launcher.cfg | head -n 1)
[ -n "$python" ] || fail "no Python version in the launching machine's .venv/pyvenv.cfg: run \`make setup\` there"

if [ -n "$base" ]; then
    "$base/bin/python" -c "import sys; sys.exit(sys.version_info[:2] != tuple(map(int, '$python'.split('.')[:2])))" \
        || fail "$base has $("$base/bin/python" --version 2>&1), the launching machine Python $python"
    "$base/bin/python" -m venv --without-pip --clear .venv
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # This checkout stands before the packages, and before another version of the project that may lie among them.
    printf '%s\n' "$home" "$("$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
        > "$site/sharpness_study_on_node.pth"
    # -P: whatever folder it is called in, that one's `study` is not meant.
    for command in ray:ray.scripts.scripts study:study; do
        printf '#!/bin/sh\nexec "%s/.venv/bin/python" -P -m %s "$@"\n' "$home" "${command#*:}" > ".venv/bin/${command%%:*}"
        chmod 755 ".venv/bin/${command%%:*}"
    done
else
    if [ ! -x .tools/bin/uv ]; then
        python3 -m pip --version > /dev/null 2>&1 || fail "python3 with pip is missing on $(hostname)"
        python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .tools "uv==$uv_version"
    fi
    # uv takes the node's own Python of this version, and fetches one where there is none.
    .tools/bin/uv venv --quiet --allow-existing --python "$python" .venv
    .tools/bin/uv pip sync --quiet --python .venv/bin/python requirements.lock
    .tools/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
fi

# `ray exec`, `ray down` and `ray attach` look for `ray` as a login does.
mark='# sharpness-study'
grep -qsF "$mark" ~/.bashrc || printf '%s\n' \
    "export RAY_AUTH_MODE=token PATH=\"\$HOME/sharpness-study/.venv/bin:\$PATH\"  $mark" >> ~/.bashrc

say "$(.venv/bin/python -c 'import platform, ray; print("Python", platform.python_version() + ", Ray", ray.__version__)') on $(hostname)"
