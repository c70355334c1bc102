# The report of scripts/bench-tunnel, in Markdown: what each tunnel did, and p2ptund against its targets. Sourced, never run.
# shellcheck shell=bash
# shellcheck disable=SC2153,SC2154 # what is in capitals is bench-tunnel's

report() {
    touch "$DIR/samples" "$DIR/dropped"
    # Of each figure and tunnel, the median and how many samples it is of.
    sort -k 1,2 "$DIR/samples" | awk '{ print $1, $2 }' | uniq -c | while read -r count figure tunnel; do
        echo "$figure $tunnel $(awk -v figure="$figure" -v tunnel="$tunnel" '$1 == figure && $2 == tunnel { print $4 }' "$DIR/samples" | median) $count"
    done >"$DIR/medians"
    echo
    header
    echo
    figures_table
    echo
    targets_table
    [[ -z "$JSON" ]] || write_json >"$JSON"
}

machine() { awk -F ': *' '/^model name/ { name = $2; count++ } END { printf "%s, %d processors", name, count }' /proc/cpuinfo; }

versions() {
    local tunnel
    echo "p2ptund ${VERSIONS[p2ptund]}"
    for tunnel in "${TUNNELS[@]}"; do
        if [[ "$tunnel" != p2ptund && -n "${VERSIONS[$tunnel]:-}" ]]; then echo "$tunnel ${VERSIONS[$tunnel]}"; fi
    done
}

header() {
    echo "$(date -u +%F), $(machine), Linux $(uname -r); $(versions | paste -s -d , | sed 's/,/, /g')."
    echo "$ROUNDS rounds of $SECONDS_EACH s, in turns; medians. $(wc -l <"$DIR/dropped") samples were dropped (more than 5 % steal," \
        "or the tunnel failed). Load of the machine before: $LOAD_BEFORE. The run took $((SECONDS / 60)) min $((SECONDS % 60)) s."
}

figures_table() {
    awk -v tunnels="${TUNNELS[*]}" '
        { middle[$1, $2] = $3; seen[$1] = 1 }
        function row(name, label, form, tunnel, i, line) {
            if (!seen[name]) return
            line = "| " label " |"
            for (i = 1; i <= count; i++) {
                tunnel = list[i]
                line = line " " ((name, tunnel) in middle ? sprintf(form, middle[name, tunnel]) : "–") " |"
            }
            print line
        }
        function times(name, ours, label, i, line) {
            if (!((name, ours) in middle)) return
            line = "| " label " |"
            for (i = 1; i <= count; i++) {
                if (list[i] == ours || !((name, list[i]) in middle) || middle[name, list[i]] == 0) line = line " |"
                else line = line sprintf(" %.2f × |", middle[name, ours] / middle[name, list[i]])
            }
            print line
        }
        END {
            count = split(tunnels, list, " ")
            line = "| figure |"; rule = "| --- |"
            for (i = 1; i <= count; i++) { line = line " " list[i] " |"; rule = rule " --- |" }
            print line; print rule
            row("tcp", "TCP, one stream, Gbit/s", "%.2f")
            times("tcp", "p2ptund", "  p2ptund is")
            times("tcp", "p2ptund-aes", "  p2ptund-aes is")
            row("again", "  retransmits a second", "%.0f")
            row("cpu", "daemon CPU s/GB, both ends", "%.2f")
            row("both", "TCP, four streams, both ways at once, Gbit/s", "%.2f")
            row("flood", "64-byte UDP flood, delivered, kpps", "%.0f")
            times("flood", "p2ptund", "  p2ptund is")
            row("idle50", "idle ping, p50, µs", "%.0f")
            row("idle99", "idle ping, p99, µs", "%.0f")
            row("filled", "ping p50 while TCP fills it, ms", "%.2f")
            row("lost", "UDP, 1,400 bytes at 1 Gbit/s, lost, %", "%.3f")
            row("loaded", "memory under load, MB", "%.1f")
            row("ten", "memory idle, 10 peers, MB", "%.1f")
            row("thousand", "memory idle, 1,000 configured peers, MB", "%.1f")
        }' "$DIR/medians"
}

# The targets are the project's own: at least, and aimed at. A wireguard-go without segmentation offload is to be beaten by 10.
targets_table() {
    local least=2.2
    [[ -n "$MODERN" ]] || least=10
    awk -v least="$least" '
        { middle[$1, $2] = $3 }
        function value(name, tunnel) { return (name, tunnel) in middle ? middle[name, tunnel] : "" }
        function over(a, b) { return a == "" || b == "" || b == 0 ? "" : a / b }
        function less(a, b) { return a == "" || b == "" ? "" : a - b }
        # up: more is better.
        function target(label, is, form, up, least, aim, verdict) {
            if (is == "") { printf "| %s | – | %s | %s | |\n", label, least, aim; return }
            verdict = "missed"
            if (least != "" && (up ? is >= least : is <= least)) verdict = "met"
            if (aim != "" && (up ? is >= aim : is <= aim)) verdict = "aim met"
            printf "| %s | " form " | %s | %s | %s |\n", label, is, least, aim, verdict
        }
        END {
            print "| target | measured | at least | aim | |"; print "| --- | --- | --- | --- | --- |"
            ours = value("tcp", "p2ptund"); aes = value("tcp", "p2ptund-aes")
            target("TCP, ChaCha20-Poly1305, against wireguard-go", over(ours, value("tcp", "wireguard-go")), "%.2f ×", 1, least, 3)
            target("against gotatun", over(ours, value("tcp", "gotatun")), "%.2f ×", 1, 4.5, 6.5)
            target("against boringtun", over(ours, value("tcp", "boringtun")), "%.2f ×", 1, 6, 10)
            target("against raw veth", over(ours, value("tcp", "raw")), "%.3f", 1, 0.19, 0.28)
            target("CPU s/GB, both ends, at most", value("cpu", "p2ptund"), "%.2f", 0, 3.8, 2.6)
            target("TCP, AES-256-GCM, against wireguard-go", over(aes, value("tcp", "wireguard-go")), "%.2f ×", 1, 3.5, 4.2)
            target("against raw veth", over(aes, value("tcp", "raw")), "%.3f", 1, 0.32, 0.38)
            target("CPU s/GB, both ends, at most", value("cpu", "p2ptund-aes"), "%.2f", 0, 2.2, 1.8)
            target("four streams both ways, against one stream", over(value("both", "p2ptund"), ours), "%.2f ×", 1, 1, "")
            target("64-byte flood, kpps", value("flood", "p2ptund"), "%.0f", 1, 250, 350)
            target("against wireguard-go", over(value("flood", "p2ptund"), value("flood", "wireguard-go")), "%.1f ×", 1, 4, "")
            target("idle ping added to raw veth, p50 µs, at most", less(value("idle50", "p2ptund"), value("idle50", "raw")), "%.0f", 0, 130, 100)
            target("p99 µs, at most", less(value("idle99", "p2ptund"), value("idle99", "raw")), "%.0f", 0, 300, "")
            target("ping p50 while TCP fills it, ms, at most", value("filled", "p2ptund"), "%.2f", 0, 2.5, 1)
            target("1 Gbit/s of UDP, lost %, at most", value("lost", "p2ptund"), "%.3f", 0, 0.1, 0)
            target("memory idle with 10 peers, MB, at most", value("ten", "p2ptund"), "%.1f", 0, 12, "")
            target("under load", value("loaded", "p2ptund"), "%.1f", 0, 20, "")
            target("with 1,000 configured peers", value("thousand", "p2ptund"), "%.1f", 0, 40, "")
        }' "$DIR/medians"
}

write_json() {
    printf '{"date": "%s", "machine": "%s", "kernel": "%s", "versions": [' "$(date -u +%FT%TZ)" "$(machine)" "$(uname -r)"
    versions | awk '{ printf "%s\"%s\"", before, $0; before = ", " }'
    printf '], "samples": ['
    awk '{ printf "%s\n  {\"figure\": \"%s\", \"tunnel\": \"%s\", \"round\": %d, \"value\": %s}", before, $1, $2, $3, $4; before = "," }' \
        "$DIR/samples"
    printf '\n]}\n'
}
