# What the scripts have in common. Sourced, never run.
# shellcheck shell=bash

# Where Debian keeps nft and others, for callers who were not logged in as root.
PATH="$PATH:/usr/sbin:/sbin"

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Runs a command as root.
as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "needs root for: $* (there is no sudo)"
    fi
}

# Installs Debian packages, each named with a program that comes with it: PACKAGE=PROGRAM…
need_packages() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair#*=}" >/dev/null || missing+=("${pair%%=*}")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || fail "needs ${missing[*]}: install what your system calls them"
    echo "installing ${missing[*]}"
    local log
    log="$(mktemp)"
    # shellcheck disable=SC2016 # expanded by the inner shell
    as_root env DEBIAN_FRONTEND=noninteractive sh -c '
        apt-get install -y -q --no-install-recommends "$@" ||
            { apt-get update -q && apt-get install -y -q --no-install-recommends "$@"; }' apt "${missing[@]}" >"$log" 2>&1 ||
        { cat "$log" >&2 && fail "can't install ${missing[*]}"; }
    rm -f "$log"
}

# Finds cargo where rustup puts it, too.
need_cargo() {
    command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null || fail "needs Rust 1.93 or later: install it with rustup, and run this again"
    need_packages build-essential=cc
}

# A member's config on stdout. INTERFACE, number in the mesh, and the rendezvous server's public key; peers are appended.
member_config() {
    cat <<EOF
[interface]
name = "$1"
address = ["10.77.0.$2/24", "fd77::$2/64"]
private_key_file = "$1.key"

[discovery]
servers = ["198.51.100.7", "203.0.113.9"]

[[rendezvous]]
address = "192.0.2.10:4274"
public_key = "$3"
EOF
}

# A [[peer]] table: name, number in the mesh, public key.
peer_config() {
    cat <<EOF

[[peer]]
name = "$1"
public_key = "$3"
allowed_ips = ["10.77.0.$2/32", "fd77::$2/128"]
EOF
}

# Starts the three servers of a lab: lab, directory for keys and logs, the binary. Prints the rendezvous server's public key.
start_servers() {
    local lab="$1" dir="$2" binary="$3" host tries
    (umask 077 && "$binary" genkey >"$dir/server.key")
    echo '[discovery]
listen = ["198.51.100.7", "198.51.100.8"]' >"$dir/discovery1.toml"
    echo '[discovery]
listen = ["203.0.113.9", "203.0.113.10"]' >"$dir/discovery2.toml"
    echo '[rendezvous]
listen = ["192.0.2.10:4274"]
private_key_file = "server.key"' >"$dir/rendezvous.toml"
    for host in discovery1 discovery2 rendezvous; do
        "$ROOT/scripts/lab" exec "$lab" "$host" -- "$binary" serve "$dir/$host.toml" >"$dir/$host.log" 2>&1 &
    done
    for host in discovery1 discovery2 rendezvous; do
        for ((tries = 0; tries < 100; tries++)); do
            if "$ROOT/scripts/lab" exec "$lab" "$host" -- ss -Hlun | grep -qE ':427[34]'; then continue 2; fi
            sleep 0.03
        done
        fail "the server at $host does not start: $(cat "$dir/$host.log")"
    done
    "$binary" pubkey <"$dir/server.key"
}

# The median of numbers on stdin.
median() { sort -n | awk '{ all[NR] = $1 } END { if (NR) print NR % 2 ? all[(NR + 1) / 2] : (all[NR / 2] + all[NR / 2 + 1]) / 2 }'; }
