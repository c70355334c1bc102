//! Which peer a virtual address belongs to: the longest prefix that holds it. The same table says where a packet goes (by its
//! destination) and whether it may come from a peer (by its source).
//!
//! Prefixes change when a config does, addresses are looked up for every packet. So the prefixes are flattened into ranges that
//! do not overlap, sorted by where they start, and a lookup is one binary search through an array: with 10,000 prefixes 14
//! steps, no pointers followed. Of an IPv6 start the search sees the upper half only, in which networks differ: that makes it
//! twice as fast (`benches/routes.rs`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// An address as a number.
trait Bits: Copy + Ord {
    /// What fits a register of it.
    type Upper: Copy + Ord;

    fn successor(self) -> Option<Self>;
    fn upper(self) -> Self::Upper;
}

impl Bits for u32 {
    type Upper = u32;

    fn successor(self) -> Option<u32> {
        self.checked_add(1)
    }

    fn upper(self) -> u32 {
        self
    }
}

impl Bits for u128 {
    type Upper = u64;

    fn successor(self) -> Option<u128> {
        self.checked_add(1)
    }

    fn upper(self) -> u64 {
        (self >> 64) as u64
    }
}

/// Longest-prefix match over both families; `Id` says whose a prefix is.
#[derive(Clone, Debug)]
pub struct AllowedIps<Id> {
    prefixes: BTreeMap<IpNet, Id>,
    v4: Ranges<u32, Id>,
    v6: Ranges<u128, Id>,
}

impl<Id: Copy + Eq> Default for AllowedIps<Id> {
    fn default() -> Self {
        Self { prefixes: BTreeMap::new(), v4: Ranges::default(), v6: Ranges::default() }
    }
}

impl<Id: Copy + Eq> AllowedIps<Id> {
    /// Gives `prefix` to `id`; who had it before. Many are added faster by [`Extend`], which flattens once.
    pub fn insert(&mut self, prefix: IpNet, id: Id) -> Option<Id> {
        let before = self.prefixes.insert(prefix.trunc(), id);
        self.flatten();
        before
    }

    /// Takes away every prefix of `id`.
    pub fn remove(&mut self, id: Id) {
        self.prefixes.retain(|_, owner| *owner != id);
        self.flatten();
    }

    /// Whose `address` is.
    pub fn lookup(&self, address: IpAddr) -> Option<Id> {
        match address {
            IpAddr::V4(address) => self.v4.lookup(address.to_bits()),
            IpAddr::V6(address) => self.v6.lookup(address.to_bits()),
        }
    }

    /// Every prefix with its owner, in order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Id)> + '_ {
        self.prefixes.iter().map(|(prefix, id)| (*prefix, *id))
    }

    fn flatten(&mut self) {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (prefix, id) in &self.prefixes {
            match prefix {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits(), *id)),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits(), *id)),
            }
        }
        self.v4 = Ranges::flatten(v4);
        self.v6 = Ranges::flatten(v6);
    }
}

impl<Id: Copy + Eq> Extend<(IpNet, Id)> for AllowedIps<Id> {
    fn extend<T: IntoIterator<Item = (IpNet, Id)>>(&mut self, prefixes: T) {
        self.prefixes.extend(prefixes.into_iter().map(|(prefix, id)| (prefix.trunc(), id)));
        self.flatten();
    }
}

/// `owners[i]` holds from `starts[i]` until the next start, and `uppers[i]` is that start's. Apart, so that a search touches what
/// it compares only.
#[derive(Clone, Debug)]
struct Ranges<A: Bits, Id> {
    uppers: Vec<A::Upper>,
    starts: Vec<A>,
    owners: Vec<Option<Id>>,
}

impl<A: Bits, Id> Default for Ranges<A, Id> {
    fn default() -> Self {
        Self { uppers: Vec::new(), starts: Vec::new(), owners: Vec::new() }
    }
}

impl<A: Bits, Id: Copy + Eq> Ranges<A, Id> {
    /// From prefixes as first address, last address, owner. Two of them are apart, or one holds the other.
    fn flatten(mut prefixes: Vec<(A, A, Id)>) -> Self {
        prefixes.sort_by(|(first, last, _), (other_first, other_last, _)| {
            first.cmp(other_first).then(other_last.cmp(last))
        });
        let mut ranges = Self::default();
        // The prefixes around the place that we are at, the longest on top.
        let mut around: Vec<(A, Id)> = Vec::new();
        for (first, last, id) in prefixes {
            ranges.leave(&mut around, Some(first));
            ranges.push(first, Some(id));
            around.push((last, id));
        }
        ranges.leave(&mut around, None);
        ranges.uppers = ranges.starts.iter().map(|start| start.upper()).collect();
        ranges
    }

    /// Closes those that end before `place` (`None`: all).
    fn leave(&mut self, around: &mut Vec<(A, Id)>, place: Option<A>) {
        while let Some((last, _)) = around.pop_if(|(last, _)| place.is_none_or(|place| *last < place)) {
            if let Some(after) = last.successor() {
                self.push(after, around.last().map(|(_, id)| *id));
            }
        }
    }

    fn push(&mut self, start: A, owner: Option<Id>) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.owners.pop();
        }
        if self.owners.last().copied().flatten() != owner {
            self.starts.push(start);
            self.owners.push(owner);
        }
    }

    fn lookup(&self, address: A) -> Option<Id> {
        let upper = address.upper();
        let mut last = self.uppers.partition_point(|other| *other <= upper).checked_sub(1)?;
        if self.starts[last] > address {
            // It begins behind the address, in the same network; so may some before it.
            last = self.starts[..last].partition_point(|start| *start <= address).checked_sub(1)?;
        }
        self.owners[last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("parses")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("parses")
    }

    #[test]
    fn the_longest_prefix_wins_in_either_order() {
        let mut table = AllowedIps::default();
        table.extend([(net("10.0.0.0/8"), 1), (net("10.1.0.0/16"), 2), (net("10.1.2.3/32"), 3), (net("0.0.0.0/0"), 4)]);
        table.extend([(net("fd77::/64"), 5), (net("::/0"), 6)]);
        assert_eq!(table.lookup(ip("10.255.255.255")), Some(1));
        assert_eq!(table.lookup(ip("10.1.2.2")), Some(2));
        assert_eq!(table.lookup(ip("10.1.2.3")), Some(3));
        assert_eq!(table.lookup(ip("10.1.2.4")), Some(2));
        assert_eq!(table.lookup(ip("11.0.0.0")), Some(4));
        assert_eq!(table.lookup(ip("255.255.255.255")), Some(4));
        assert_eq!(table.lookup(ip("fd77::1")), Some(5));
        assert_eq!(table.lookup(ip("fd78::1")), Some(6));
    }

    #[test]
    fn a_prefix_moves_to_whom_it_was_given_last_and_goes_with_its_owner() {
        let mut table = AllowedIps::default();
        assert_eq!(table.insert(net("10.0.0.9/8"), 1), None);
        assert_eq!(table.insert(net("10.0.0.0/8"), 2), Some(1));
        assert_eq!(table.lookup(ip("10.0.0.1")), Some(2));
        table.remove(2);
        assert_eq!(table.lookup(ip("10.0.0.1")), None);
        assert_eq!(table.iter().count(), 0);
    }

    fn naive(prefixes: &[(IpNet, u16)], address: IpAddr) -> Option<u16> {
        let mut best: Option<(u8, u16)> = None;
        for (prefix, id) in prefixes {
            // `>=`: given twice, the later owner has it.
            if prefix.contains(&address) && best.is_none_or(|(len, _)| prefix.prefix_len() >= len) {
                best = Some((prefix.prefix_len(), *id));
            }
        }
        best.map(|(_, id)| id)
    }

    prop_compose! {
        /// Few distinct bits, so that prefixes nest and touch.
        fn address()(high in 0u8..4, low in 0u8..8, v6 in any::<bool>(), fill in prop_oneof![Just(0u8), Just(255)]) -> IpAddr {
            if v6 {
                let mut bytes = [fill; 16];
                (bytes[0], bytes[15]) = (high << 6, low | fill & 0xf8);
                bytes.into()
            } else {
                [high << 6, fill, fill, low | fill & 0xf8].into()
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_list(
            prefixes in prop::collection::vec((address(), 0u8..=128, 0u16..6), 0..40),
            removed in prop::option::of(0u16..6),
            addresses in prop::collection::vec(address(), 1..40),
        ) {
            let mut prefixes: Vec<(IpNet, u16)> = prefixes.into_iter().map(|(address, len, id)| {
                let len = if address.is_ipv4() { len % 33 } else { len };
                (IpNet::new(address, len).expect("in range").trunc(), id)
            }).collect();
            let mut table = AllowedIps::default();
            table.extend(prefixes.iter().copied());
            if let Some(removed) = removed {
                // What was given twice belongs to the later owner alone.
                let owners: BTreeMap<IpNet, u16> = prefixes.iter().copied().collect();
                prefixes = owners.into_iter().filter(|(_, id)| *id != removed).collect();
                table.remove(removed);
            }
            for address in addresses {
                prop_assert_eq!(table.lookup(address), naive(&prefixes, address), "{}", address);
            }
        }
    }
}
