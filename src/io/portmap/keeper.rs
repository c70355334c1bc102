//! The task that keeps the port mapped: one loop, in which whatever waits for a router runs beside it.
//!
//! ```text
//!          ┌────────────── look ──────────────┐
//!          │ a mapping is known: ask for it   │ refused, or silent for 1 s
//!          ▼                                  ▼
//!   asking (Asked) ◄── first found ─── finding (Found), by all protocols
//!          │ granted          ▲    the next, 1 s after the last was asked
//!          ▼                  │
//!       a lease ── check ── lost
//! ```
//!
//! At most one request for a protocol is under way, and one that is silent is left to itself: it is sent again until its own
//! end, and its answer is taken whenever it comes. A late grant becomes the lease where there is none, and is removed where
//! there is another.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::announce::{Announcements, Word};
use super::epoch::Epoch;
use super::state::{Record, StateFile};
use super::{Asked, Command, Gateway, Grant, Options, Protocol, ask, links, pcp, remove, upnp};
use crate::proto::node::MappedPort;

/// How much later UPnP's search begins, where the others are tried too: miniupnpd, which most routers have, answers nobody for
/// 50 ms while it answers a search, and the others within 2 ms before.
const HEAD_START: Duration = Duration::from_millis(20);
/// A request that is silent for so long gets company: a router on the LAN answers in milliseconds, a slow one in a second.
const HEDGE: Duration = Duration::from_secs(1);
/// For removing what an earlier run left, before anything new is asked for: a router may hold one mapping of a port.
const LEFTOVER_WAIT: Duration = Duration::from_millis(500);
/// For that where nothing new is asked for.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// For what is under way at the end; what a healthy router takes for one mapping, with air.
const FAREWELL: Duration = Duration::from_millis(500);
/// Where nothing maps, the next tries come after these: at first the router may just be starting, as after a power cut. A new
/// network is tried at once, and so is a router that says that it starts.
const RETRIES: [Duration; 4] =
    [Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(600), Duration::from_secs(3600)];
/// The same, where the router mapped before and does not now, so is most likely rebooting.
const RETURNS: [Duration; 5] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(60),
];
/// The least time between two tries, whatever happens: netlink may storm, and announcements may be forged.
const LEAST_WAIT: Duration = Duration::from_secs(2);
/// The least time between two looks because a router said that it is there: it says so often, for each of its services.
const ALIVE_WAIT: Duration = Duration::from_secs(60);

/// A router's answer to "is anybody there".
enum Found {
    Upnp(upnp::Device),
    Pcp,
    NatPmp,
}

impl Found {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Upnp(_) => Protocol::Upnp,
            Self::Pcp => Protocol::Pcp,
            Self::NatPmp => Protocol::NatPmp,
        }
    }
}

/// What ends beside the loop.
enum Outcome {
    Found(Option<Found>),
    Asked(Box<Record>, Asked),
    /// `None`: nobody said.
    Checked(Option<bool>),
    Removed(Box<Record>, bool),
}

/// A mapping that we hold.
struct Lease {
    record: Record,
    external: std::net::SocketAddr,
    epoch: Option<Epoch>,
    check_at: Instant,
    expires_at: Instant,
}

/// The search for a mapping, from a look to a grant or to nothing.
#[derive(Default)]
struct Round {
    /// Finding has begun; how many searches are under way.
    finding: Option<usize>,
    searches: Vec<AbortHandle>,
    /// Who answered and was not asked yet.
    found: Vec<Found>,
    /// Until when the last that was asked is waited for alone.
    hedge: Option<Instant>,
}

/// The task's state.
pub struct Keeper {
    options: Options,
    state: StateFile,
    announcements: Announcements,
    router: Option<Gateway>,
    lease: Option<Lease>,
    round: Option<Round>,
    tasks: JoinSet<Outcome>,
    /// Who is being asked.
    asking: Vec<Protocol>,
    removing: usize,
    checking: bool,
    /// Nothing is asked for before this, while something is being removed.
    hold_off: Instant,
    /// When to look next, and not before.
    due: Instant,
    earliest: Instant,
    last_alive: Option<Instant>,
    /// The router said so, and was not looked at since.
    restarted: bool,
    failures: usize,
    /// This router mapped for us.
    mapped_before: bool,
    mapped: watch::Sender<Option<MappedPort>>,
    speaks: Arc<AtomicBool>,
}

impl Keeper {
    pub fn new(options: Options, mapped: watch::Sender<Option<MappedPort>>, speaks: Arc<AtomicBool>) -> Self {
        let now = Instant::now();
        Self {
            state: StateFile::open(options.state_file.clone()),
            options,
            announcements: Announcements::default(),
            router: None,
            lease: None,
            round: None,
            tasks: JoinSet::new(),
            asking: Vec::new(),
            removing: 0,
            checking: false,
            hold_off: now,
            due: now,
            earliest: now,
            last_alive: None,
            restarted: false,
            failures: 0,
            mapped_before: false,
            mapped,
            speaks,
        }
    }

    pub async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let idle = self.options.enabled.is_empty() || self.options.local_port == 0;
        for record in self.state.records().to_vec() {
            if idle || !self.is_of_use(&record) {
                self.spawn_removal(record);
            }
        }
        if idle {
            let removals = async { while self.step().await {} };
            let _ = tokio::time::timeout(LEFTOVER_TIMEOUT, removals).await;
            return;
        }
        self.hold_off = Instant::now() + LEFTOVER_WAIT;
        loop {
            if Instant::now() >= self.due {
                self.look().await;
            }
            self.proceed();
            let wake = self.wake();
            tokio::select! {
                joined = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    // What was aborted says nothing.
                    if let Some(Ok(outcome)) = joined {
                        self.handle(outcome);
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
                word = self.announcements.next() => self.heed(word),
                command = inbox.recv() => match command {
                    Some(Command::Refresh) => {
                        tracing::debug!("looking at the port mapping: the network changed");
                        self.hurry();
                    }
                    Some(Command::Stop) | None => break,
                },
            }
        }
        self.stop().await;
    }

    /// Waits for what runs beside the loop; `false` where nothing does.
    async fn step(&mut self) -> bool {
        match self.tasks.join_next().await {
            Some(Ok(outcome)) => self.handle(outcome),
            Some(Err(_)) => {}
            None => return false,
        }
        true
    }

    /// Whether an earlier run's mapping is one that we would ask for.
    fn is_of_use(&self, record: &Record) -> bool {
        record.local_port == self.options.local_port
            && self.options.enabled.contains(&record.by)
            && record.others.is_empty()
            && !record.has_expired()
    }

    /// Looks as soon as it may.
    fn hurry(&mut self) {
        self.due = self.earliest.max(Instant::now());
        self.failures = 0;
    }

    fn heed(&mut self, word: Word) {
        let now = Instant::now();
        match word {
            Word::Restarted => {
                tracing::debug!("looking at the port mapping: the router restarted");
                self.restarted = true;
                self.hurry();
            }
            Word::Alive if self.last_alive.is_some_and(|last| now < last + ALIVE_WAIT) => {}
            Word::Alive => {
                self.last_alive = Some(now);
                match &mut self.lease {
                    Some(lease) => lease.check_at = now,
                    None if !self.speaks.load(Ordering::Relaxed) => self.hurry(),
                    // It was asked and does not map; that it still is there is no news.
                    None => {}
                }
            }
        }
    }

    /// Ends what waits for the router. What was asked for stays noted, to be asked for again, or removed.
    fn drop_tasks(&mut self) {
        self.tasks.abort_all();
        self.round = None;
        (self.asking, self.removing, self.checking) = (Vec::new(), 0, false);
    }

    /// When there is something to do, if nothing happens before.
    fn wake(&self) -> Instant {
        let mut wake = self.due;
        let now = Instant::now();
        let mut at = |time: Option<Instant>| wake = wake.min(time.filter(|time| *time > now).unwrap_or(wake));
        if let Some(round) = &self.round {
            at(round.hedge);
        }
        at(Some(self.hold_off));
        at(self.lease.as_ref().map(|lease| lease.check_at));
        wake
    }

    /// Begins a round: asks for the mapping that is known, or finds who maps.
    async fn look(&mut self) {
        let now = Instant::now();
        self.earliest = now + LEAST_WAIT;
        let router = match links::gateway().await {
            Ok(router) => router,
            Err(error) => {
                // That the kernel could not be asked says nothing of the router: what it maps stays, and it is asked soon.
                tracing::debug!(%error, "no default gateway is known");
                self.due = now + LEAST_WAIT;
                return;
            }
        };
        if router != self.router {
            // The old router can't be reached: its leases end by themselves, and the records stay for when it is back.
            if self.router.is_some() {
                self.drop_tasks();
            }
            (self.lease, self.router) = (None, router);
            (self.mapped_before, self.failures) = (false, 0);
            self.speaks.store(false, Ordering::Relaxed);
            self.tell();
        }
        self.due = now + RETRIES[RETRIES.len() - 1];
        let Some(router) = router else { return };
        self.announcements.listen(router);
        if std::mem::take(&mut self.restarted) {
            // What it was asked before is forgotten; asked again is the same mapping, and now there may be an answer.
            self.drop_tasks();
        }
        if self.round.is_some() {
            return;
        }
        self.round = Some(Round::default());
        let known = match &self.lease {
            Some(lease) => Some(lease.record.clone()),
            None => {
                let here = |record: &&Record| record.gateway == router.address && record.source == router.source;
                self.state.records().iter().filter(here).find(|record| self.is_of_use(record)).cloned()
            }
        };
        match known.filter(|record| !self.asking.contains(&record.by)) {
            Some(record) => self.spawn_request(record),
            None => self.spawn_searches(),
        }
    }

    /// What is due in the round, and the check of the lease.
    fn proceed(&mut self) {
        let now = Instant::now();
        if let Some(lease) = &mut self.lease
            && now >= lease.check_at
        {
            lease.check_at = now + self.options.check;
            if !self.checking && self.round.is_none() {
                self.checking = true;
                let (record, external, epoch) = (lease.record.clone(), lease.external.ip(), lease.epoch);
                self.tasks.spawn(async move { Outcome::Checked(holds(&record, external, epoch).await) });
            }
        }
        let Some(round) = &mut self.round else { return };
        let alone = self.asking.is_empty() || round.hedge.is_none_or(|hedge| now >= hedge);
        if !alone || (self.removing > 0 && now < self.hold_off) {
            return;
        }
        let Some(finding) = round.finding else { return self.spawn_searches() };
        round.found.sort_by_key(Found::protocol);
        if !round.found.is_empty() {
            let found = round.found.remove(0);
            if let Some(record) = self.record_of(found) {
                self.spawn_request(record);
            }
        } else if finding == 0 && self.asking.is_empty() {
            self.give_up();
        }
    }

    fn record_of(&self, found: Found) -> Option<Record> {
        let mut record = Record::new(found.protocol(), self.router?, self.options.local_port, self.options.lease);
        match found {
            Found::Upnp(device) => record.control = Some(device.control),
            Found::Pcp => {
                // The nonce is what makes a mapping ours.
                let known = self.state.records().iter().find(|known| known.is_same(&record));
                record.nonce = Some(known.and_then(|known| known.nonce).or_else(pcp::new_nonce)?);
            }
            Found::NatPmp => {}
        }
        Some(record)
    }

    fn spawn_searches(&mut self) {
        let (Some(router), Some(round)) = (self.router, &mut self.round) else { return };
        round.finding = Some(0);
        let wait = if self.options.enabled.len() > 1 { HEAD_START } else { Duration::ZERO };
        for protocol in self.options.enabled.iter().filter(|protocol| !self.asking.contains(protocol)) {
            let protocol = *protocol;
            let search = self.tasks.spawn(async move {
                Outcome::Found(match protocol {
                    Protocol::Upnp => {
                        tokio::time::sleep(wait).await;
                        upnp::find(router).await.map(Found::Upnp)
                    }
                    Protocol::Pcp => pcp::epoch(router).await.map(|_| Found::Pcp),
                    Protocol::NatPmp => pcp::external_address(router).await.map(|_| Found::NatPmp),
                })
            });
            round.searches.push(search);
            round.finding = round.finding.map(|count| count + 1);
        }
    }

    fn spawn_request(&mut self, record: Record) {
        self.state.note(&record);
        self.asking.push(record.by);
        if let Some(round) = &mut self.round {
            round.hedge = Some(Instant::now() + HEDGE);
        }
        let (mut record, lease) = (record, self.options.lease);
        self.tasks.spawn(async move {
            let asked = ask(&mut record, lease).await;
            Outcome::Asked(Box::new(record), asked)
        });
    }

    fn spawn_removal(&mut self, record: Record) {
        self.removing += 1;
        self.tasks.spawn(async move {
            let removed = remove(&record).await;
            Outcome::Removed(Box::new(record), removed)
        });
    }

    fn handle(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Found(found) => {
                if found.is_some() {
                    self.speaks.store(true, Ordering::Relaxed);
                }
                if let Some(Found::Upnp(device)) = &found {
                    self.announcements.set_boot_id(device.boot_id);
                }
                // An aborted search does not come here, but one may have ended before it was.
                let Some(round) = &mut self.round else { return };
                round.finding = round.finding.map(|count| count.saturating_sub(1));
                if let Some(found) = found {
                    round.found.push(found);
                }
            }
            Outcome::Asked(record, asked) => {
                self.asking.retain(|protocol| *protocol != record.by);
                self.handle_answer(*record, asked);
            }
            Outcome::Checked(holds) => {
                self.checking = false;
                if holds == Some(false) && self.lease.is_some() {
                    tracing::debug!("looking at the port mapping: the router does not hold it any more");
                    self.hurry();
                }
            }
            Outcome::Removed(record, removed) => {
                self.removing = self.removing.saturating_sub(1);
                tracing::debug!(port = record.external_port, by = ?record.by, removed, "a port mapping of no use");
                let renewed = self.lease.as_ref().is_some_and(|lease| lease.record.is_same(&record));
                if (removed || record.has_expired()) && !renewed {
                    self.state.forget(&record);
                }
            }
        }
    }

    fn handle_answer(&mut self, record: Record, asked: Asked) {
        let held = self.lease.as_ref().is_some_and(|lease| lease.record.is_same(&record));
        self.speaks.fetch_or(!matches!(asked, Asked::Silent), Ordering::Relaxed);
        match asked {
            Asked::Granted(grant) if self.round.is_some() || self.lease.is_none() || held => self.hold(record, &grant),
            Asked::Granted(grant) => {
                self.state.note(&record);
                // Of routers with one table for all protocols the two are one, to be removed at the end.
                if self.lease.as_ref().is_some_and(|lease| lease.external != grant.external) {
                    tracing::debug!(by = ?record.by, "a mapping came late, and is not needed");
                    self.spawn_removal(record);
                }
            }
            Asked::Refused => {
                tracing::debug!(by = ?record.by, "the router does not map the port");
                self.state.forget(&record);
                if held {
                    self.lease = None;
                    // Told only when nothing else maps it: most likely something does.
                }
            }
            Asked::Silent => tracing::debug!(by = ?record.by, "the router does not answer"),
        }
        // Whoever was waiting for this one's answer need not any more.
        if let Some(round) = &mut self.round {
            round.hedge = None;
        }
    }

    fn hold(&mut self, record: Record, grant: &Grant) {
        if let Some(round) = self.round.take() {
            round.searches.iter().for_each(AbortHandle::abort);
        }
        // A router may grant less, down to nothing, or ages.
        let lifetime = grant.lifetime.clamp(LEAST_WAIT * 2, self.options.lease.max(LEAST_WAIT * 2));
        let mut record = record;
        record.expires_in(lifetime);
        self.state.note(&record);
        let now = Instant::now();
        let before = self.lease.replace(Lease {
            external: grant.external,
            epoch: grant.epoch,
            check_at: now + self.options.check,
            expires_at: now + lifetime,
            record,
        });
        (self.failures, self.mapped_before) = (0, true);
        if let Some(epoch) = grant.epoch {
            self.announcements.set_epoch(epoch);
        }
        // Whether this is of before a restart or after can't be told.
        self.due = if self.restarted { self.earliest } else { (now + lifetime / 2).max(self.earliest) };
        self.tell();
        if let Some(before) = before
            && let Some(lease) = &self.lease
            && !before.record.is_same(&lease.record)
            && before.external != grant.external
        {
            self.spawn_removal(before.record);
        }
    }

    /// Nobody maps. A router that is silent for a moment may still hold the mapping.
    fn give_up(&mut self) {
        let now = Instant::now();
        self.round = None;
        self.lease = self.lease.take().filter(|lease| now < lease.expires_at);
        let waits: &[Duration] = if self.mapped_before { &RETURNS } else { &RETRIES };
        let wait = if self.restarted { Duration::ZERO } else { waits[self.failures.min(waits.len() - 1)] };
        self.due = (now + wait).max(self.earliest);
        self.failures += 1;
        self.tell();
    }

    fn tell(&self) {
        let mapped = self.lease.as_ref().map(|held| MappedPort { external: held.external, by: held.record.by.into() });
        self.mapped.send_if_modified(|told| {
            let changed = *told != mapped;
            *told = mapped;
            changed
        });
    }

    /// Removes whatever may be mapped. An answer that is under way is waited for a moment: it says where.
    async fn stop(mut self) {
        if let Some(round) = self.round.take() {
            round.searches.iter().for_each(AbortHandle::abort);
        }
        let end = Instant::now() + FAREWELL;
        while !self.asking.is_empty()
            && let Ok(true) = tokio::time::timeout_at(end, self.step()).await
        {}
        self.tasks.abort_all();
        self.tasks = JoinSet::new();
        self.lease = None;
        for record in self.state.records().to_vec() {
            self.tasks.spawn(async move {
                let removed = remove(&record).await;
                Outcome::Removed(Box::new(record), removed)
            });
        }
        while let Some(removed) = self.tasks.join_next().await {
            // What could not be removed is left to the next start.
            if let Ok(Outcome::Removed(record, true)) = removed {
                self.state.forget(&record);
            }
        }
    }
}

/// Whether the lease's mapping is as it was told.
async fn holds(record: &Record, external: IpAddr, epoch: Option<Epoch>) -> Option<bool> {
    let external = match external {
        IpAddr::V4(external) => external,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    match record.by {
        Protocol::Upnp => upnp::holds(record, external).await,
        Protocol::Pcp | Protocol::NatPmp => pcp::holds(record, external, epoch).await,
    }
}
