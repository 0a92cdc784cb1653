#!/usr/bin/env bash
# Installs what is missing on a Debian 12 machine: `setup.sh run` for the agent and its demo, `setup.sh dev` for tests as well.
# Nothing that is already there is touched; apt is asked only if something is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
set_name=${1:-dev}

packages=(bpftool ca-certificates clang curl iproute2 libbpf-dev libbpf1 linux-libc-dev llvm make nginx-light openssl procps python3-venv)
[[ $set_name == dev ]] && packages+=(busybox-static git kmod nghttp2-client prometheus qemu-system-x86 wrk)

missing=()
for package in "${packages[@]}"; do
	[[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
if ((${#missing[@]})); then
	[[ $(id -u) == 0 ]] || { echo "setup: as root: apt-get install --no-install-recommends ${missing[*]}" >&2; exit 1; }
	echo "setup: installing ${missing[*]}"
	log=$(mktemp)
	# Debian starts the services of packages it installs (nginx on port 80, prometheus on 9090) unless this file says no.
	policy=/usr/sbin/policy-rc.d
	made_policy=
	trap 'rm -f "$log"; [[ -z $made_policy ]] || rm -f "$policy"' EXIT
	if [[ ! -e $policy ]]; then
		made_policy=1
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
	fi
	install=(env DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends install "${missing[@]}")
	{ apt-get update && "${install[@]}"; } >"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 1; }
fi

python=$(command -v /usr/bin/python3.11 || command -v python3.11) || { echo "setup: no python3.11 found" >&2; exit 1; }
[[ -x .venv/bin/python ]] || "$python" -m venv .venv
.venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
	{ echo "setup: .venv is not Python 3.11; remove it and run again" >&2; exit 1; }
pip=(.venv/bin/python -m pip --quiet --disable-pip-version-check)
groups=()
[[ $set_name == dev ]] && groups=(--group dev --group live)
"${pip[@]}" install 'pip>=25.1' # the first that knows --group
"${pip[@]}" install --editable . "${groups[@]}"
