//! Receiving for a packet thread: all sockets, with several datagrams in one buffer where the kernel has merged them.
//!
//! ```text
//! loop: Inlet::wait(timeout) → Inlet::recv_batch(batch) → for each datagram of batch.iter_mut()
//! ```
//!
//! `wait` asks the kernel which sockets are readable, and `recv_batch` takes from each of these in turn; so a thread that
//! does both in turn makes two system calls for all that one socket has, and none is starved.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::{Counters, FAIR_SHARE, MAX_ERRORS, Table};
use crate::io::sys::{self, Arrival, Epoll, MAX_BATCH};
use crate::io::wake::{Ready, Wait, Waker};
use crate::proto::SocketId;

/// The longest payload of a UDP datagram, and of several merged ones.
const MAX_PAYLOAD: usize = 65_535 - 8;
/// The waker's place among the tokens; a [`SocketId`] has 32 bits.
const WAKE: u64 = u64::MAX;
/// Buffers offered by the first call for a socket: the structures for more take longer to fill than a few datagrams to come.
const FIRST: usize = 8;

/// One received datagram.
#[derive(Debug)]
pub struct Incoming<'a> {
    pub socket: SocketId,
    pub from: SocketAddr,
    /// The byte of DSCP and ECN; 0 where the kernel does not tell.
    pub tos: u8,
    pub payload: &'a mut [u8],
}

/// Buffers for one batch, used again and again.
pub struct GroBatch {
    /// Each as long as the longest of what can be received, so nothing is ever cut. The system gives them memory only as
    /// far as they are written to, and the first ones are used first.
    buffers: Vec<Box<[u8]>>,
    /// Of the buffer of the same index.
    arrivals: Vec<Arrival>,
    sockets: Vec<SocketId>,
    filled: usize,
}

impl GroBatch {
    /// `count` buffers (at most 64) of 64 KiB.
    pub fn new(count: usize) -> Self {
        let count = count.clamp(1, MAX_BATCH);
        Self {
            buffers: (0..count).map(|_| vec![0; MAX_PAYLOAD].into_boxed_slice()).collect(),
            arrivals: vec![Arrival::default(); count],
            sockets: vec![SocketId::MAIN_V4; count],
            filled: 0,
        }
    }

    /// The datagrams of the last [`Inlet::recv_batch`], those of one socket in order of arrival; all may be held at once. Empty
    /// ones are left out: nothing of ours is empty.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = Incoming<'_>> {
        let buffers = self.buffers[..self.filled].iter_mut().zip(&self.arrivals).zip(&self.sockets);
        buffers
            .filter_map(|((buffer, arrival), socket)| {
                Some((buffer.get_mut(..arrival.len)?, arrival, arrival.from?, *socket))
            })
            .flat_map(|(bytes, arrival, from, socket)| {
                let segment = arrival.segment.unwrap_or(MAX_PAYLOAD);
                bytes.chunks_mut(segment).map(move |payload| Incoming { socket, from, tos: arrival.tos, payload })
            })
    }
}

/// The receiving end of all of a [`super::Sockets`]' sockets, those that are opened later too, for one thread.
pub struct Inlet {
    set: Arc<Epoll>,
    sockets: Table,
    wait: Wait,
    /// Readable sockets of the current round, each served once before the set is asked again.
    ready: VecDeque<SocketId>,
    counters: Counters,
}

impl Inlet {
    pub(super) fn new(set: Arc<Epoll>, sockets: Table) -> io::Result<Self> {
        let wait = Wait::new()?;
        set.add(wait.event(), WAKE)?;
        Ok(Self { set, sockets, wait, ready: VecDeque::new(), counters: Counters::default() })
    }

    /// What ends [`Inlet::wait`] from elsewhere.
    pub fn waker(&self) -> Waker {
        self.wait.waker()
    }

    /// What was received, since the start. Nothing is sent by an inlet.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Waits until [`Inlet::recv_batch`] may bring something or a [`Waker`] wakes, for `timeout` (`None`: for ever). At once
    /// where the last round is not over.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Ready> {
        let (ready, mut raised) = (&mut self.ready, false);
        if ready.is_empty() {
            let asked = self.set.ready(timeout, |token| match u32::try_from(token) {
                Ok(id) => ready.push_back(SocketId(id)),
                Err(_) => raised = true,
            });
            match asked {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(Ready { readable: !self.ready.is_empty(), woken: self.wait.take_after(raised) })
    }

    /// Fills `batch` from the sockets that the last [`Inlet::wait`] found readable, and gives how many buffers it holds then
    /// (each has one datagram or more). Never waits, and asks no other sockets.
    pub fn recv_batch(&mut self, batch: &mut GroBatch) -> usize {
        batch.filled = 0;
        let mut errors = 0;
        // One lock a batch; nothing in here waits.
        let sockets = self.sockets.read();
        while batch.filled < batch.buffers.len() && errors < MAX_ERRORS {
            let Some(id) = self.ready.pop_front() else { break };
            // Closed since.
            let Some(socket) = sockets.get(&id) else { continue };
            let share = if self.ready.is_empty() { MAX_BATCH } else { FAIR_SHARE };
            let end = batch.buffers.len().min(batch.filled + share);
            let mut offered = FIRST;
            while batch.filled < end {
                let span = batch.filled..end.min(batch.filled + offered);
                let count = span.len();
                let arrivals = &mut batch.arrivals[span.clone()];
                let room = batch.buffers[span.clone()].iter_mut().map(|room| &mut room[..]);
                match sys::receive(socket.as_fd(), room, arrivals) {
                    Ok(received) => {
                        for arrival in &arrivals[..received] {
                            match (arrival.from, arrival.segment) {
                                (None, _) => self.counters.oversized += 1,
                                (_, None) => self.counters.received += 1,
                                (_, Some(segment)) => self.counters.received += arrival.len.div_ceil(segment) as u64,
                            }
                        }
                        batch.sockets[span][..received].fill(id);
                        batch.filled += received;
                        if received < count {
                            break;
                        }
                        offered = MAX_BATCH;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Reading the error took it off the socket. What waits behind it is found in the next round.
                    Err(error) => {
                        errors += 1;
                        self.counters.receive_errors += 1;
                        tracing::trace!(%error, "receiving");
                        break;
                    }
                }
            }
        }
        batch.filled
    }
}

#[cfg(test)]
mod tests;
