//! How long a session lives.

use std::time::Duration;

use super::timers::{KEEPALIVE_TIMEOUT, REKEY_TIMEOUT};
use crate::proto::replay::{CONTROL_WORDS, DATA_WORDS};
use crate::proto::session::Session;
use crate::proto::time::Instant;

/// How long a session lives, and how wide its replay window is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Older than this, its initiator makes a new one when it next sends.
    pub rekey_after_time: Duration,
    /// Older than this, it seals and opens nothing.
    pub reject_after_time: Duration,
    /// With so many messages sealed, or fewer where its cipher bears fewer, either side makes a new one when it next sends.
    pub rekey_after_messages: u64,
    /// With no new session for so long, all keys are wiped.
    pub forget_after: Duration,
    /// Words of the replay window ([`crate::proto::replay`]).
    pub replay_words: usize,
}

impl Limits {
    /// WireGuard's own (whitepaper section 6.1), for sessions that carry payload.
    pub const PAYLOAD: Limits = Limits {
        rekey_after_time: Duration::from_secs(120),
        reject_after_time: Duration::from_secs(180),
        rekey_after_messages: 1 << 60,
        forget_after: Duration::from_secs(3 * 180),
        replay_words: DATA_WORDS,
    };
    /// For sessions with a rendezvous server, which carry a keepalive each 20 s and a call now and then, sealed once more inside:
    /// an hour makes 55 handshakes a second of a server's 200,000 members, two minutes would make 1,700.
    pub const SIGNALLING: Limits = Limits {
        rekey_after_time: Duration::from_secs(3600),
        reject_after_time: Duration::from_secs(3600 + 180),
        rekey_after_messages: 1 << 60,
        forget_after: Duration::from_secs(3600 + 180),
        replay_words: CONTROL_WORDS,
    };
}

impl Limits {
    pub(super) fn is_too_old(&self, session: &Session, now: Instant) -> bool {
        now.since(session.created) >= self.reject_after_time
    }

    pub(super) fn is_usable(&self, session: &Session, now: Instant) -> bool {
        !self.is_too_old(session, now) && !session.sealer.is_used_up(0)
    }

    /// `largest`: bytes of the largest packets.
    pub(super) fn wants_rekey_on_send(&self, session: &Session, now: Instant, largest: usize) -> bool {
        let most = self.rekey_after_messages.min(session.sealer.cipher().rekey_after_messages(largest));
        session.sealer.sealed() >= most || session.initiator && now.since(session.created) >= self.rekey_after_time
    }

    /// So late that a keepalive could no longer do it on time (whitepaper section 6.2).
    pub(super) fn wants_rekey_on_receive(&self, session: &Session, now: Instant) -> bool {
        let margin = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT;
        session.initiator && now.since(session.created) >= self.reject_after_time.saturating_sub(margin)
    }
}
