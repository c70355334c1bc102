//! The sessions of a tunnel: the one in use, the one before it, and the one that waits for its first packet.
//!
//! ```text
//! we initiated    response in  ─►  current              (what was current, or waited in next, is previous)
//! we responded    response out ─►  next ─ first packet in ─►  current   (what was current is previous)
//! ```
//!
//! The rotation is the kernel module's. A responder can't know that its response arrived until a packet under the new keys
//! comes in, so it goes on sending with the old ones until then.

use crate::proto::session::Session;

#[derive(Default)]
pub struct Slots {
    current: Option<Box<Session>>,
    previous: Option<Box<Session>>,
    next: Option<Box<Session>>,
}

/// The local index of a session that is gone.
pub type Gone = Option<u32>;

impl Slots {
    pub fn current(&mut self) -> Option<&mut Session> {
        self.current.as_deref_mut()
    }

    pub fn current_ref(&self) -> Option<&Session> {
        self.current.as_deref()
    }

    /// The current one, and the one before it, which is still opened with.
    pub fn carrying(&self) -> impl Iterator<Item = &Session> {
        let previous = self.previous.as_deref().filter(|_| self.current.is_some());
        self.current.as_deref().into_iter().chain(previous)
    }

    pub fn find(&mut self, local_index: u32) -> Option<&mut Session> {
        [&mut self.current, &mut self.previous, &mut self.next]
            .into_iter()
            .filter_map(|slot| slot.as_deref_mut())
            .find(|session| session.local_index == local_index)
    }

    /// Takes a session that we initiated.
    pub fn add_initiated(&mut self, session: Session) -> [Gone; 2] {
        let before = self.current.replace(Box::new(session));
        let mut gone = [self.previous.take().map(|session| session.local_index), None];
        self.previous = match self.next.take() {
            Some(next) => {
                gone[1] = before.map(|session| session.local_index);
                Some(next)
            }
            None => before,
        };
        gone
    }

    /// Takes a session that we responded to.
    pub fn add_responded(&mut self, session: Session) -> Gone {
        self.next.replace(Box::new(session)).map(|session| session.local_index)
    }

    /// An authentic packet came in on this session. `Some` where it was the first of the one that waited, which now is the
    /// current one.
    pub fn confirm(&mut self, local_index: u32) -> Option<Gone> {
        let next = self.next.take_if(|next| next.local_index == local_index)?;
        let gone = self.previous.take().map(|session| session.local_index);
        self.previous = self.current.replace(next);
        Some(gone)
    }

    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        [&self.current, &self.previous, &self.next].into_iter().flatten().map(|session| session.local_index)
    }
}
