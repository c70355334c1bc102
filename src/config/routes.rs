//! Whether any destination belongs to two peers.
//!
//! In WireGuard the same prefix at a second peer silently moves there. A longer prefix inside a shorter one works, by the
//! longest match, but is seldom meant between two peers and shows only as packets that go astray; so it is a fault as well.
//! A default route is not: whatever no other peer has goes there, which is what it says.

use ipnet::IpNet;

/// A prefix, by the number of its peer and its place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub net: IpNet,
    pub peer: usize,
    pub at: usize,
}

/// Each claim that overlaps one of another peer's (the claim that stands later in the file first), at most one pair for each
/// prefix. In O(n log n): sorted, a prefix's enclosing ones come before it.
pub(super) fn overlaps(claims: &[Claim]) -> Vec<(Claim, Claim)> {
    let mut sorted: Vec<_> = claims.to_vec();
    sorted.sort_by_key(|claim| (claim.net.addr(), claim.net.prefix_len(), claim.at));
    let mut enclosing: Vec<Claim> = Vec::new();
    let mut found = Vec::new();
    for claim in sorted {
        while enclosing.last().is_some_and(|outer| !outer.net.contains(&claim.net)) {
            enclosing.pop();
        }
        let clash = |outer: &&Claim| outer.peer != claim.peer && (outer.net == claim.net || outer.net.prefix_len() > 0);
        if let Some(outer) = enclosing.iter().rev().find(clash) {
            found.push(if outer.at > claim.at { (*outer, claim) } else { (claim, *outer) });
        }
        enclosing.push(claim);
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims(list: &[(&str, usize)]) -> Vec<Claim> {
        let claim =
            |(at, (net, peer)): (usize, &(&str, usize))| Claim { net: net.parse().expect("a prefix"), peer: *peer, at };
        list.iter().enumerate().map(claim).collect()
    }

    #[test]
    fn the_same_prefix_and_a_nested_one_clash_between_peers_and_not_within_one() {
        assert_eq!(overlaps(&claims(&[("10.0.0.0/24", 0), ("10.0.0.0/24", 1)])).len(), 1);
        assert_eq!(overlaps(&claims(&[("10.0.0.0/8", 0), ("10.0.0.0/24", 0), ("10.0.0.7/32", 1)])).len(), 1);
        assert_eq!(overlaps(&claims(&[("10.0.0.0/8", 0), ("10.0.0.0/24", 0), ("fd00::/8", 1)])).len(), 0);
    }

    #[test]
    fn a_default_route_overlaps_nothing_but_another_default_route() {
        assert_eq!(overlaps(&claims(&[("0.0.0.0/0", 0), ("10.0.0.0/24", 1), ("::/0", 1)])).len(), 0);
        assert_eq!(overlaps(&claims(&[("0.0.0.0/0", 0), ("0.0.0.0/0", 1)])).len(), 1);
    }

    proptest! {
        #[test]
        fn a_prefix_is_told_exactly_if_a_comparison_of_all_pairs_finds_it(
            list in prop::collection::vec((0u32..64, 26u8..=32, 0usize..3), 0..20)
        ) {
            let claims: Vec<_> = list.iter().enumerate().map(|(at, (low, len, peer))| {
                let address = std::net::Ipv4Addr::from(0x0a00_0000 | low);
                let net = IpNet::new(address.into(), *len).expect("a length").trunc();
                Claim { net, peer: *peer, at }
            }).collect();
            let naive = claims.iter().any(|a| claims.iter().any(|b| {
                a.peer != b.peer && (a.net.contains(&b.net) || b.net.contains(&a.net))
            }));
            let found = overlaps(&claims);
            prop_assert_eq!(!found.is_empty(), naive);
            for (later, earlier) in found {
                prop_assert!(later.at > earlier.at && later.peer != earlier.peer);
            }
        }
    }
}
