# The figures of scripts/bench-tunnel: what each loads a tunnel with, and what it counts meanwhile. Sourced, never run.
# shellcheck shell=bash
# shellcheck disable=SC2153,SC2154 # what is in capitals is bench-tunnel's
#
# Each prints lines of a name and a number:
#   tcp     tcp Gbit/s, again (retransmitted segments a second), cpu (seconds of both daemons a gigabyte), filled (ms, the
#           median of pings meanwhile): one stream
#   both    both Gbit/s: four streams each way at once, their sum
#   flood   flood, thousands a second that arrive of datagrams with 64 bytes of payload, sent as fast as they go
#   idle    idle50, idle99: µs of a ping when nothing else is under way
#   udp     lost, percent of 1,400-byte packets at 1 Gbit/s for ten seconds
#   memory  loaded, most MB that a daemon had resident in all of this

# Runs a figure for a tunnel and keeps what it prints, unless too much time was stolen meanwhile.
sample() {
    local figure="$1" tunnel="$2" round="$3" all stolen all_after stolen_after
    read -r all stolen < <(ticks)
    ADDRESS=10.77.0.2
    if [[ "$tunnel" == raw ]]; then ADDRESS=192.0.2.2; fi
    if ! "figure_$figure" >"$DIR/now"; then
        drop "$round" "$tunnel" "$figure" "it did not end well"
        return
    fi
    read -r all_after stolen_after < <(ticks)
    if (((stolen_after - stolen) * 20 > all_after - all)); then
        drop "$round" "$tunnel" "$figure" "$(((stolen_after - stolen) * 100 / (all_after - all))) % of the time was stolen"
        return
    fi
    [[ -s "$DIR/now" ]] || return 0
    awk -v rest="$tunnel $round" 'NF == 2 { print $1, rest, $2 }' "$DIR/now" >>"$DIR/samples"
    echo "round $round: $tunnel: $(awk '{ printf "%s%s %s", before, $1, $2; before = ", " }' "$DIR/now")" >&2
}
drop() { echo "round $1: $2: $3 dropped: $4" | tee -a "$DIR/dropped" >&2; }

# All processor time and the stolen part of it, in ticks.
ticks() { awk '/^cpu / { all = 0; for (i = 2; i <= 9; i++) all += $i; print all, $9 }' /proc/stat; }

# What both daemons used of the processors, all threads, in seconds.
cpu_seconds() {
    local pid
    for pid in "${DAEMONS[@]}"; do cat "/proc/$pid/stat"; done |
        awk -v hertz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); sum += $12 + $13 } END { print sum / hertz }'
}

# A stream of iperf3 with these options for so long. Its report is in iperf.
tcp() {
    ip netns exec "$B" iperf3 -s -1 >/dev/null &
    STARTED+=($!)
    until_ok listening || return 1
    timeout --kill-after 2 $((SECONDS_EACH + PATIENCE)) \
        ip netns exec "$A" iperf3 -c "$ADDRESS" -t "$SECONDS_EACH" -J "$@" >"$DIR/iperf"
}
listening() { in_b ss -Hltn | grep -q :5201; }

# A number of iperf's report: which sum (its name's beginning) and which value; both ways are added up.
iperf_sum() {
    awk -v part="$1" -v value="$2" '{ gsub(/[",:{]/, " ") }
        /^[ \t]*(sum|cpu)_/ { here = index($1, part) == 1 }
        here && $1 == value { sum += $2 }
        END { printf "%.0f\n", sum }' "$DIR/iperf"
}

# The load of a program of ours: it ends by itself.
load() { timeout --kill-after 2 $((SECONDS_EACH + PATIENCE)) "$LOAD" "$@"; }

figure_tcp() {
    local before after pinging
    before="$(cpu_seconds)"
    # Twenty a second: enough for a median, and no load of its own.
    load ping "$A" "$ADDRESS" 20 "$SECONDS_EACH" >"$DIR/pings" &
    pinging=$!
    tcp || { wait "$pinging"; return 1; }
    after="$(cpu_seconds)"
    wait "$pinging"
    awk -v bits="$(iperf_sum sum_received bits_per_second)" -v bytes="$(iperf_sum sum_received bytes)" \
        -v again="$(iperf_sum sum_sent retransmits)" -v seconds="$SECONDS_EACH" -v cpu="$after" -v before="$before" '
        BEGIN {
            printf "tcp %.3f\nagain %.0f\n", bits / 1e9, again / seconds
            if (cpu > before) printf "cpu %.2f\n", (cpu - before) / (bytes / 1e9)
        }'
    awk '$2 > 0 { printf "filled %.2f\n", $3 / 1000 }' "$DIR/pings"
}

figure_both() {
    tcp --bidir -P 4 || return 1
    awk -v bits="$(iperf_sum sum_received bits_per_second)" 'BEGIN { printf "both %.3f\n", bits / 1e9 }'
}

figure_flood() { load udp "$A" "$B" "$ADDRESS" 64 0 "$SECONDS_EACH" | awk '{ printf "flood %.1f\n", $3 / 1000 }'; }

# 500 a second for two seconds: ten slower ones are what p99 says.
figure_idle() { load ping "$A" "$ADDRESS" 500 2 | awk '$2 > 0 { print "idle50", $3; print "idle99", $4 }'; }

# 28 of the 1,400 bytes are headers: so much payload would be two fragments at an MTU of 1420. 89,286 packets of them are
# a gigabit.
figure_udp() { load udp "$A" "$B" "$ADDRESS" 1372 89286 10 | awk '$1 > 0 { printf "lost %.4f\n", ($1 - $2) * 100 / $1 }'; }

figure_memory() {
    local pid
    for pid in "${DAEMONS[@]}"; do cat "/proc/$pid/status"; done |
        awk '/^VmHWM/ && $2 > most { most = $2 } END { if (most) printf "loaded %.1f\n", most / 1024 }'
}

# Idle members with ten peers and with a thousand, in a lab of their own; after the rounds, once.
idle_memory() {
    "$ROOT/scripts/bench-memory" 5 >"$DIR/memory" || { drop - p2ptund memory "the lab did not end well" && return; }
    awk '/^with 10 connected/ { print "ten p2ptund 0", $(NF - 1) } /^with 1000 configured/ { print "thousand p2ptund 0", $(NF - 1) }' \
        "$DIR/memory" >>"$DIR/samples"
}
