//! The rules that send all but our own datagrams into the device's own table; see [`super`] for what they look like.
//!
//! Rules are the one thing that outlives the device. Table and priorities follow from the device's name, so that whoever comes
//! next for that name finds what the last one left.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::{LinkError, MAIN, PROTOCOL, named, netlink};
use crate::io::udp::MARK;

/// Rules' priorities: two for each of 4,096 names, below main's 32766 and away from what `wg-quick` (just below that) and
/// other tunnels (52xx) take.
const PRIORITIES: u32 = 20_000;
/// Tables: likewise; "p2" in the upper half keeps clear of small numbers that people write by hand.
const TABLES: u32 = 0x7032_0000;
const SLOTS: u32 = 4096;

/// Makes the rules of `name` be there for exactly these families; gives how many were added or removed.
pub(super) async fn set(handle: &Handle, name: &str, families: &[IpVersion]) -> Result<usize, LinkError> {
    let mut changes = 0;
    for version in [IpVersion::V4, IpVersion::V6] {
        let wanted = if families.contains(&version) { rules_for(name, &version) } else { Vec::new() };
        let there = match own_rules(handle, name, version).await {
            Ok(there) => there,
            // No IPv6 in this kernel.
            Err(_) if wanted.is_empty() => continue,
            Err(error) => return Err(error),
        };
        for rule in &there {
            if !wanted.iter().any(|wanted| same_rule(wanted, rule)) {
                named("removing a rule", handle.rule().del(rule.clone()).execute().await)?;
                changes += 1;
            }
        }
        for rule in wanted {
            if !there.iter().any(|there| same_rule(&rule, there)) {
                let mut request = handle.rule().add();
                *request.message_mut() = rule;
                named("adding a rule for the default route", request.execute().await)?;
                changes += 1;
            }
        }
    }
    Ok(changes)
}

/// The same number for the same name, always: FNV-1a, 32 bits, folded. Two meshes on one machine that both carry a default
/// route make no sense, so a collision (1 in 4,096) costs nothing.
fn slot_of(name: &str) -> u32 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 16)) % SLOTS
}

pub(super) fn table_of(name: &str) -> u32 {
    TABLES + slot_of(name)
}

fn rules_for(name: &str, version: &IpVersion) -> Vec<RuleMessage> {
    let priority = PRIORITIES + 2 * slot_of(name);
    let family = match version {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    };
    let rule = |priority: u32, table: u32, more: Vec<RuleAttribute>| {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::Priority(priority),
            RuleAttribute::Table(table),
            RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
        ];
        rule.attributes.extend(more);
        rule
    };
    let main = rule(priority, MAIN, vec![RuleAttribute::SuppressPrefixLen(0)]);
    let mut ours = rule(priority + 1, table_of(name), vec![RuleAttribute::FwMark(MARK)]);
    ours.header.flags = RuleFlags::Invert;
    vec![main, ours]
}

async fn own_rules(handle: &Handle, name: &str, version: IpVersion) -> Result<Vec<RuleMessage>, LinkError> {
    let first = PRIORITIES + 2 * slot_of(name);
    let mut rules = handle.rule().get(version).execute();
    let mut own = Vec::new();
    while let Some(rule) = rules.try_next().await.map_err(netlink)? {
        let ours = rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
        if ours && priority(&rule).is_some_and(|priority| priority == first || priority == first + 1) {
            own.push(rule);
        }
    }
    Ok(own)
}

fn priority(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })
}

/// The kernel adds attributes of its own, so only what we set is compared.
fn same_rule(wanted: &RuleMessage, there: &RuleMessage) -> bool {
    wanted.header.flags.contains(RuleFlags::Invert) == there.header.flags.contains(RuleFlags::Invert)
        && wanted.attributes.iter().all(|attribute| there.attributes.contains(attribute))
}

/// Strict reverse path filtering drops what comes back to marked datagrams; only the machine's owner can decide on that.
pub(super) fn warn_of_strict_rp_filter() {
    let strict =
        std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").is_ok_and(|value| value.trim() == "1");
    if strict {
        tracing::warn!(
            "rp_filter is strict (1): with a default route through the tunnel the kernel drops our peers' datagrams; set net.ipv4.conf.all.rp_filter=2"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_always_has_the_same_table_and_priorities() {
        assert_eq!(slot_of("p2p0"), slot_of("p2p0"));
        assert_ne!(slot_of("p2p0"), slot_of("p2p1"));
        for name in ["p2p0", "berlin", "a"] {
            let rules = rules_for(name, &IpVersion::V4);
            let priorities: Vec<u32> = rules.iter().filter_map(priority).collect();
            assert_eq!(priorities[0] + 1, priorities[1]);
            assert!(priorities[1] < 32_766);
        }
    }
}
