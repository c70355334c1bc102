# The tunnels of scripts/bench-tunnel: how each is installed, configured and started. Sourced, never run.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153 # what is in capitals is bench-tunnel's and the report's

# From where a peer's version is known, by its tunnel's name.
declare -A VERSIONS=()
WIREGUARD_GO=wireguard-go
# Whether wireguard-go has segmentation offload: since 2023.
MODERN=

# Installs those of TUNNELS that are wanted, by package name. One that can't be had is left out, and said so.
install_peers() {
    local tunnel kept=()
    for tunnel in "${TUNNELS[@]}"; do
        case "$tunnel" in
        gotatun) install_crate gotatun-cli gotatun ;;
        boringtun) install_crate boringtun-cli boringtun-cli ;;
        wireguard-go) install_wireguard_go ;;
        p2ptund-aes) knows_cipher "$BINARY" ;;
        *) true ;;
        esac || {
            echo "left out: $tunnel can't be had here" >&2
            continue
        }
        kept+=("$tunnel")
    done
    TUNNELS=("${kept[@]}")
    VERSIONS[p2ptund]="$("$BINARY" --version | awk '{ print $2 }') ($(git -C "$ROOT" describe --always --dirty 2>/dev/null || true))"
}

# Crate and program. Installed once, and kept with what else cargo built.
install_crate() {
    [[ -x "$TOOLS/bin/$2" ]] || cargo install "$1" --locked --quiet --root "$TOOLS" || return 1
    VERSIONS[${2%-cli}]="$("$TOOLS/bin/$2" --version | grep -oE '[0-9]+\.[0-9.]+' | head -n 1)"
}

# Debian's newest, unpacked privately, because that of Debian 12 has no segmentation offload; else Debian 12's.
install_wireguard_go() {
    local private="$TOOLS/wireguard-go"
    [[ -x "$private/usr/bin/wireguard-go" ]] || fetch_wireguard_go "$private" || true
    if "$private/usr/bin/wireguard-go" --version >/dev/null 2>&1; then
        WIREGUARD_GO="$private/usr/bin/wireguard-go" MODERN=yes
        VERSIONS[wireguard-go]="$(cat "$private/version")"
        return
    fi
    need_packages wireguard-go=wireguard-go
    VERSIONS[wireguard-go]="$(dpkg-query -W -f '${Version}' wireguard-go)"
    echo "Debian's newest wireguard-go can't be had here: × 10 is asked of this one" >&2
}

# By apt, from the mirror that the system has, with lists and cache of its own: the system's own packages stay as they are.
fetch_wireguard_go() {
    local dir="$1/apt" site options
    # shellcheck disable=SC2016 # apt expands it
    site="$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Label: Debian' 2>/dev/null | head -n 1)"
    [[ -n "$site" ]] || return 1
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site sid main" >"$dir/sid.list"
    options=(-q -o "Dir::Etc::SourceList=$dir/sid.list" -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root
        -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache")
    (cd "$dir" && apt-get "${options[@]}" update && apt-get "${options[@]}" download wireguard-go) >"$dir/log" 2>&1 || return 1
    dpkg-deb -x "$dir"/wireguard-go_*.deb "$1" && dpkg-deb -f "$dir"/wireguard-go_*.deb Version >"$1/version" && rm -rf "$dir"
}

# Keys and configs of both sides, for every tunnel.
make_configs() {
    local side cipher
    for side in a b; do (umask 077 && "$BINARY" genkey >"$DIR/$side.key"); done
    wg_config a 1 b 2 >"$DIR/a.wg"
    wg_config b 2 a 1 >"$DIR/b.wg"
    for cipher in none auto chacha20poly1305; do
        p2ptund_config a 1 b 2 "$cipher" >"$DIR/a.$cipher"
        p2ptund_config b 2 a 1 "$cipher" >"$DIR/b.$cipher"
    done
}

# SIDE, its number, the other side and its number, and the cipher; none: without that key, for a build that has no choice.
p2ptund_config() {
    cat <<END
[interface]
name = "bench$$$1"
address = ["10.77.0.$2/24"]
private_key_file = "$1.key"
listen_port = 51820
mtu = 1420
END
    if [[ "$5" != none ]]; then echo "cipher = \"$5\""; fi
    cat <<END

[discovery]
servers = ["192.0.2.101", "192.0.2.102"]
port_mapping = []

[[peer]]
name = "$3"
public_key = "$("$BINARY" pubkey <"$DIR/$3.key")"
allowed_ips = ["10.77.0.$4/32"]
endpoint = "192.0.2.$4:51820"
END
}

wg_config() {
    cat <<END
[Interface]
PrivateKey = $(cat "$DIR/$1.key")
ListenPort = 51820
[Peer]
PublicKey = $("$BINARY" pubkey <"$DIR/$3.key")
AllowedIPs = 10.77.0.$4/32
Endpoint = 192.0.2.$4:51820
END
}

knows_cipher() { "$1" check "$DIR/a.auto" >/dev/null 2>&1; }
agreed_on_aes() { "$BINARY" status --json -i "bench$$a" | grep -qE '"cipher": *"aes256gcm"'; }

# Puts into COMMAND what starts a tunnel's side.
tunnel_command() {
    local interface="bench$$$2"
    case "$1" in
    p2ptund) p2ptund_command "$BINARY" "$2" chacha20poly1305 ;;
    p2ptund-aes) p2ptund_command "$BINARY" "$2" auto ;;
    before) p2ptund_command "$BEFORE" "$2" chacha20poly1305 ;;
    wireguard-go) COMMAND=("$WIREGUARD_GO" -f "$interface") ;;
    gotatun) COMMAND=("$TOOLS/bin/gotatun" --foreground --disable-drop-privileges --log "$DIR/$2.out" "$interface") ;;
    boringtun) COMMAND=("$TOOLS/bin/boringtun-cli" --foreground --disable-drop-privileges --log "$DIR/$2.out" "$interface") ;;
    esac
}

p2ptund_command() {
    local cipher="$3"
    if ! knows_cipher "$1"; then cipher=none; fi
    COMMAND=("$1" up "$DIR/$2.$cipher")
}
