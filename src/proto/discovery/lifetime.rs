//! How long our NAT remembers a mapping that nothing uses: measured once in each network, so that keepalives are as rare as may be.
//!
//! ```text
//! feeler for T      ──► server    DUDP_START, and again a little later: now the NAT takes it for a conversation
//!                   ◄── server    its outside port P
//!                   … silence for T …
//! main socket       ──► server    DUDP_START "answer to port P"
//! feeler for T      ◄── server    came through: the mapping lived for T.  Nothing: it did not
//! ```
//!
//! No path in use is put at risk: a feeler is a socket of its own, one for each T. The server answers from the very address and
//! port that the feeler spoke to, so the answer gets through every filter, and it works through NATs of every kind.
//!
//! The first feeler is asked for at once as well. Where that answer does not come, the server is of an older kind (or no server of
//! ours), or our NAT gives each socket another public address: then nothing is learned, and the keepalives stay careful.
//!
//! Assumption: a mapping that was left alone for as long as one that lived lives, too; so a path may be silent for three quarters
//! of that.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::client::SCOUT_PORTS;
use super::{PubInfo, Reply, Start, Transaction};
use crate::proto::punch::SocketIds;
use crate::proto::{Action, Instant, SocketId, Transmit};

/// The silences tried, in seconds: just under the lifetimes of NATs in the field (10, 20, 30 s), and one whose three quarters are
/// the longest interval.
const SILENCES: [u64; 4] = [9, 19, 26, 34];
/// The longest interval: WireGuard's own, as its users set it.
const LONGEST: Duration = Duration::from_secs(25);
/// The shortest: what forgets sooner than in 7 s is no NAT that a tunnel can be kept open through.
const SHORTEST: Duration = Duration::from_secs(5);
/// While nothing is known: below 20 s, the shortest lifetime that NATs have in numbers.
const CAREFUL: Duration = Duration::from_secs(18);
/// When to begin in a new network: calls come first.
const BEGIN_AFTER: Duration = Duration::from_secs(5);
/// How often it is put off while the NAT is not known or a hard call is under way.
const PUT_OFF: Duration = Duration::from_secs(1);
const MOST_PUT_OFF: u32 = 60;
/// Linux takes a flow for a conversation (120 s instead of 30) where it is answered more than 2 s after it began.
const CONVERSES_AFTER: Duration = Duration::from_millis(2500);
/// A question is repeated after this long, so many times in all.
const RETRY: Duration = Duration::from_millis(500);
const TRIES: u32 = 3;
/// A mapping that was found dead after less silence than this was not forgotten: the NAT was restarted.
const RESTARTED: Duration = Duration::from_secs(5);

/// What the measurement needs to know before it begins.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// A discovery server of ours, and whether one is configured at all.
    pub server: Option<SocketAddr>,
    /// Whether a NAT is in front of us; `None`: it is not known yet.
    pub behind_nat: Option<bool>,
    /// A call is under way that more mappings would disturb.
    pub busy: bool,
}

/// Measures, and says how often keepalives are due.
#[derive(Debug, Default)]
pub struct Lifetime {
    state: State,
    feelers: Vec<Feeler>,
    server: Option<SocketAddr>,
    /// The server does what is asked, and both sockets have one public address.
    understood: bool,
    lived: Option<Duration>,
    died: Option<Duration>,
    /// The silence after which a mapping in use was found to be forgotten.
    forgot: Option<Duration>,
    no_nat: bool,
    mappings: usize,
    transmits: VecDeque<Transmit>,
    actions: VecDeque<Action>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Off,
    Due {
        at: Instant,
        put_off: u32,
    },
    Running,
    Done,
}

/// One socket, and the silence that it tries.
#[derive(Debug)]
struct Feeler {
    socket: SocketId,
    silence: Duration,
    public: Option<SocketAddr>,
    stage: Stage,
    transaction: Transaction,
    tries: u32,
    due: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Asks for its outside port.
    Opens,
    /// Has it; is about to ask once more.
    Waits,
    /// Asks once more.
    Converses,
    /// The first one: whether the main socket can have it answered, at once.
    Tests,
    Silent,
    /// The main socket has it answered.
    Asked,
}

impl Lifetime {
    /// A new network: what was known of the old one is forgotten.
    pub fn start(&mut self, now: Instant) {
        self.close();
        *self = Self {
            state: State::Due { at: now + BEGIN_AFTER, put_off: 0 },
            actions: std::mem::take(&mut self.actions),
            ..Self::default()
        };
    }

    /// How long a path may be silent.
    pub fn keepalive(&self) -> Duration {
        if self.no_nat {
            return LONGEST;
        }
        let safe = |lifetime: Duration| (lifetime * 3 / 4).clamp(SHORTEST, LONGEST);
        let measured = self.measured().map_or(CAREFUL, safe);
        // What was forgotten before its time was not measured rightly, unless the NAT was restarted just then.
        let forgot = self.forgot.filter(|forgot| self.measured().is_none_or(|lived| *forgot > lived));
        forgot.map_or(measured, |forgot| measured.min(safe(forgot)))
    }

    /// The longest silence that a mapping is known to have lived through; zero where it was not even the shortest that was tried.
    pub fn measured(&self) -> Option<Duration> {
        match (&self.state, self.died) {
            (State::Done, _) | (_, Some(_)) if self.lived.is_some() || self.died.is_some() => {
                Some(self.lived.unwrap_or_default())
            }
            _ => None,
        }
    }

    /// A mapping in use was found to be forgotten after so long a silence.
    pub fn note_forgotten(&mut self, silence: Duration) {
        if silence >= RESTARTED {
            self.forgot = Some(self.forgot.map_or(silence, |before| before.min(silence)));
        }
    }

    /// Whether a silence is tried from that socket.
    pub fn asks_from(&self, socket: SocketId) -> bool {
        self.feelers.iter().any(|feeler| feeler.socket == socket)
    }

    /// How many mappings it made since it was asked last.
    pub fn take_mappings(&mut self) -> usize {
        std::mem::take(&mut self.mappings)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Off | State::Done => None,
            State::Due { at, .. } => Some(at),
            State::Running => self.feelers.iter().map(|feeler| feeler.due).min(),
        }
    }

    pub fn handle_timeout(&mut self, now: Instant, around: Surroundings, ids: &mut SocketIds, rng: &mut ChaCha20Rng) {
        if let State::Due { at, put_off } = self.state {
            if now < at {
                return;
            }
            match around {
                Surroundings { behind_nat: Some(false), .. } => {
                    self.no_nat = true;
                    self.state = State::Done;
                }
                Surroundings { server: None, behind_nat: Some(true), .. } => self.state = State::Done,
                Surroundings { server: Some(server), behind_nat: Some(true), busy: false } => {
                    self.begin(now, server, ids, rng);
                }
                _ if put_off == MOST_PUT_OFF => self.state = State::Done,
                _ => self.state = State::Due { at: now + PUT_OFF, put_off: put_off + 1 },
            }
        }
        let due: Vec<SocketId> =
            self.feelers.iter().filter(|feeler| now >= feeler.due).map(|feeler| feeler.socket).collect();
        for socket in due {
            self.advance(now, socket, rng);
        }
    }

    fn begin(&mut self, now: Instant, server: SocketAddr, ids: &mut SocketIds, rng: &mut ChaCha20Rng) {
        self.state = State::Running;
        self.server = Some(server);
        // Each feeler's, and the main socket's to that server.
        self.mappings += SILENCES.len() + 1;
        for silence in SILENCES {
            let socket = ids.next();
            let port = SCOUT_PORTS.start + (rng.next_u32() % SCOUT_PORTS.len() as u32) as u16;
            self.actions.push_back(Action::OpenSocket { id: socket, port });
            self.feelers.push(Feeler {
                socket,
                silence: Duration::from_secs(silence),
                public: None,
                stage: Stage::Opens,
                transaction: rng.next_u64().to_be_bytes(),
                tries: 0,
                due: now,
            });
        }
    }

    /// Does what is due for one feeler.
    fn advance(&mut self, now: Instant, socket: SocketId, rng: &mut ChaCha20Rng) {
        let Some(server) = self.server else { return };
        let Some(feeler) = self.feelers.iter_mut().find(|feeler| feeler.socket == socket) else { return };
        match feeler.stage {
            Stage::Waits => feeler.stage = Stage::Converses,
            Stage::Silent => feeler.stage = Stage::Asked,
            Stage::Opens | Stage::Converses | Stage::Tests | Stage::Asked => {}
        }
        if feeler.tries == TRIES {
            match feeler.stage {
                // The server is of another kind, or away: nothing can be learned.
                Stage::Tests | Stage::Opens | Stage::Converses => self.give_up(),
                Stage::Asked | Stage::Waits | Stage::Silent => self.learn(socket, false),
            }
            return;
        }
        if feeler.tries == 0 {
            feeler.transaction = rng.next_u64().to_be_bytes();
        }
        feeler.tries += 1;
        feeler.due = now + RETRY;
        let through_main = matches!(feeler.stage, Stage::Tests | Stage::Asked);
        let reply = match feeler.public {
            Some(public) if through_main => Reply::ToPort(public.port()),
            _ => Reply::Same,
        };
        let from = if through_main { SocketId::MAIN_V4 } else { feeler.socket };
        let payload = Start { transaction: feeler.transaction, reply }.encode();
        self.transmits.push_back(Transmit { socket: from, to: server, ttl: None, whole: false, payload });
    }

    /// `true`: it was the answer to one of the measurement's own questions, and came in on `socket` as it was to.
    pub fn handle_datagram(&mut self, now: Instant, socket: SocketId, datagram: &[u8]) -> bool {
        let Some(info) = PubInfo::parse(datagram) else { return false };
        let found = |feeler: &&mut Feeler| feeler.transaction == info.transaction && feeler.socket == socket;
        let Some(feeler) = self.feelers.iter_mut().find(found) else { return false };
        let is_first = feeler.silence == Duration::from_secs(SILENCES[0]);
        feeler.tries = 0;
        match feeler.stage {
            Stage::Opens => {
                feeler.public = Some(info.public);
                feeler.stage = Stage::Waits;
                feeler.due = now + CONVERSES_AFTER;
            }
            Stage::Converses if is_first => {
                feeler.stage = Stage::Tests;
                feeler.due = now;
            }
            Stage::Converses | Stage::Tests => {
                self.understood |= feeler.stage == Stage::Tests;
                feeler.stage = Stage::Silent;
                feeler.due = now + feeler.silence;
            }
            Stage::Asked => self.learn(socket, true),
            Stage::Waits | Stage::Silent => {}
        }
        true
    }

    /// Its socket could not be opened.
    pub fn handle_socket_failed(&mut self, socket: SocketId) {
        self.feelers.retain(|feeler| feeler.socket != socket);
        if self.feelers.is_empty() && matches!(self.state, State::Running) {
            self.state = State::Done;
        }
    }

    fn learn(&mut self, socket: SocketId, lived: bool) {
        let Some(at) = self.feelers.iter().position(|feeler| feeler.socket == socket) else { return };
        let feeler = self.feelers.swap_remove(at);
        self.actions.push_back(Action::CloseSocket { id: feeler.socket });
        // Another public address than the first one's can't be asked for from the main socket.
        let other_address = match (feeler.public, self.feelers.iter().find_map(|feeler| feeler.public)) {
            (Some(one), Some(other)) => one.ip() != other.ip(),
            _ => false,
        };
        if self.understood && lived {
            self.lived = Some(self.lived.map_or(feeler.silence, |before| before.max(feeler.silence)));
        } else if self.understood && !other_address {
            self.died = Some(self.died.map_or(feeler.silence, |before| before.min(feeler.silence)));
        }
        if self.feelers.is_empty() {
            self.state = State::Done;
        }
    }

    fn give_up(&mut self) {
        self.close();
        self.state = State::Done;
    }

    /// Closes what is open.
    pub fn close(&mut self) {
        self.actions.extend(self.feelers.drain(..).map(|feeler| Action::CloseSocket { id: feeler.socket }));
        self.transmits.clear();
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    const MAIN: u16 = 4275;

    /// A NAT that keeps ports and forgets a mapping after `lifetime` of silence, and a server behind it.
    fn measure(lifetime: Duration, understands: bool) -> (Lifetime, usize) {
        let mut rng = ChaCha20Rng::from_seed([7; 32]);
        let (mut ids, mut meter) = (SocketIds::default(), Lifetime::default());
        let server: SocketAddr = "198.51.100.7:4270".parse().expect("address");
        let around = Surroundings { server: Some(server), behind_nat: Some(true), busy: false };
        let mut now = Instant::default() + Duration::from_secs(100);
        let mut used: Vec<(SocketId, u16, Instant)> = vec![(SocketId::MAIN_V4, MAIN, now)];
        let mut sent = 0;
        meter.start(now);
        for _ in 0..1000 {
            let Some(due) = meter.poll_timeout() else { return (meter, sent) };
            now = now.max(due);
            meter.handle_timeout(now, around, &mut ids, &mut rng);
            while let Some(action) = meter.poll_action() {
                match action {
                    Action::OpenSocket { id, port } => used.push((id, port, now)),
                    Action::CloseSocket { id } => used.retain(|(socket, ..)| *socket != id),
                    _ => {}
                }
            }
            while let Some(transmit) = meter.poll_transmit() {
                sent += 1;
                let start = Start::parse(&transmit.payload).expect("is a START");
                let from = used.iter_mut().find(|(socket, ..)| *socket == transmit.socket).expect("is open");
                from.2 = now;
                let port = match start.reply {
                    Reply::ToPort(port) if understands => port,
                    Reply::ToPort(_) => continue,
                    _ => from.1,
                };
                let public = SocketAddr::new("203.0.113.9".parse().expect("address"), from.1);
                let info = PubInfo { transaction: start.transaction, reply: start.reply, public };
                let to = used.iter_mut().find(|(_, local, last)| *local == port && now.since(*last) < lifetime);
                if let Some((socket, _, last)) = to {
                    *last = now;
                    assert!(meter.handle_datagram(now, *socket, &info.encode()));
                }
            }
        }
        panic!("it never ends");
    }

    #[test]
    fn each_lifetime_gives_an_interval_well_below_it() {
        for (lifetime, measured, most) in [(8, 0, 8), (15, 9, 15), (20, 19, 18), (30, 26, 25), (120, 34, 26)] {
            let (meter, sent) = measure(Duration::from_secs(lifetime), true);
            assert_eq!(meter.measured(), Some(Duration::from_secs(measured)), "lifetime {lifetime}");
            assert!(meter.keepalive() < Duration::from_secs(most), "lifetime {lifetime}: {:?}", meter.keepalive());
            assert!(meter.feelers.is_empty() && sent <= 21, "lifetime {lifetime}: {sent} packets");
        }
        assert_eq!(measure(Duration::from_secs(120), true).0.keepalive(), LONGEST);
    }

    #[test]
    fn a_server_that_does_not_understand_teaches_nothing() {
        let (meter, sent) = measure(Duration::from_secs(120), false);
        assert_eq!((meter.measured(), meter.keepalive()), (None, CAREFUL));
        assert!(meter.feelers.is_empty() && sent <= 12, "{sent} packets");
    }

    #[test]
    fn without_a_nat_nothing_is_sent_and_the_longest_interval_does() {
        let mut meter = Lifetime::default();
        let now = Instant::default();
        meter.start(now);
        let around = Surroundings { server: None, behind_nat: Some(false), busy: false };
        let mut rng = ChaCha20Rng::from_seed([7; 32]);
        meter.handle_timeout(now + BEGIN_AFTER, around, &mut SocketIds::default(), &mut rng);
        assert_eq!((meter.keepalive(), meter.poll_timeout(), meter.poll_transmit()), (LONGEST, None, None));
    }

    #[test]
    fn a_mapping_that_was_forgotten_in_use_shortens_the_interval() {
        let mut meter = Lifetime::default();
        meter.note_forgotten(Duration::from_secs(2));
        assert_eq!(meter.keepalive(), CAREFUL, "a restart");
        meter.note_forgotten(Duration::from_secs(16));
        assert_eq!(meter.keepalive(), Duration::from_secs(12));
        meter.note_forgotten(Duration::from_secs(6));
        assert_eq!(meter.keepalive(), SHORTEST);
    }
}
