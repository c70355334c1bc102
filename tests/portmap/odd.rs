//! Routers that lie, are late, refuse, give another port, or forget in silence.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use p2ptund::io::portmap::{Options, PortMapper, Protocol};
use p2ptund::proto::node::MappedPort;
use p2ptund::proto::snapshot::PortMapping;

use super::fake::{Fake, Manner, Table, external};
use super::lab::{ALL, Lab, Router, next, options};

const IGD1: Option<&str> = Some("WANIPConnection:1");
const IGD2: Option<&str> = Some("WANIPConnection:2");

/// A router that speaks one protocol.
fn speaks(by: Protocol) -> Manner {
    Manner {
        natpmp: by == Protocol::NatPmp,
        pcp: by == Protocol::Pcp,
        upnp: IGD1.filter(|_| by == Protocol::Upnp),
        ..Manner::default()
    }
}

fn start(enabled: &[Protocol], router: &Router) -> PortMapper {
    PortMapper::start_with(options(enabled, 4275, &router.state(), 3600))
}

/// Waits until the router has what it is to have; routers here may be late.
async fn becomes(fake: &Fake, what: impl Fn(&Table) -> bool, within: u64) {
    let until = Instant::now() + Duration::from_secs(within);
    while !what(&fake.table()) {
        assert!(Instant::now() < until, "the router has {:?}; asked {:?}", fake.table(), fake.asked());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Nothing is told, and nothing stays mapped.
async fn maps_nothing(fake: &Fake, router: &Router, enabled: &[Protocol], case: &str) {
    let mut mapper = start(enabled, router);
    let until = Instant::now() + Duration::from_secs(5);
    while fake.asked().is_empty() {
        assert!(Instant::now() < until, "{case}: nothing is asked for");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told = tokio::time::timeout(Duration::from_millis(700), mapper.changed()).await;
    assert!(told.is_err(), "{case}: {told:?}");
    assert_eq!(fake.table(), Table::new(), "{case}: while it runs");
    mapper.stop().await;
    assert_eq!(fake.table(), Table::new(), "{case}: at the end");
}

#[test]
fn an_external_address_that_can_be_none_is_no_mapping() {
    Lab::enter("odd::an_external_address_that_can_be_none_is_no_mapping", async |mut router| {
        let fake = Fake::start(&mut router, Manner::default());
        for by in ALL {
            for lie in ["0.0.0.0", "127.0.0.1", "192.168.77.2", "192.168.77.1", "224.0.0.1", "255.255.255.255"] {
                fake.behave(|manner| *manner = Manner { external: lie.parse().expect("an address"), ..speaks(by) });
                maps_nothing(&fake, &router, &[by], &format!("{by:?} {lie}")).await;
            }
        }
    });
}

#[test]
fn a_carriers_address_is_told_as_it_is() {
    Lab::enter("odd::a_carriers_address_is_told_as_it_is", async |mut router| {
        let fake = Fake::start(&mut router, Manner::default());
        for by in ALL {
            for address in [Ipv4Addr::new(10, 9, 8, 7), Ipv4Addr::new(100, 64, 0, 9)] {
                fake.behave(|manner| *manner = Manner { external: address, ..speaks(by) });
                let mut mapper = start(&[by], &router);
                let told = next(&mut mapper, &router, 5).await.expect("mapped");
                assert_eq!(told.external, (address, 4275).into(), "{by:?}");
                mapper.stop().await;
            }
        }
    });
}

#[test]
fn port_0_is_no_mapping() {
    Lab::enter("odd::port_0_is_no_mapping", async |mut router| {
        let fake = Fake::start(&mut router, Manner::default());
        for by in [Protocol::Pcp, Protocol::NatPmp] {
            fake.behave(|manner| *manner = Manner { given: |_| 0, ..speaks(by) });
            maps_nothing(&fake, &router, &[by], &format!("{by:?}")).await;
        }
    });
}

#[test]
fn refusals_are_heard_and_a_willing_protocol_is_asked() {
    Lab::enter("odd::refusals_are_heard_and_a_willing_protocol_is_asked", async |mut router| {
        let fake = Fake::start(&mut router, Manner { result: 2, ..speaks(Protocol::Pcp) });
        maps_nothing(&fake, &router, &[Protocol::Pcp], "PCP").await;
        fake.behave(|manner| *manner = Manner { result: 2, ..speaks(Protocol::NatPmp) });
        maps_nothing(&fake, &router, &[Protocol::NatPmp], "NAT-PMP").await;
        fake.behave(|manner| *manner = Manner { error: |_, _| 606, ..speaks(Protocol::Upnp) });
        maps_nothing(&fake, &router, &[Protocol::Upnp], "UPnP").await;
        // Whoever is asked first, NAT-PMP maps.
        fake.behave(|manner| manner.natpmp = true);
        let began = Instant::now();
        let mut mapper = start(&ALL, &router);
        let told = next(&mut mapper, &router, 5).await;
        assert_eq!(told, Some(MappedPort { external: external(4275), by: PortMapping::NatPmp }));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        mapper.stop().await;
        assert_eq!(fake.table(), Table::new());
    });
}

#[test]
fn a_port_that_the_table_gives_to_another_is_not_ours() {
    Lab::enter("odd::a_port_that_the_table_gives_to_another_is_not_ours", async |mut router| {
        let owner = |port| (port == 4275).then_some(Ipv4Addr::new(192, 168, 77, 9));
        let fake = Fake::start(&mut router, Manner { owner, ..speaks(Protocol::Upnp) });
        let mut mapper = start(&[Protocol::Upnp], &router);
        let port = next(&mut mapper, &router, 5).await.expect("mapped").external.port();
        assert!(port != 4275 && port < 32768, "{port}");
        mapper.stop().await;
        assert_eq!(fake.table().into_keys().collect::<Vec<_>>(), [("upnp", 4275)], "the other's stays");
    });
}

#[test]
fn a_taken_port_gives_a_low_one() {
    Lab::enter("odd::a_taken_port_gives_a_low_one", async |mut router| {
        let taken = |port, _| if port == 4275 { 718 } else { 0 };
        let fake = Fake::start(&mut router, Manner { error: taken, ..speaks(Protocol::Upnp) });
        let given = |asked: u16| if asked == 4275 { 50_000 } else { asked };
        for by in ALL {
            fake.behave(|manner| *manner = Manner { error: taken, given, ..speaks(by) });
            let mut mapper = start(&[by], &router);
            let port = next(&mut mapper, &router, 5).await.expect("mapped").external.port();
            assert!(port != 4275 && (1024..32768).contains(&port), "{by:?}: {port}");
            assert_eq!(fake.table().len(), 1, "{by:?}: {:?}", fake.table());
            mapper.stop().await;
            assert_eq!(fake.table(), Table::new(), "{by:?}");
        }
        // Where nothing low is to be had, what there is will do.
        for by in [Protocol::Pcp, Protocol::NatPmp] {
            fake.behave(|manner| *manner = Manner { given: |_| 50_000, ..speaks(by) });
            let mut mapper = start(&[by], &router);
            assert_eq!(next(&mut mapper, &router, 5).await.expect("mapped").external.port(), 50_000, "{by:?}");
            mapper.stop().await;
            assert_eq!(fake.table(), Table::new(), "{by:?}");
        }
    });
}

#[test]
fn upnps_words_for_no_are_understood() {
    Lab::enter("odd::upnps_words_for_no_are_understood", async |mut router| {
        let fake = Fake::start(&mut router, Manner::default());
        // 725, and what other routers say that know no leases: the mapping is for ever, and removed all the same.
        for error in [
            |_, lease: u32| if lease == 0 { 0 } else { 725 },
            |_, lease: u32| if lease == 0 { 0 } else { 402 },
            |_, lease: u32| if lease == 0 { 0 } else { 501 },
        ] {
            fake.behave(|manner| *manner = Manner { error, ..speaks(Protocol::Upnp) });
            let mut mapper = start(&[Protocol::Upnp], &router);
            assert_eq!(next(&mut mapper, &router, 5).await.expect("mapped").external, external(4275));
            mapper.stop().await;
            assert_eq!(fake.table(), Table::new());
        }
        // 724 leaves only the equal port to ask for.
        fake.behave(|manner| manner.error = |port, _| if port == 4275 { 0 } else { 724 });
        let mut mapper = PortMapper::start_with(options(&[Protocol::Upnp], 4275, &router.state(), 3600));
        assert_eq!(next(&mut mapper, &router, 5).await.expect("mapped").external, external(4275));
        mapper.stop().await;
        // Every port that we name is taken: an IGD 2 picks one itself, an IGD 1 gives none.
        for (upnp, maps) in [(IGD2, true), (IGD1, false), (Some("WANPPPConnection:1"), false)] {
            fake.behave(|manner| *manner = Manner { error: |_, _| 718, upnp, ..Manner::default() });
            let mut mapper = start(&[Protocol::Upnp], &router);
            let told = tokio::time::timeout(Duration::from_secs(1), mapper.changed()).await.ok().flatten();
            assert_eq!(told.is_some(), maps, "{upnp:?}");
            mapper.stop().await;
            assert_eq!(fake.table(), Table::new(), "{upnp:?}");
        }
    });
}

#[test]
fn each_of_upnps_services_is_asked_by_its_own_name() {
    Lab::enter("odd::each_of_upnps_services_is_asked_by_its_own_name", async |mut router| {
        let fake = Fake::start(&mut router, Manner::default());
        for upnp in ["WANIPConnection:1", "WANIPConnection:2", "WANPPPConnection:1"] {
            fake.behave(|manner| *manner = Manner { upnp: Some(upnp), ..Manner::default() });
            let mut mapper = start(&[Protocol::Upnp], &router);
            assert_eq!(next(&mut mapper, &router, 5).await.expect("mapped").external, external(4275), "{upnp}");
            mapper.stop().await;
            assert_eq!(fake.table(), Table::new(), "{upnp}");
        }
    });
}

/// A mapping is told, nothing else is mapped, and what is left at the end goes as soon as the router gets to it.
async fn is_waited_for(mut router: Router, by: Protocol) {
    let fake = Fake::start(&mut router, Manner { late: [Duration::from_secs(10); 3], ..speaks(by) });
    let mut mapper = start(&[by], &router);
    assert_eq!(next(&mut mapper, &router, 35).await.expect("mapped").external, external(4275));
    assert_eq!(fake.table().len(), 1, "{:?}", fake.table());
    let began = Instant::now();
    mapper.stop().await;
    assert!(began.elapsed() < Duration::from_millis(2500), "the end does not wait for such a router");
    goes_by_itself_or_with_the_next_start(&fake, &router, by).await;
}

async fn goes_by_itself_or_with_the_next_start(fake: &Fake, router: &Router, by: Protocol) {
    if by == Protocol::Upnp {
        // The router is asked whose the mapping is before it is asked to remove it, and that took too long.
        assert!(router.state().exists());
        tokio::time::sleep(Duration::from_secs(10)).await;
        fake.behave(|manner| manner.late = [Duration::ZERO; 3]);
        start(&[], router).stop().await;
    }
    becomes(fake, Table::is_empty, 15).await;
}

#[test]
fn an_answer_of_upnp_after_10_s_is_taken() {
    Lab::enter("odd::an_answer_of_upnp_after_10_s_is_taken", async |router| is_waited_for(router, ALL[0]).await);
}

#[test]
fn an_answer_of_pcp_after_10_s_is_taken() {
    Lab::enter("odd::an_answer_of_pcp_after_10_s_is_taken", async |router| is_waited_for(router, ALL[1]).await);
}

#[test]
fn an_answer_of_nat_pmp_after_10_s_is_taken() {
    Lab::enter("odd::an_answer_of_nat_pmp_after_10_s_is_taken", async |router| is_waited_for(router, ALL[2]).await);
}

#[test]
fn a_stop_before_a_late_answer_leaves_nothing() {
    Lab::enter("odd::a_stop_before_a_late_answer_leaves_nothing", async |mut router| {
        let fake = Fake::start(&mut router, Manner::default());
        for by in ALL {
            fake.behave(|manner| *manner = Manner { late: [Duration::from_secs(3); 3], ..speaks(by) });
            let mapper = start(&[by], &router);
            tokio::time::sleep(Duration::from_secs(1)).await;
            mapper.stop().await;
            becomes(&fake, |table| !table.is_empty(), 5).await;
            goes_by_itself_or_with_the_next_start(&fake, &router, by).await;
            let _ = std::fs::remove_file(router.state());
        }
    });
}

#[test]
fn a_protocol_that_is_late_is_overtaken_and_what_it_maps_then_is_removed() {
    Lab::enter("odd::a_protocol_that_is_late_is_overtaken_and_what_it_maps_then_is_removed", async |mut router| {
        let late = [Duration::from_secs(5), Duration::ZERO, Duration::ZERO];
        let given = |asked: u16| if asked == 4275 { 4276 } else { asked };
        let fake = Fake::start(&mut router, Manner { late, given, ..speaks(Protocol::Pcp) });
        let began = Instant::now();
        let mut mapper = start(&ALL, &router);
        // PCP answered, and is asked; UPnP is found by the second search.
        tokio::time::sleep(Duration::from_millis(200)).await;
        fake.behave(|manner| manner.upnp = IGD1);
        let told = next(&mut mapper, &router, 5).await.expect("mapped");
        assert_eq!(told, MappedPort { external: external(4275), by: PortMapping::Upnp });
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        becomes(&fake, |table| table.len() > 1, 10).await;
        becomes(&fake, |table| table.len() == 1 && table.contains_key(&("upnp", 4275)), 20).await;
        assert_eq!(mapper.current(), Some(told));
        mapper.stop().await;
        assert_eq!(fake.table(), Table::new());
    });
}

#[test]
fn what_a_router_forgets_in_silence_is_mapped_again() {
    Lab::enter("odd::what_a_router_forgets_in_silence_is_mapped_again", async |mut router| {
        let fake = Fake::start(&mut router, Manner::default());
        for by in ALL {
            fake.behave(|manner| *manner = speaks(by));
            fake.grow_old();
            let check = Duration::from_secs(1);
            let mut mapper = PortMapper::start_with(Options { check, ..options(&[by], 4275, &router.state(), 3600) });
            assert!(next(&mut mapper, &router, 5).await.is_some(), "{by:?}");
            fake.reboot();
            becomes(&fake, |table| table.len() == 1, 6).await;
            // Its provider gives it another address.
            if by != Protocol::Pcp {
                fake.behave(|manner| manner.external = Ipv4Addr::new(203, 0, 113, 77));
                let told = next(&mut mapper, &router, 6).await.expect("mapped");
                assert_eq!(told.external.to_string(), "203.0.113.77:4275", "{by:?}");
            }
            mapper.stop().await;
            assert_eq!(fake.table(), Table::new(), "{by:?}");
        }
    });
}

#[test]
fn a_killed_runs_mapping_is_taken_over_at_once() {
    Lab::enter("odd::a_killed_runs_mapping_is_taken_over_at_once", async |mut router| {
        let fake = Fake::start(&mut router, Manner::default());
        for by in ALL {
            let taken = |port, _| if port == 4275 { 718 } else { 0 };
            let given = |asked: u16| if asked == 4275 { 4999 } else { asked };
            fake.behave(|manner| *manner = Manner { error: taken, given, ..speaks(by) });
            let mut mapper = start(&[by], &router);
            let before = next(&mut mapper, &router, 5).await;
            drop(mapper);
            let began = Instant::now();
            let mut mapper = start(&ALL, &router);
            assert_eq!(next(&mut mapper, &router, 5).await, before, "{by:?}");
            assert!(began.elapsed() < Duration::from_millis(200), "{by:?}: {:?}", began.elapsed());
            mapper.stop().await;
            assert_eq!(fake.table(), Table::new(), "{by:?}");
        }
    });
}
