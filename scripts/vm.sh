#!/usr/bin/env bash
# Runs a command as root under Debian 12's own kernel, in a virtual machine on this machine's files (read-only; /tmp is its own).
# Prints the command's output and exits with its code. The machine is emulated, about ten times slower, unless MESHSCOPE_KVM=1 says that KVM works here.
#   scripts/vm.sh COMMAND...        MESHSCOPE_VM_SECONDS: give up after so long (default 1500)
set -euo pipefail
cd "$(dirname "$0")/.."
(($#)) || { echo "usage: scripts/vm.sh COMMAND..." >&2; exit 2; }
cache=${MESHSCOPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/meshscope}/kernel
export PATH=$PWD/.venv/bin:$PATH:/usr/sbin:/sbin

kernel=$(compgen -G "$cache/boot/vmlinuz-6.1.*" | sort -V | tail -n 1 || true)
if [[ -z $kernel ]]; then
	mkdir -p "$cache"
	package() { apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-6\.1\..*\)/\1/p'; }
	[[ -n $(package) ]] || apt-get update >/dev/null
	echo "vm: fetching $(package)" >&2
	(cd "$cache" && apt-get -o APT::Sandbox::User=root download "$(package)" >/dev/null && dpkg -x ./linux-image-*.deb . && rm ./*.deb)
	kernel=$(compgen -G "$cache/boot/vmlinuz-6.1.*" | sort -V | tail -n 1)
fi

exec 9>"$cache/lock" # one machine at a time: two on two cores are too slow for any bound
flock 9

out=$(mktemp -d)
tail_pid=
cleanup() {
	[[ -z $tail_pid ]] || kill "$tail_pid" 2>/dev/null || true
	rm -rf "$out"
}
trap cleanup EXIT
touch "$out/log"
{ # runs first: the guest's root is mounted without a cache, which makes starting Python ten times slower; /mnt is the same files
	printf 'tag=$(sed -n "s,^\([^ ]*\) /mnt .*,\\1,p" /proc/mounts); umount /mnt || exit\n'
	printf 'mount -t 9p -o ro,version=9p2000.L,trans=virtio,msize=512000,cache=loose "$tag" /mnt || exit\n'
	printf 'for part in proc sys dev tmp run; do mount --rbind /$part /mnt/$part; done\nchroot /mnt bash %q\nsync\n' "$out/command"
} >"$out/script"
{
	printf 'cd %q\nexport PATH=%q HOME=/tmp PYTHONDONTWRITEBYTECODE=1 MESHSCOPE_VM=1\n' "$PWD" "$PATH"
	[[ -z ${MESHSCOPE_LIVE:-} ]] || printf 'export MESHSCOPE_LIVE=%q\n' "$MESHSCOPE_LIVE"
	printf '%q ' "$@"
	printf '\necho $? >%q/rc\n' "$out"
} >"$out/command"
kvm=(--disable-kvm) # a /dev/kvm that is there does not always work (nested virtual machines)
[[ -z ${MESHSCOPE_KVM:-} ]] || kvm=()
tail -n +1 -f "$out/log" &
tail_pid=$!
# The guest's console is lost now and then; what it writes to a shared file is not.
timeout "${MESHSCOPE_VM_SECONDS:-1500}" vng -r "$kernel" "${kvm[@]}" --user root --cpus "$(nproc)" --memory 3G --rwdir "$out" --rodir /mnt=/ \
	-- "bash $out/script >$out/log 2>&1" </dev/null >"$out/console" 2>&1 || true
sleep 0.5 # lets tail print the last lines
[[ -s $out/rc ]] && exit "$(<"$out/rc")"
echo "vm: the command did not end; the console said:" >&2
tail -n 30 "$out/console" >&2
exit 1
