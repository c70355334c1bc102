use super::*;
use crate::proto::Wall;
use crate::proto::config::{Host, HostPort, Rendezvous};
use crate::proto::rendezvous::client::{Client, Word};
use crate::proto::rendezvous::{MAX_PASSED, Wait};

const START: Instant = Instant::from_nanos(1_000_000_000);
const ONE_WAY: Duration = Duration::from_millis(25);
const AT: ([u8; 4], u16) = ([198, 51, 100, 9], 4274);

/// A server and members on a network without loss, which are as real as in the daemon.
struct Office {
    now: Instant,
    server: Server,
    rng: ChaCha20Rng,
}

struct Tester {
    identity: Identity,
    client: Client,
    at: SocketAddr,
    heard: Vec<Word>,
}

impl Office {
    fn new() -> Self {
        let server = Server::new(PrivateKey::from_bytes([100; 32]), None, [7; 32]);
        Self { now: START, server, rng: ChaCha20Rng::from_seed([8; 32]) }
    }

    fn member(&self, number: u8) -> Tester {
        let identity = Identity::new(PrivateKey::from_bytes([number; 32]));
        let address = HostPort { host: Host::Ip(AT.0.into()), port: AT.1 };
        let server = Rendezvous { address, public_key: self.server.public_key() };
        let client = Client::new(self.now, &identity, server);
        Tester { identity, client, at: ([203, 0, 113, number], 4275).into(), heard: Vec::new() }
    }

    fn registered(&mut self, number: u8) -> Tester {
        let mut member = self.member(number);
        self.exchange(&mut member);
        assert!(member.client.is_connected());
        member
    }

    /// What `member` has to say goes to the server, and the answers come back, until nobody has more to say. Second copies
    /// are lost.
    fn exchange(&mut self, member: &mut Tester) {
        let wall = Wall(Duration::from_secs(1_790_000_000) + self.now.since(Instant::default()));
        member.client.handle_timeout(self.now, wall, &member.identity, &mut self.rng);
        while let Some(transmit) = member.client.poll_transmit() {
            self.now = self.now + ONE_WAY;
            let mut datagram = transmit.payload;
            self.server.handle_datagram(self.now, 0, member.at, &mut datagram);
            self.now = self.now + ONE_WAY;
            self.collect(member);
        }
        member.client.handle_timeout(self.now, wall, &member.identity, &mut self.rng);
        while member.client.poll_transmit().is_some() {}
    }

    /// What the server has for `member`; what it has for others is lost.
    fn collect(&mut self, member: &mut Tester) -> usize {
        let mut count = 0;
        while let Some((_, to, datagram)) = self.server.poll_transmit() {
            if to != member.at {
                continue;
            }
            count += 1;
            match Kind::of(&datagram) {
                Some(Kind::WireGuard(WireGuard::Response)) => {
                    member.client.handle_response(self.now, AT.into(), &datagram, &mut self.rng).expect("is an answer");
                }
                Some(Kind::Dudp(kind)) => {
                    let word = member.client.handle_sealed(self.now, kind, AT.into(), &datagram);
                    member.heard.extend(word.ok().filter(|word| *word != Word::Nothing));
                }
                other => panic!("{other:?}"),
            }
        }
        count
    }

    fn call(&mut self, member: &mut Tester, to: &Tester, wait: Wait, passed: &[u8]) -> Word {
        member.heard.clear();
        assert!(member.client.forward(self.now, to.identity.public(), wait, passed.to_vec()));
        self.exchange(member);
        member.heard.pop().unwrap_or(Word::Nothing)
    }
}

fn absent(to: &Tester, held: bool) -> Word {
    Word::Absent { to: to.identity.public(), held }
}

fn deliver(from: &Tester, held: Duration, passed: &[u8]) -> Word {
    Word::Deliver { from: from.identity.public(), held: Some(held), passed: passed.to_vec() }
}

#[test]
fn a_held_call_comes_with_the_answer_to_the_first_word_and_once() {
    let mut office = Office::new();
    let (mut early, mut late) = (office.registered(1), office.member(2));
    let longest = [5; MAX_PASSED];
    assert_eq!(office.call(&mut early, &late, Wait::Long, &longest), absent(&late, true));
    office.exchange(&mut late);
    assert_eq!(late.heard, [deliver(&early, ONE_WAY * 4, &longest)]);
    assert!(late.client.public().is_some(), "the answer came as well");
    // Neither a keepalive nor a new registration brings it again.
    late.client.poke(office.now);
    late.client.renew(office.now);
    office.exchange(&mut late);
    assert_eq!(late.heard.len(), 1);
    assert_eq!(office.call(&mut early, &late, Wait::Long, &[6]), Word::Nothing, "who is there is called at once");
}

#[test]
fn a_call_that_may_not_wait_is_not_held() {
    let mut office = Office::new();
    let (mut early, mut late) = (office.registered(1), office.member(2));
    assert_eq!(office.call(&mut early, &late, Wait::Never, &[5]), absent(&late, false));
    office.exchange(&mut late);
    assert_eq!(late.heard, []);
}

#[test]
fn a_newer_call_that_may_not_wait_ends_the_holding() {
    let mut office = Office::new();
    let (mut early, mut late, other) = (office.registered(1), office.member(2), office.member(3));
    assert_eq!(office.call(&mut early, &late, Wait::Long, &[5]), absent(&late, true));
    assert_eq!(office.call(&mut early, &other, Wait::Never, &[6]), absent(&other, false));
    assert_eq!(office.call(&mut early, &late, Wait::Never, &[7]), absent(&late, false));
    office.exchange(&mut late);
    assert_eq!(late.heard, []);
}

#[test]
fn a_held_call_is_forgotten_in_time_and_nobody_is_told() {
    let mut office = Office::new();
    let (mut early, mut late) = (office.registered(1), office.member(2));
    assert_eq!(office.call(&mut early, &late, Wait::Long, &[5]), absent(&late, true));
    let held_at = office.now - ONE_WAY;
    // The second copy of what the caller was told goes out.
    let due = office.server.poll_timeout().expect("a copy waits");
    office.server.handle_timeout(due);
    assert!(office.server.poll_transmit().is_some());
    let due = office.server.poll_timeout().expect("it is held");
    assert_eq!(due, held_at + Wait::Long.time());
    office.now = due;
    office.server.handle_timeout(due);
    assert!(office.server.poll_timeout().is_some_and(|next| next > due));
    assert!(office.server.poll_transmit().is_none());
    office.exchange(&mut late);
    assert_eq!(late.heard, []);
}

#[test]
fn a_fifth_call_for_one_member_is_told_that_it_is_not_held() {
    let mut office = Office::new();
    let mut late = office.member(9);
    for number in 1..=5 {
        let mut early = office.registered(number);
        assert_eq!(office.call(&mut early, &late, Wait::Long, &[number]), absent(&late, number < 5));
    }
    office.exchange(&mut late);
    assert_eq!(late.heard.len(), 4);
}

#[test]
fn a_call_that_is_said_twice_is_held_once() {
    let mut office = Office::new();
    let (mut early, mut late) = (office.registered(1), office.member(2));
    early.client.forward(office.now, late.identity.public(), Wait::Long, vec![5]);
    let datagram = early.client.poll_transmit().expect("is sent").payload;
    office.server.handle_datagram(office.now, 0, early.at, &mut datagram.clone());
    assert_eq!(office.collect(&mut early), 1);
    office.server.handle_datagram(office.now, 0, early.at, &mut datagram.clone());
    assert_eq!(office.collect(&mut early), 0, "a repetition is dropped");
    office.exchange(&mut late);
    assert_eq!(late.heard, [deliver(&early, ONE_WAY * 3, &[5])]);
    office.server.handle_datagram(office.now, 0, early.at, &mut datagram.clone());
    assert_eq!(office.collect(&mut late), 0);
}

#[test]
fn what_is_held_goes_to_no_address_that_the_handshake_did_not_go_to() {
    let mut office = Office::new();
    let (mut early, mut late) = (office.registered(1), office.member(2));
    assert_eq!(office.call(&mut early, &late, Wait::Long, &[5]), absent(&late, true));
    let wall = Wall(Duration::from_secs(1_790_000_000));
    late.client.handle_timeout(office.now, wall, &late.identity, &mut office.rng);
    let mut initiation = late.client.poll_transmit().expect("is sent").payload;
    office.server.handle_datagram(office.now, 0, late.at, &mut initiation);
    office.collect(&mut late);
    let mut first_word = late.client.poll_transmit().expect("is sent").payload;
    let victim = ([192, 0, 2, 1], 53).into();
    office.server.handle_datagram(office.now, 0, victim, &mut first_word);
    let sent: Vec<_> = std::iter::from_fn(|| office.server.poll_transmit()).collect();
    assert_eq!(sent.len(), 1, "the answer, which is as long as the word");
}

#[test]
fn a_call_that_is_out_of_date_soon_is_held_briefly_and_its_caller_told() {
    let mut office = Office::new();
    let (mut early, mut late) = (office.registered(1), office.member(2));
    assert_eq!(office.call(&mut early, &late, Wait::Briefly, &[5]), absent(&late, true));
    office.exchange(&mut late);
    assert_eq!(late.heard, [deliver(&early, ONE_WAY * 4, &[5])]);

    let mut later = office.member(3);
    assert_eq!(office.call(&mut early, &later, Wait::Briefly, &[6]), absent(&later, true));
    early.heard.clear();
    office.now = office.now - ONE_WAY + Wait::Briefly.time();
    office.server.handle_timeout(office.now);
    assert!(office.collect(&mut early) > 0);
    assert_eq!(early.heard, [absent(&later, false)]);
    office.exchange(&mut later);
    assert_eq!(later.heard, [], "its first word came too late");
}

#[test]
fn what_a_call_waits_for_is_sent_twice_and_read_once() {
    let mut office = Office::new();
    let (mut caller, mut called) = (office.registered(1), office.registered(2));
    caller.client.forward(office.now, called.identity.public(), Wait::Never, vec![5]);
    let first = caller.client.poll_transmit().expect("is sent").payload;
    assert!(caller.client.poll_transmit().is_none());
    office.now = caller.client.poll_timeout().expect("a copy waits");
    caller.client.handle_timeout(office.now, Wall(Duration::ZERO), &caller.identity, &mut office.rng);
    let second = caller.client.poll_transmit().expect("is sent again").payload;
    assert!(first == second);
    // Either copy serves.
    office.server.handle_datagram(office.now, 0, caller.at, &mut second.clone());
    assert_eq!(office.collect(&mut called), 1);
    office.server.handle_datagram(office.now, 0, caller.at, &mut first.clone());
    assert_eq!(office.collect(&mut called), 0);
    // And so back: the copy that the server sends is as good, and changes nothing.
    let due = office.server.poll_timeout().expect("a copy waits");
    office.server.handle_timeout(due);
    assert_eq!(office.collect(&mut called), 1);
    let from = caller.identity.public();
    assert_eq!(called.heard, [Word::Deliver { from, held: None, passed: vec![5] }]);
    assert_eq!(office.server.drops().total(), 0);
}

#[test]
fn a_second_copy_of_an_initiation_is_answered_as_the_first_and_only_there() {
    let mut office = Office::new();
    let mut member = office.member(1);
    let wall = Wall(Duration::from_secs(1_790_000_000));
    member.client.handle_timeout(office.now, wall, &member.identity, &mut office.rng);
    let first = member.client.poll_transmit().expect("is sent").payload;
    office.now = member.client.poll_timeout().expect("a copy waits");
    member.client.handle_timeout(office.now, wall, &member.identity, &mut office.rng);
    let second = member.client.poll_transmit().expect("is sent again").payload;
    assert!(first == second);
    let mut answers = Vec::new();
    for (from, datagram) in [(member.at, &first), (([192, 0, 2, 1], 53).into(), &second), (member.at, &second)] {
        office.server.handle_datagram(office.now, 0, from, &mut datagram.clone());
        answers.extend(std::iter::from_fn(|| office.server.poll_transmit()).map(|(_, to, bytes)| (to, bytes)));
    }
    let [(to, answer), again] = answers.as_slice() else { panic!("{} answers", answers.len()) };
    assert_eq!((to, answer), (&member.at, &again.1));
    // Both come, and there is one session.
    for answer in [answer, &again.1] {
        member.client.handle_response(office.now, AT.into(), answer, &mut office.rng).expect("is no fault");
    }
    office.exchange(&mut member);
    assert_eq!(office.server.members(), 1);
    // Once the member has spoken, a copy is a replay.
    office.server.handle_datagram(office.now, 0, member.at, &mut first.clone());
    assert!(office.server.poll_transmit().is_none());
}
