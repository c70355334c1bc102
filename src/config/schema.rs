//! Every key that a config may hold, with the line to write where a user wrote something else.

/// One key of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub name: &'static str,
    /// A whole line that is right.
    pub example: &'static str,
}

/// One table and its keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// As messages call it.
    pub name: &'static str,
    pub keys: &'static [Key],
}

impl Shape {
    /// The line to write for `name`.
    pub fn example(&self, name: &str) -> &'static str {
        self.keys.iter().find(|key| key.name == name).map_or("", |key| key.example)
    }
}

const fn key(name: &'static str, example: &'static str) -> Key {
    Key { name, example }
}

pub(super) const MEMBER: Shape = Shape {
    name: "a member's config",
    keys: &[
        key("interface", "[interface]"),
        key("discovery", "[discovery]"),
        key("rendezvous", "[[rendezvous]]"),
        key("peer", "[[peer]]"),
        key("punch", "[punch]"),
        key("serve", "[serve.discovery]"),
    ],
};

pub(super) const INTERFACE: Shape = Shape {
    name: "[interface]",
    keys: &[
        key("name", "name = \"p2p0\""),
        key("address", "address = [\"10.77.0.1/24\"]"),
        key("private_key_file", "private_key_file = \"private.key\""),
        key("private_key", "private_key = \"…\" (the 44 characters that `p2ptund genkey` prints)"),
        key("listen_port", "listen_port = 4275"),
        key("mtu", "mtu = 1420, or mtu = \"auto\""),
        key("cipher", "cipher = \"auto\""),
        key("introduce", "introduce = true"),
    ],
};

pub(super) const DISCOVERY: Shape = Shape {
    name: "[discovery]",
    keys: &[
        key("servers", "servers = [\"198.51.100.7\", \"203.0.113.9\"]"),
        key("port_mapping", "port_mapping = [\"upnp\", \"pcp\", \"nat-pmp\"]"),
    ],
};

pub(super) const RENDEZVOUS: Shape = Shape {
    name: "[[rendezvous]]",
    keys: &[
        key("address", "address = \"rv.example.net:4274\""),
        key("public_key", "public_key = \"…\" (the 44 characters that the server prints when it starts)"),
    ],
};

pub(super) const PEER: Shape = Shape {
    name: "[[peer]]",
    keys: &[
        key("name", "name = \"berlin\""),
        key("public_key", "public_key = \"…\" (the 44 characters that `p2ptund pubkey` prints on the peer)"),
        key("allowed_ips", "allowed_ips = [\"10.77.0.2/32\"]"),
        key("endpoint", "endpoint = \"berlin.example.net:4275\""),
        key("preshared_key_file", "preshared_key_file = \"berlin.psk\""),
        key("preshared_key", "preshared_key = \"…\" (the 44 characters that `p2ptund genpsk` prints)"),
        key("calls", "calls = \"both\""),
        key("connect", "connect = \"always\""),
    ],
};

pub(super) const PUNCH: Shape = Shape {
    name: "[punch]",
    keys: &[
        key("window", "window = [-16, 32]"),
        key("sockets", "sockets = 256"),
        key("probes", "probes = 2048"),
        key("entries", "entries = 1280"),
        key("rate", "rate = 1000"),
        key("hard_calls", "hard_calls = 1"),
        key("timeout", "timeout = \"10s\""),
    ],
};

pub(super) const SERVE: Shape =
    Shape { name: "[serve]", keys: &[key("discovery", "[serve.discovery]"), key("rendezvous", "[serve.rendezvous]")] };

pub(super) const SERVER: Shape =
    Shape { name: "a server's config", keys: &[key("discovery", "[discovery]"), key("rendezvous", "[rendezvous]")] };

pub(super) const LISTEN_DISCOVERY: Shape =
    Shape { name: "a server's [discovery]", keys: &[key("listen", "listen = [\"198.51.100.7\"]")] };

pub(super) const LISTEN_RENDEZVOUS: Shape = Shape {
    name: "a server's [rendezvous]",
    keys: &[
        key("listen", "listen = [\"198.51.100.7:4274\"]"),
        key("private_key_file", "private_key_file = \"server.key\""),
        key("private_key", "private_key = \"…\" (the 44 characters that `p2ptund genkey` prints)"),
        key("allow", "allow = [\"…\"] (the public keys of members)"),
    ],
};

/// Every table, to tell a user whose key stands in the wrong one.
const ALL: [Shape; 8] = [INTERFACE, DISCOVERY, RENDEZVOUS, PEER, PUNCH, LISTEN_DISCOVERY, LISTEN_RENDEZVOUS, MEMBER];

/// What to do about a key that `shape` does not have.
pub(super) fn remedy_for_unknown(shape: &Shape, name: &str) -> String {
    let near = |key: &&Key| distance(&name.to_lowercase().replace('-', "_"), key.name) <= 1 + key.name.len() / 4;
    let nearest = shape.keys.iter().filter(near).min_by_key(|key| distance(name, key.name));
    if let Some(key) = nearest {
        return format!("Did you mean `{}`? Write {}.", key.name, key.example);
    }
    if let Some(other) = ALL.iter().find(|other| other.keys.iter().any(|key| key.name == name)) {
        return format!("`{name}` belongs in {}.", other.name);
    }
    let known: Vec<_> = shape.keys.iter().map(|key| key.name).collect();
    format!("Remove it; {} knows {}.", shape.name, known.join(", "))
}

/// The one of `words` that a user most likely meant, if any is near.
pub(super) fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    let text = text.to_lowercase();
    let best = words.iter().min_by_key(|word| distance(&text, word))?;
    (distance(&text, best) <= 1 + best.len() / 4).then_some(*best)
}

/// How many letters must be added, removed or replaced to make `b` of `a` (Levenshtein); a long `a` is simply far away.
fn distance(a: &str, b: &str) -> usize {
    const LONG: usize = 40;
    if a.len() > LONG {
        return LONG;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (slot, y) in row.iter_mut().skip(1).zip(&b) {
            let above = *slot;
            *slot = (diagonal + usize::from(x != *y)).min(above + 1).min(left + 1);
            diagonal = above;
            left = *slot;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(LONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_levenshtein() {
        for (a, b, expected) in [("", "", 0), ("adress", "address", 1), ("kitten", "sitting", 3), ("", "abc", 3)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
        assert_eq!(distance(&"x".repeat(10_000), "name"), 40);
    }

    #[test]
    fn a_misspelt_key_a_misplaced_key_and_a_strange_key_get_different_remedies() {
        assert!(remedy_for_unknown(&INTERFACE, "adress").starts_with("Did you mean `address`?"));
        assert!(remedy_for_unknown(&INTERFACE, "Listen-Port").starts_with("Did you mean `listen_port`?"));
        assert!(remedy_for_unknown(&MEMBER, "peers").contains("[[peer]]"));
        assert_eq!(remedy_for_unknown(&INTERFACE, "servers"), "`servers` belongs in [discovery].");
        assert!(
            remedy_for_unknown(&PUNCH, "colour")
                .contains("window, sockets, probes, entries, rate, hard_calls, timeout")
        );
    }
}
